"""Sum and product of what party 0 alone knows and what parties 1 and 2 both know.

A replicated sharing x = x_0 + x_1 + x_2 is a pair of such values without any message: party 0 knows a = x_0 +
x_1, parties 1 and 2 know b = x_2. Truncation and signs are computed from it, because bits of a and of b can
be cut out locally.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fedsec.errors import UsageError
from fedsec.mpc.party import Layout, Party
from fedsec.ring import Ring, RingArray, ring_of
from fedsec.sharing.replicated import RepShare


@dataclass(frozen=True)
class Operations:
    """Sum, difference and product of the ring that values are taken in."""

    add: np.ufunc
    subtract: np.ufunc
    times: np.ufunc


WORDS = Operations(np.add, np.subtract, np.multiply)
BITS = Operations(np.bitwise_xor, np.bitwise_xor, np.bitwise_and)


class Components(NamedTuple):
    """The two components of a sharing that this party holds."""

    own: RingArray
    next: RingArray


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Pair:
    """A secret x = a + b of which party 0 knows a, parties 1 and 2 both know b.

    Linear layers give one for less than a replicated sharing, and all that cuts bits takes it.

    Attributes:
        known: a at party 0, b at parties 1 and 2.
        fraction_bits: Fraction bits of the secret.
    """

    known: RingArray
    fraction_bits: int = 0

    def __repr__(self) -> str:
        return f"Pair(shape={self.shape}, ring={self.ring.bits} bits, fraction_bits={self.fraction_bits})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the secret."""
        return self.known.shape

    @property
    def size(self) -> int:
        """Number of elements of the secret."""
        return self.known.size

    @property
    def ring(self) -> Ring:
        """Ring of the secret."""
        return ring_of(self.known)

    def reshape(self, *shape: int) -> Pair:
        """Return the same secret in another shape; one dimension may be -1."""
        return Pair(self.known.reshape(shape), self.fraction_bits)

    def plus(self, party: Party, other: RepShare | Pair) -> Pair:
        """Return the sum with another secret, a bias for example; local.

        Raises:
            UsageError: The rings or the fraction bits differ.
        """
        if other.ring != self.ring or other.fraction_bits != self.fraction_bits:
            raise UsageError(f"{self!r} and {other!r} are of different kinds; only equal kinds add up")
        return Pair(np.asarray(self.known + known_word(party, other)), self.fraction_bits)


def known_word(party: Party, x: RepShare | Pair) -> RingArray:
    """Return what this party knows of x = a + b: a = x_0 + x_1 at party 0, b = x_2 at parties 1 and 2."""
    if isinstance(x, Pair):
        return x.known
    if party.id == 0:
        return np.asarray(x.own + x.next)
    return x.next if party.id == 1 else x.own


def share_sum(party: Party, summand: RingArray) -> Components:
    """Make a pair replicated: party 0 passes A, parties 1 and 2 both pass the same B; one message.

    Security:  component 1 is a stream of parties 0 and 1; party 2 receives A minus it, uniform to it.
               Component 2 is B, which parties 1 and 2 knew before: not fresh.

    Returns:
        This party's components of A + B.
    """
    ring = ring_of(summand)
    if party.id == 0:
        rho = party.stream_with(1).words(summand.shape, ring)
        rest = np.asarray(summand - rho)
        party.exchange({2: [rest]}, {})
        return Components(rest, rho)
    if party.id == 1:
        return Components(party.stream_with(0).words(summand.shape, ring), summand)
    return Components(summand, party.exchange({}, {0: [Layout(summand.shape, ring)]})[0][0])


def sum_and_product(
    party: Party, operations: Operations, summand: RingArray, factor: RingArray
) -> tuple[Components, Components]:
    """Share the sum and a bit product of what party 0 and what parties 1 and 2 know, in one round.

    Party 0 passes (A, u), parties 1 and 2 both pass the same (B, v), where the factors u and v are bits: the
    word 0 or 1 with ``WORDS``, any word with ``BITS``, where every bit is a factor of its own. The summands
    and the factors may be words of different rings.

    Sum: component 1 is a stream of parties 0 and 1, component 0 is A minus it, component 2 is B.

    Product s_0 + s_1 + s_2 = u * v: s_0 and s_1 are streams, and parties 1 and 2 both need the entry v of the
    table that only party 0 can write, (-s_0 - s_1, u - s_0 - s_1). Party 1 needs no message for the entry 0
    but s_0, which party 2 knows. So party 0 sends party 1 the entry 1 under a mask known to party 2, and
    party 2 sends party 1 either that mask (v = 1) or s_0 (v = 0). The same happens towards party 2, with s_1
    and a mask known to party 1.

    Security:  semi-honest, one corrupt party of three. Party 0 receives nothing. Party 1 receives the masked
               entry 1 and one word of party 2. If v = 0 the word is s_0 and the mask stays unknown: both are
               fresh uniform words of streams that party 1 does not share. If v = 1 the word is the mask,
               uniform, and the difference is u - s_0 - s_1, uniform because s_0 is. So its view is two
               uniform words whatever u is. Party 2 likewise; the component 0 of the sum that it receives is A
               minus a stream that it does not share. All streams are used once, so the messages are uniform
               jointly as well. Component 2 of the sum is not fresh: parties 1 and 2 knew B before, and party
               0 can learn it only from what is opened to it.

    Args:
        party: This party.
        operations: Arithmetic modulo 2^k, or bitwise.
        summand: A at party 0, B at parties 1 and 2.
        factor: u at party 0, v at parties 1 and 2.

    Returns:
        This party's components of A + B and of u * v.
    """
    if party.id == 0:
        return _as_party_0(party, operations, summand, factor)
    return _as_other_party(party, operations, summand, factor)


def _as_party_0(
    party: Party, operations: Operations, summand: RingArray, factor: RingArray
) -> tuple[Components, Components]:
    add, subtract = operations.add, operations.subtract
    rho = party.stream_with(1).words(summand.shape, ring_of(summand))
    s_1, mask_of_1 = _part_and_mask(party, 1, factor)
    s_0, mask_of_2 = _part_and_mask(party, 2, factor)

    # What is hidden from party 1 goes under the mask that party 2 knows, and the other way round.
    rest = np.asarray(subtract(summand, rho))
    entry = subtract(subtract(factor, s_0), s_1)
    party.exchange({1: [add(entry, mask_of_2)], 2: [rest, add(entry, mask_of_1)]}, {})

    return Components(rest, rho), Components(s_0, s_1)


def _as_other_party(
    party: Party, operations: Operations, summand: RingArray, factor: RingArray
) -> tuple[Components, Components]:
    add, subtract, times = operations.add, operations.subtract, operations.times
    other = 3 - party.id
    factors, summands = Layout(factor.shape, ring_of(factor)), Layout(summand.shape, ring_of(summand))
    rho = party.stream_with(0).words(summand.shape, summands.ring) if party.id == 1 else None
    part, mask = _part_and_mask(party, 0, factor)

    # v ? mask : part, without a branch on a secret.
    choice = add(part, times(factor, subtract(mask, part)))
    from_0 = [factors] if party.id == 1 else [summands, factors]
    received = party.exchange({other: [choice]}, {0: from_0, other: [factors]})

    # v ? entry - mask : -s_0 - s_1, where this party holds one of s_0 and s_1 and the choice is the other or
    # the mask.
    entry, others_choice = received[0][-1], received[other][0]
    s_2 = np.asarray(subtract(subtract(times(factor, add(entry, part)), part), others_choice))
    if rho is not None:
        return Components(rho, summand), Components(part, s_2)
    return Components(summand, received[0][0]), Components(s_2, part)


def _part_and_mask(party: Party, other: int, factor: RingArray) -> tuple[RingArray, RingArray]:
    stream, ring = party.stream_with(other), Ring(8 * factor.dtype.itemsize)
    return stream.words(factor.shape, ring), stream.words(factor.shape, ring)
