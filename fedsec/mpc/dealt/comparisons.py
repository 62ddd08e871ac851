"""Gates on several masked values as protocols of their own: products, maxima, functions, places.

As in ``fedsec.mpc.dealt.protocols`` the dealer's bytes and its one round are those of the preparation.
"""

from __future__ import annotations

from fedsec.mpc.costs import Cost, protocol
from fedsec.mpc.dealt.gates import DEALER
from fedsec.mpc.dealt.maximum import LargestGate, MaximumGate, windows_of
from fedsec.mpc.dealt.piecewise import Pieces, PiecewiseGate
from fedsec.mpc.dealt.products import MultiplyGate
from fedsec.mpc.dealt.protocols import run_alone
from fedsec.mpc.dealt.ranking import TopKGate, largest_of_last_axis
from fedsec.mpc.party import Layout, Party
from fedsec.ring import Ring
from fedsec.sharing.replicated import RepShare

Sizes = tuple[int, int]

_MASKS = "masks fixed ahead as in ASTRA (Chaudhari, Choudhury, Patra, Suresh 2019)"
_TABLES = "fedsec, with one-time tables (Ishai, Kushilevitz, Meldgaard, Orlandi, Paskin-Cherniavsky 2013)"


def _source(x: RepShare) -> Layout:
    return Layout(x.shape[1:], x.ring)


def _multiply_cost(x: RepShare, y: RepShare) -> Cost:
    return MultiplyGate(DEALER, _source(x), _source(y)).cost(x.shape[0])


@protocol(cost=_multiply_cost, source=_MASKS)
def dealt_multiply(party: Party, x: RepShare, y: RepShare) -> RepShare:
    """Multiply two secrets element by element: ``[z] = [x * y]``.

    Shapes:    x [N, ...] and y [N, ...]; what follows N broadcasts as in numpy.
    Units:     ring elements; fraction bits add, nothing is truncated here.
    Cost:      prepared, 1 round: party 0 sends one word an element of z. Online, 1 round: parties 1 and 2
               send one word an element.
    Security:  semi-honest, one corrupt party of three. Party 0 receives nothing. Party 2 receives r_x * r_y
               minus a stream of parties 0 and 1. Online an evaluator receives the other's additive share of
               z minus the other's part of the mask of z, a stream that it does not have and that is used
               for this alone.
    Source:    masks fixed ahead as in ASTRA.

    Raises:
        UsageError: The shapes do not broadcast, or the rings differ.
    """
    gate = MultiplyGate(party.id, _source(x), _source(y))
    return run_alone(party, gate, [x, y], x.fraction_bits + y.fraction_bits)


def _maximum_cost(x: RepShare, y: RepShare, window_bits: int) -> Cost:
    return MaximumGate(DEALER, _source(x), window_bits=window_bits).cost(x.shape[0])


@protocol(cost=_maximum_cost, source=_TABLES)
def dealt_maximum(party: Party, x: RepShare, y: RepShare, window_bits: int) -> RepShare:
    """Take the larger of two secrets, element by element: ``[y + max(0, x - y)]``.

    Shapes:    x, y and z alike, [N, ...].
    Units:     -2^(w-1) <= x - y < 2^(w-1) with w = ``window_bits`` is required; nothing is truncated.
    Cost:      prepared, 1 round: party 0 sends tables and payloads, about 110 bytes an element at w = 14 in
               the 32-bit ring. Online, 2 rounds: parties 1 and 2 send n bits, then one word an element, with
               n about w / 5.
    Security:  semi-honest, one corrupt party of three: as ``dealt_relu``, on the difference of the masked
               values, whose mask is the difference of the masks. The result has a fresh mask.
    Source:    fedsec; see ``fedsec.mpc.dealt.signs``.

    Raises:
        UsageError: The window does not fit.
    """
    gate = MaximumGate(party.id, _source(x), window_bits=window_bits)
    return run_alone(party, gate, [x, y], x.fraction_bits)


def _max_pool_gate(party_id: int, x: RepShare, pool: Sizes, strides: Sizes, window_bits: int) -> LargestGate:
    return LargestGate(party_id, _source(x), windows_of(pool, strides), window_bits=window_bits)


def _max_pool_cost(x: RepShare, pool: Sizes, strides: Sizes, window_bits: int) -> Cost:
    return _max_pool_gate(DEALER, x, pool, strides, window_bits).cost(x.shape[0])


@protocol(cost=_max_pool_cost, source=_TABLES)
def dealt_max_pool(party: Party, x: RepShare, pool: Sizes, strides: Sizes, window_bits: int) -> RepShare:
    """Take the largest value of every window that lies wholly inside secret images, as Keras' MaxPooling2D.

    Shapes:    x [N, H, W, C], z [N, (H - pool[0]) // strides[0] + 1, (W - pool[1]) // strides[1] + 1, C].
    Units:     any two values of a window differ by less than 2^(w-1), w = ``window_bits``.
    Cost:      prepared, 1 round. Online, 2 rounds a level: ceil(log2(h * w)) levels for windows that do not
               overlap; for those that do, ceil(log2(h)) + ceil(log2(w)).
    Security:  semi-honest, one corrupt party of three: ``dealt_maximum`` again and again, each time on
               streams of its own. Which values meet is public.
    Source:    fedsec; see ``fedsec.mpc.dealt.signs``.

    Raises:
        UsageError: The window of bits does not fit, or one of pixels has one pixel only.
    """
    return run_alone(party, _max_pool_gate(party.id, x, pool, strides, window_bits), [x], x.fraction_bits)


def _reduce_max_cost(x: RepShare, window_bits: int) -> Cost:
    return largest_of_last_axis(DEALER, _source(x), window_bits=window_bits).cost(x.shape[0])


@protocol(cost=_reduce_max_cost, source=_TABLES)
def dealt_reduce_max(party: Party, x: RepShare, window_bits: int) -> RepShare:
    """Take the largest value of the last axis, which stays with a length of one.

    Shapes:    x [N, ..., C], z [N, ..., 1].
    Units:     any two values of a row differ by less than 2^(w-1), w = ``window_bits``.
    Cost:      prepared, 1 round. Online, 3 rounds for up to 16 values, of which all pairs are compared at
               once; for more, 2 * ceil(log2(C)) rounds of a tree.
    Security:  semi-honest, one corrupt party of three: digits and wins are opened as in ``dealt_top_k``, the
               result under a fresh mask; the dealt tables are shares, minus streams of parties 0 and 1, of
               functions of masks. A tree is that of ``dealt_max_pool``.
    Source:    fedsec; see ``fedsec.mpc.dealt.ranking``.

    Raises:
        UsageError: The window does not fit, or the axis has one value only.
    """
    gate = largest_of_last_axis(party.id, _source(x), window_bits=window_bits)
    return run_alone(party, gate, [x], x.fraction_bits)


def _piecewise_gate(
    party_id: int, x: RepShare, pieces: Pieces, *, window_bits: int, bits: int, ring: Ring | None
) -> PiecewiseGate:
    return PiecewiseGate(
        party_id, _source(x), pieces, window_bits=window_bits, bits=bits, ring=ring or x.ring
    )


def _piecewise_cost(
    x: RepShare, pieces: Pieces, *, slope_bits: int, window_bits: int, bits: int, ring: Ring | None = None
) -> Cost:
    return _piecewise_gate(DEALER, x, pieces, window_bits=window_bits, bits=bits, ring=ring).cost(x.shape[0])


@protocol(cost=_piecewise_cost, source=_TABLES)
def dealt_piecewise_linear(
    party: Party,
    x: RepShare,
    pieces: Pieces,
    *,
    slope_bits: int,
    window_bits: int,
    bits: int,
    ring: Ring | None = None,
) -> RepShare:
    """Apply a public piecewise linear function to a secret, then truncate: floor(y / 2^bits) or one less.

    Shapes:    z as x, [N, ...].
    Units:     every x - knot fits ``window_bits`` signed bits; the function's value fits the ring of x with
               two bits to spare. Its fraction bits are those of x plus ``slope_bits``, minus ``bits``; it is
               in ``ring`` (that of x if not given).
    Cost:      prepared, 1 round: party 0 sends tables and payloads for each knot and element. Online, 3
               rounds, 2 if ``bits`` is 0: parties 1 and 2 send n bits a knot and element, then two words an
               element.
    Security:  semi-honest, one corrupt party of three: the digits of all knots are opened as those of
               ``dealt_relu``, each under a delta of its own; then the sum under a fresh mask, as in
               ``dealt_multiply``; then ``dealt_truncate``.
    Source:    fedsec; see ``fedsec.mpc.dealt.signs``.

    Raises:
        UsageError: The window does not fit.
    """
    gate = _piecewise_gate(party.id, x, pieces, window_bits=window_bits, bits=bits, ring=ring)
    return run_alone(party, gate, [x], x.fraction_bits + slope_bits - bits)


def _top_k_cost(x: RepShare, k: int, bits: int, window_bits: int) -> Cost:
    return TopKGate(DEALER, _source(x), k, bits=bits, window_bits=window_bits).cost(x.shape[0])


@protocol(cost=_top_k_cost, source=_TABLES)
def dealt_top_k(party: Party, x: RepShare, k: int, bits: int, window_bits: int) -> RepShare:
    """Take the indices of the k largest values, the largest first; of equal ones the lowest index first.

    Shapes:    x [N, C], z [N, k].
    Units:     values are truncated by ``bits`` first, each to the floor or one less; differences of the
               truncated values fit ``window_bits`` signed bits. An index is an integer of the 64-bit ring.
    Cost:      prepared, 1 round: party 0 sends a sign table for each of C (C - 1) / 2 pairs and k tables of
               up to 2 C words for each value. Online, 3 rounds: parties 1 and 2 send n bits a pair, a small
               word a value, a word an index.
    Security:  semi-honest, one corrupt party of three. Digits of all pairs are opened as those of
               ``dealt_relu``. The wins are opened under masks of both evaluators' streams: an evaluator
               learns the wins plus a number that it does not know half of. The dealt tables of places are
               shares, minus streams of parties 0 and 1, of functions of those masks. The indices are opened
               under fresh masks. No value, no win and no index is seen by anyone.
    Source:    fedsec; see ``fedsec.mpc.dealt.ranking``.

    Raises:
        UsageError: There are not at least k values, or two; or the window does not fit.
    """
    gate = TopKGate(party.id, _source(x), k, bits=bits, window_bits=window_bits)
    return run_alone(party, gate, [x], 0)
