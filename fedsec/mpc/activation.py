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
from fedsec.mpc.products import share_pair
from fedsec.mpc.signs import SignMasks, SignWindow, open_sign, planes_to_deal
from fedsec.mpc.truncation import Cut
from fedsec.mpc.two_holders import BITS, WORDS, Pair, known_word
from fedsec.mpc.two_parties import deal, join, join_cost, take_dealt
from fedsec.ring import Ring, RingArray
from fedsec.sharing.boolean import unpack_bits
from fedsec.sharing.replicated import RepShare

_ABY2 = "ABY2.0 (Patra, Schneider, Suresh, Yalame 2021), products of masked values"


def _truncated_relu_cost(
    x: RepShare | Pair, bits: int, window_bits: int, ignore_bits: int = 0, *, ring: Ring | None = None
) -> Cost:
    cut = Cut(bits, x.ring, ring or x.ring)
    window = SignWindow.of(x.size, x.ring, window_bits=window_bits, bits=bits, ignore_bits=ignore_bits)
    return _halves_cost(x, cut, window) + join_cost(x.size, cut.result)


def _halves_cost(x: RepShare | Pair, cut: Cut, window: SignWindow) -> Cost:
    words = sum(layout.size_bytes for layout in _layouts(x, cut))
    return window.cost + Cost(0, (words, 0, 0))


def _layouts(x: RepShare | Pair, cut: Cut) -> list[Layout]:
    """Return the layouts of the words that party 0 deals for a ReLU: r, r * A, A; and then u, r * u.

    Of a replicated x that is not cut, parties 1 and 2 have components 1 and 0, halves of A.
    """
    words = 2 if isinstance(x, RepShare) and cut.is_reduction else 3
    layouts = [Layout((words, *x.shape), cut.result)]
    return layouts if cut.factor is None else [*layouts, Layout((2, *x.shape), cut.factor)]


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
    Cost:      3 rounds and one a level of the carry tree (``signs``); about 30 B an element over all parties
               in the 32-bit ring at w - g = 13, 50 B in the 64-bit ring.
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
    half = _positive_half(party, x, cut, window)

    # One round: the result under the mask of its components.
    return RepShare(*join(party, WORDS, half, Layout(x.shape, cut.result)), x.fraction_bits - bits)


def _positive_half(party: Party, x: RepShare | Pair, cut: Cut, window: SignWindow) -> RingArray | None:
    """Return this party's half of T where that is positive, else 0; None at party 0."""
    masks = SignMasks.draw(party, window)
    known = known_word(party, x)

    # One message, from party 0 to party 2.
    if party.id == 0:
        planes = planes_to_deal(window, known, masks)
        words = _words_to_deal(party, x, cut, masks.words(x.size, cut.result).reshape(x.shape))
        party.exchange({2: [*deal(party, BITS, [planes]), *deal(party, WORDS, words)]}, {})
        return None
    dealt, *halves = take_dealt(party, [window.dealt_layout, *_layouts(x, cut)])

    # A round a level and one to open the sign; what is kept is what is not negative.
    signs = open_sign(party, window, known, dealt, masks)
    positive = unpack_bits(~signs, x.size, cut.result).reshape(x.shape)
    return _selected_half(party, x, cut, positive, halves)


def _words_to_deal(party: Party, x: RepShare | Pair, cut: Cut, mask: RingArray) -> list[RingArray]:
    word, top = cut.of(known_word(party, x))
    words = [mask, mask * word] if isinstance(x, RepShare) and cut.is_reduction else [mask, mask * word, word]
    if top is None:
        return [np.stack(words)]
    return [np.stack(words), np.stack([top, mask.astype(top.dtype) * top])]


def _selected_half(
    party: Party, x: RepShare | Pair, cut: Cut, positive: RingArray, halves: Sequence[RingArray]
) -> RingArray:
    mask, masked_word, *others = halves[0]
    word, top = cut.of(known_word(party, x))
    # T, and T times the mask, are what party 0 knows of them (whole, agreed) and what parties 1 and 2 know.
    if isinstance(x, RepShare) and cut.is_reduction:
        own = x.own if party.id == 1 else x.next
        whole = own.astype(cut.result.dtype, copy=False)
    else:
        whole = others.pop(0)
    agreed = masked_word + mask * word
    if top is not None:
        factor, masked_factor = halves[1]
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
    Cost:      as ``truncated_relu`` without truncation: about 43 B an element over all parties at w = 21 in
               the 64-bit ring.
    Security:  semi-honest, one corrupt party of three: ``truncated_relu`` with nothing to drop. Nothing is
               opened; the result is freshly shared.
    Source:    as ``truncated_relu``.

    Raises:
        UsageError: As ``truncated_relu``.
    """
    return truncated_relu.function(party, x, 0, window_bits)


def _piecewise_linear_cost(  # noqa: PLR0917 - as the protocol's
    x: RepShare | Pair,
    knots: Sequence[int],
    slopes: Sequence[int],
    first_slope: int,
    offset: int,
    slope_bits: int,
    window_bits: int,
) -> Cost:
    shifted = Pair(np.empty((len(knots), *x.shape), dtype=x.ring.dtype))
    window = SignWindow.of(shifted.size, x.ring, window_bits=window_bits)
    word = x.ring.element_bytes
    dealt = (2 * shifted.size + (x.size if isinstance(x, Pair) else 0)) * word
    return window.cost + Cost(0, (dealt, 0, 0)) + join_cost(x.size, x.ring)


@protocol(cost=_piecewise_linear_cost, source=_ABY2)
def piecewise_linear(  # noqa: PLR0917 - the formula's arguments in its order
    party: Party,
    x: RepShare | Pair,
    knots: Sequence[int],
    slopes: Sequence[int],
    first_slope: int,
    offset: int,
    slope_bits: int,
    window_bits: int,
) -> RepShare:
    """Apply ``first_slope * x + offset + sum over k of slopes[k] * max(x - knots[k], 0)``, nothing truncated.

    The ReLUs of all knots are taken at once, as ``truncated_relu`` does; parties 1 and 2 add up their halves
    before they make the result replicated, so that a knot costs no word between them.

    Shapes:    the result has the shape of x.
    Units:     knots are integers with the fraction bits of x, slopes integers with ``slope_bits``, the offset
               has both; the result's fraction bits are both together. Every x - knots[k] fits
               ``window_bits`` signed bits.
    Cost:      as a ReLU; party 0 sends two words an element and knot, parties 1 and 2 one word an element.
    Security:  semi-honest, one corrupt party of three: the argument of ``truncated_relu``; knots and slopes
               are public.
    Source:    as ``truncated_relu``.

    Raises:
        UsageError: There are no knots or not one slope a knot, or the window does not fit the ring.
    """
    if not knots or len(knots) != len(slopes):
        raise UsageError(f"{len(knots)} knots and {len(slopes)} slopes: expected one slope for each knot")
    x = share_pair.function(party, x) if isinstance(x, Pair) else x
    shape, ring = x.shape, x.ring
    apart = _words_of(knots, ring).reshape(-1, *[1] * len(shape))
    many = (len(knots), *shape)
    shifted = RepShare(np.broadcast_to(x.own, many), np.broadcast_to(x.next, many))
    shifted = shifted.add_public(party.id, np.negative(apart))
    window = SignWindow.of(shifted.size, ring, window_bits=window_bits)
    half = _positive_half(party, shifted, Cut(0, ring, ring), window)
    if half is not None:
        half = np.tensordot(_words_of(slopes, ring), half, axes=1)
        first, constant = _words_of([first_slope, offset], ring)
        # Of x itself, party 1 holds the summands x_1 and x_2, party 2 adds x_0.
        half += first * (x.own + x.next) + constant if party.id == 1 else first * x.next

    # One round: the result under the mask of its components.
    return RepShare(*join(party, WORDS, half, Layout(shape, ring)), x.fraction_bits + slope_bits)


def _words_of(numbers: Sequence[int], ring: Ring) -> RingArray:
    return np.array([number % ring.modulus for number in numbers], dtype=ring.dtype)
