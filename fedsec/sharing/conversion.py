"""From an additive sharing among n parties to a replicated one among three.

Each of the n parties splits its additive share into three fresh parts and sends computing party i the pair
(i, i+1) of them; party i adds what it got. One round of messages, done by the caller; these are the two local
ends of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedsec.errors import ProtocolError
from fedsec.ring import KeyedStream, RingArray
from fedsec.sharing import additive
from fedsec.sharing.replicated import PARTIES, RepShare


def split_for_three(sum_share: RingArray, stream: KeyedStream) -> tuple[RingArray, RingArray, RingArray]:
    """Split one additive share into three parts; computing party i gets parts i and i+1 mod 3.

    Args:
        sum_share: This party's additive share, ring elements of any shape.
        stream: Source of two of the parts, known to this party alone; it moves by 2 * size elements.

    Returns:
        Parts 0, 1 and 2, whose sum is ``sum_share``.

    Security: a computing party sees two of the three parts, which are uniform. The parts are fresh, so the
    result does not repeat the additive shares even when the same organisations hold both.
    """
    part_0, part_1, part_2 = additive.share(sum_share, PARTIES, stream)
    return part_0, part_1, part_2


def combine_pairs(pairs: Sequence[tuple[RingArray, RingArray]], fraction_bits: int = 0) -> RepShare:
    """Add the pairs that one computing party got, one from each of the n additive parties.

    Args:
        pairs: The (own, next) pairs, 2 to 7 of them, all of one shape and dtype.
        fraction_bits: Fraction bits with which the shared secret is encoded.

    Returns:
        This party's replicated share of the same secret.

    Raises:
        UsageError: There are not 2 to 7 pairs.
        ProtocolError: The pairs differ in shape or dtype.
    """
    additive.check_parties(len(pairs))
    total = RepShare(*pairs[0], fraction_bits)
    for number, pair in enumerate(pairs[1:], start=1):
        part = RepShare(*pair, fraction_bits)
        if part.shape != total.shape or part.ring != total.ring:
            raise ProtocolError(
                f"pair {number} has shape {part.shape} in a {part.ring.bits}-bit ring, pair 0 has "
                f"{total.shape} in a {total.ring.bits}-bit ring: they are not parts of one secret"
            )
        total = total + part
    return total
