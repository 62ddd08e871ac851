"""ReLU with the truncation before it, and other piecewise linear functions.

Everything that party 0 contributes is one message to party 2, made of its own shares and streams alone: it
never waits. Parties 1 and 2 then need a round for each level of the sign's carry tree, one to open the sign
under a mask, and one for the result.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsec.errors import UsageError
from fedsec.mpc.costs import Cost, protocol
from fedsec.mpc.party import Layout, Party
from fedsec.mpc.signs import SignMasks, SignWindow, open_sign, planes_to_deal
from fedsec.mpc.truncation import Cut
from fedsec.mpc.two_holders import BITS, WORDS, Pair, known_word
from fedsec.mpc.two_parties import deal, draw_mask, joined, open_halves, take_dealt
from fedsec.ring import Ring, RingArray
from fedsec.sharing.boolean import unpack_bits
from fedsec.sharing.replicated import RepShare

_ABY2 = "ABY2.0 (Patra, Schneider, Suresh, Yalame 2021), products of masked values"


def _truncated_relu_cost(
    x: RepShare | Pair, bits: int, window_bits: int, ignore_bits: int = 0, *, ring: Ring | None = None
) -> Cost:
    cut = Cut(bits, x.ring, ring or x.ring)
    window = SignWindow.of(x.size, x.ring, window_bits=window_bits, bits=bits, ignore_bits=ignore_bits)
    words = sum(layout.size_bytes for layout in _layouts(x, cut))
    opened = window.opened_bytes + x.size * cut.result.element_bytes
    return Cost(window.rounds + 2, (window.dealt_bytes + words, opened, opened))


def _layouts(x: RepShare | Pair, cut: Cut) -> list[Layout]:
    """Return the layouts of the words that party 0 deals for a ReLU: r, r * A, A, u, r * u.

    Of a replicated x that is not cut, parties 1 and 2 have components 1 and 0, halves of A.
    """
    word = Layout((x.size,), cut.result)
    layouts = [word, word] if isinstance(x, RepShare) and cut.is_reduction else [word, word, word]
    return layouts if cut.factor is None else [*layouts, *2 * [Layout((x.size,), cut.factor)]]


@protocol(cost=_truncated_relu_cost, source=_ABY2)
def truncated_relu(
    party: Party,
    x: RepShare | Pair,
    bits: int,
    window_bits: int,
    ignore_bits: int = 0,
    *,
    ring: Ring | None = None,
) -> RepShare:
    """Drop fraction bits and keep what is positive: T = floor(x / 2^bits), or one less, where T >= 0, else 0.

    Party 0 knows a and parties 1 and 2 know b with x = a + b. Let A and B be a >> bits and b >> bits as
    signed numbers of k - bits bits, and u, v their sign bits. Where T >= 0, T = A + B + 2^(k - bits) * u * v.
    The sign s of T is opened to parties 1 and 2 as e = s XOR r under a mask bit r of party 0, so with
    1 - s = f + (1 - 2f) * r for f = 1 - e,

        (1 - s) * T  =  f * T  +  (1 - 2f) * r * (A + B + 2^(k - bits) * u * v)

    is a sum of local products, once party 0 has dealt halves of A, u, r, r * A and r * u.

    Shapes:    the result has the shape of x.
    Units:     T fits ``window_bits`` signed bits, also where it is one less; the fraction bits fall by
               ``bits``. With ``ignore_bits`` = g the sign may leave out the lowest g bits of T: T in [0, 2^g)
               may come out as 0, a negative T never comes out as T.
    Cost:      3 rounds and one a level of the carry tree (``signs``); about 27 B an element over all parties
               in the 32-bit ring at w - g = 13, 55 B in the 64-bit ring.
    Security:  semi-honest, one corrupt party of three. Party 0 receives nothing. All that parties 1 and 2
               receive are dealt halves and openings under masks, uniform to them (``two_parties``). The
               components of the result are two fresh streams and the word opened under them.
    Source:    products of masked values as in ABY2.0 (Patra et al. 2021); the truncation is that of
               ``truncate``.

    Raises:
        UsageError: The window does not fit the ring, or x has fewer than ``bits`` fraction bits.
    """
    if bits > x.fraction_bits:
        raise UsageError(f"{bits} bits cannot be dropped from {x!r}")
    cut = Cut(bits, x.ring, ring or x.ring)
    window = SignWindow.of(x.size, x.ring, window_bits=window_bits, bits=bits, ignore_bits=ignore_bits)
    masks = SignMasks.draw(party, window)
    result = draw_mask(party, (x.size,), cut.result)
    known = known_word(party, x).reshape(-1)

    # One message, from party 0 to party 2.
    if party.id == 0:
        planes = planes_to_deal(window, known, masks)
        words = _relu_words(x, known, cut, _bit_of(masks, x.size, cut.result))
        party.exchange({2: [*deal(party, BITS, [planes]), *deal(party, WORDS, words)]}, {})
        masked = None
    else:
        dealt, *halves = take_dealt(party, [window.dealt_layout, *_layouts(x, cut)])
        # A round a level and one to open the sign; what is kept is what is not negative.
        signs = open_sign(party, window, known, dealt, masks)
        positive = unpack_bits(~signs, x.size, cut.result)
        # One round: the result under the mask of its components.
        half = _relu_half(party, x, cut, positive, halves)
        masked = open_halves(party, WORDS, half, result[0])
    own, following = joined(party, result, masked)
    return RepShare(own.reshape(x.shape), following.reshape(x.shape), x.fraction_bits - bits)


def _bit_of(masks: SignMasks, count: int, ring: Ring) -> RingArray:
    """Return the mask of the sign at party 0, a word an element."""
    return unpack_bits(masks.sign[0] ^ masks.sign[1], count, ring)


def _relu_words(x: RepShare | Pair, known: RingArray, cut: Cut, mask: RingArray) -> list[RingArray]:
    word, top = cut.of(known)
    words = [mask, mask * word] if isinstance(x, RepShare) and cut.is_reduction else [mask, mask * word, word]
    return words if top is None else [*words, top, mask.astype(top.dtype) * top]


def _relu_half(
    party: Party, x: RepShare | Pair, cut: Cut, positive: RingArray, halves: Sequence[RingArray]
) -> RingArray:
    mask, masked_word, *others = halves
    word, top = cut.of(known_word(party, x).reshape(-1))
    # T, and T times the mask, are what party 0 knows of them (whole, agreed) and what parties 1 and 2 know.
    if isinstance(x, RepShare) and cut.is_reduction:
        own = x.own if party.id == 1 else x.next
        whole = own.reshape(-1).astype(cut.result.dtype, copy=False)
    else:
        whole = others.pop(0)
    agreed = masked_word + mask * word
    if top is not None:
        factor, masked_factor = others
        whole = whole + cut.wraps(top * factor)
        agreed += cut.wraps(top * masked_factor)
    if party.id == 1:
        whole = whole + word
    return np.asarray(agreed + positive * (whole - agreed - agreed))


def _relu_cost(x: RepShare | Pair, window_bits: int) -> Cost:
    return _truncated_relu_cost(x, 0, window_bits)


@protocol(cost=_relu_cost, source=_ABY2)
def relu(party: Party, x: RepShare | Pair, window_bits: int) -> RepShare:
    """Keep positive elements, set negative ones to zero: ``[max(x, 0)]``.

    Shapes:    the result has the shape of x.
    Units:     x fits the window of ``window_bits`` bits; the fraction bits are those of x.
    Cost:      as ``truncated_relu`` without truncation: about 41 B an element over all parties at w = 21 in
               the 64-bit ring.
    Security:  semi-honest, one corrupt party of three: ``truncated_relu`` with nothing to drop. Nothing is
               opened; the result is freshly shared.
    Source:    as ``truncated_relu``.

    Raises:
        UsageError: As ``truncated_relu``.
    """
    return truncated_relu.function(party, x, 0, window_bits)
