"""Sharings between parties 1 and 2 alone, with party 0 dealing what they need.

A *half* is one summand of a value that parties 1 and 2 hold between them: v = v_1 + v_2, or v_1 XOR v_2 of
bit planes. Party 0 holds none of it. It deals halves of what it knows (``deal``, ``take_dealt``); and the
other two make a value of theirs replicated again by opening it to each other under masks that party 0 knows
(``join``): then party 0 knows the sum of the masks, parties 1 and 2 know the masked value, and party 0 can
deal products of masks even before the masked values exist. It never receives anything.

A masked value times a masked one, with x = e + r and y = f + s for what parties 1 and 2 know (e, f) and what
party 0 knows (r, s), is e * f + e * s + f * r + r * s: local, once party 0 has dealt r * s.

Security: semi-honest, one corrupt party of three. A dealt word reaches party 2 minus a word of a stream of
parties 0 and 1; party 1's half is that word. An opened half reaches party 1 minus a stream of parties 0 and
2, and party 2 minus a stream of parties 0 and 1. Every message is so uniform to its receiver, each stream
word is used once, and party 0 sees nothing.

Source: the roles and the masked product are those of ASTRA (Chaudhari, Choudhury, Patra, Suresh 2019), which
deals before the input is known; here dealing happens on the way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsec.mpc.costs import Cost
from fedsec.mpc.party import Layout, Party
from fedsec.mpc.two_holders import Components, Operations
from fedsec.ring import Ring, RingArray, ring_of

Mask = tuple[RingArray, ...]
"""At party 0 both parts, that of party 2 (component 0) first; at parties 1 and 2 their own part."""


def draw_mask(party: Party, shape: tuple[int, ...], ring: Ring) -> Mask:
    """Draw a mask from the streams of party 0 with parties 1 and 2."""
    if party.id != 0:
        return (party.stream_with(0).words(shape, ring),)
    of_1 = party.stream_with(1).words(shape, ring)
    return party.stream_with(2).words(shape, ring), of_1


def deal(party: Party, operations: Operations, values: Sequence[RingArray]) -> list[RingArray]:
    """Split what party 0 knows into halves; return those for party 2, which party 0 sends in one message."""
    streams = party.stream_with(1)
    return [
        np.asarray(operations.subtract(value, streams.words(value.shape, ring_of(value)))) for value in values
    ]


def take_dealt(party: Party, layouts: Sequence[Layout]) -> list[RingArray]:
    """Return the halves of what party 0 deals: party 1 draws its own, party 2 receives one message."""
    if party.id == 1:
        return [party.stream_with(0).words(layout.shape, layout.ring) for layout in layouts]
    return party.exchange({}, {0: layouts})[0]


def open_halves(party: Party, operations: Operations, half: RingArray, mask: RingArray) -> RingArray:
    """Open a value of parties 1 and 2 to both under the mask whose parts they hold; one round.

    Returns:
        The value minus its mask, the same at both.
    """
    hidden = np.asarray(operations.subtract(half, mask))
    return np.asarray(operations.add(hidden, party.swap(3 - party.id, hidden)))


def joined(party: Party, mask: Mask, masked: RingArray | None) -> Components:
    """Return the components of a replicated sharing: party 2's mask, party 1's mask, the masked value."""
    if masked is None:
        return Components(*mask)
    return Components(mask[0], masked) if party.id == 1 else Components(masked, mask[0])


def join(party: Party, operations: Operations, half: RingArray | None, layout: Layout) -> Components:
    """Make a value of parties 1 and 2 replicated, with fresh components; one round between the two.

    Args:
        party: This party.
        operations: Arithmetic modulo 2^k, or bitwise.
        half: This party's half, None at party 0.
        layout: Shape and ring of the value.
    """
    mask = draw_mask(party, layout.shape, layout.ring)
    return joined(party, mask, None if half is None else open_halves(party, operations, half, mask[0]))


def join_cost(count: int, ring: Ring) -> Cost:
    """Return the cost of ``join``."""
    return Cost(1, (0, count * ring.element_bytes, count * ring.element_bytes))
