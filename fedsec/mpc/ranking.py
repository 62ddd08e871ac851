"""The indices of the largest values: all pairs are compared at once, and their wins are counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fedsec.errors import UsageError
from fedsec.mpc.costs import Cost, protocol
from fedsec.mpc.party import Layout, Party
from fedsec.mpc.signs import SignMasks, SignWindow, open_sign, planes_to_deal
from fedsec.mpc.two_holders import BITS, WORDS, Pair, known_word
from fedsec.mpc.two_parties import deal, draw_mask, join, join_cost, open_halves, take_dealt
from fedsec.ring import WORD_SIZES, Ring, RingArray
from fedsec.sharing.boolean import unpack_bits
from fedsec.sharing.replicated import RepShare

Indices = npt.NDArray[np.signedinteger[Any]]


def _wins_window(values: int) -> tuple[int, Ring]:
    """Return signed bits for differences of numbers of wins, 0 to values - 1, and the smallest ring."""
    bits = (values - 1).bit_length() + 1
    return bits, Ring(next(size for size in WORD_SIZES if size >= bits))


def _top_k_cost(x: RepShare, k: int, window_bits: int) -> Cost:
    examples, values = x.shape
    pairs = examples * (values * (values - 1) // 2)
    wins_bits, wins_ring = _wins_window(values)
    comparison = SignWindow.of(pairs, x.ring, window_bits=window_bits).cost
    ranks = SignWindow.of(k * examples * values, wins_ring, window_bits=wins_bits)
    dealt = pairs * wins_ring.element_bytes + ranks.count * x.ring.element_bytes
    wins = join_cost(x.size, wins_ring)
    # Party 0's second message waits for nothing.
    ranking = Cost(ranks.cost.rounds - 1, ranks.cost.sent)
    return comparison + Cost(0, (dealt, 0, 0)) + wins + ranking + join_cost(k * examples, x.ring)


@protocol(
    cost=_top_k_cost, source="fedsec: ranks by counting wins of all pairs, after ABY2.0's masked products"
)
def top_k(party: Party, x: RepShare, k: int, window_bits: int) -> RepShare:
    """Take the indices of the k largest values, the largest first; of equal ones the lowest index first.

    Value i wins against j > i if x_i >= x_j, and against j < i if x_i > x_j, so all C values win different
    numbers of comparisons. The one at place t (from 0) wins C - 1 - t of them, so its index is the sum over i
    of i * ([wins_i >= C - 1 - t] - [wins_i >= C - t]).

    Shapes:    x [N, C], result [N, k].
    Units:     differences x_i - x_j fit ``window_bits`` signed bits; indices are integers without fraction
               bits in the ring of x. Fraction bits beyond what matters are truncated before.
    Cost:      5 rounds and the levels of two carry trees; C * (C - 1) / 2 signs of ``window_bits`` bits and
               k * C signs of ceil(log2 C) + 1 bits an example.
    Security:  semi-honest, one corrupt party of three. Nothing about the order is opened: signs and numbers
               of wins are opened to parties 1 and 2 under masks, dealt halves are uniform to them
               (``two_parties``). Party 0 receives nothing.
    Source:    fedsec; signs as in ``is_negative``.

    Raises:
        UsageError: x does not have two axes, k is not 1 to C, C is below 2, or the window does not fit.
    """
    if len(x.shape) != 2 or x.shape[1] < 2 or not 1 <= k <= x.shape[1]:
        raise UsageError(f"the indices of the {k} largest of at least two values a row were asked of {x!r}")
    examples, values = x.shape
    wins_bits, wins_ring = _wins_window(values)

    # All pairs i < j at once: halves of [x_i < x_j], which are added up to numbers of wins.
    first, second = np.triu_indices(values, 1)
    columns = RepShare(x.own.T, x.next.T)
    losses = _sign_halves(party, columns[first] - columns[second], window_bits, wins_ring)

    # One round: the wins as a pair, under masks that party 0 knows.
    mask = draw_mask(party, (values, examples), wins_ring)
    if losses is None:
        wins = np.asarray(mask[0] + mask[1])
    else:
        wins = open_halves(party, WORDS, _wins_half(party, losses, first, second, values), mask[0])

    # Halves of [wins_i < C - 1 - t] for every place t; an index is the sum of what is not below its place.
    if party.id != 0:
        wins = wins - _places(k, values, wins_ring)
    else:
        wins = np.broadcast_to(wins, (k, values, examples))
    below = _sign_halves(party, Pair(wins), wins_bits, x.ring)
    half = None if below is None else _index_half(party, below)

    # One round: the indices under the mask of their components.
    own, following = join(party, WORDS, half, Layout((k, examples), x.ring))
    return RepShare(np.ascontiguousarray(own.T), np.ascontiguousarray(following.T))


def _sign_halves(party: Party, x: RepShare | Pair, window_bits: int, ring: Ring) -> RingArray | None:
    """Return this party's halves of the signs as words 0 and 1 of ``ring``; None at party 0."""
    window = SignWindow.of(x.size, x.ring, window_bits=window_bits)
    masks = SignMasks.draw(party, window)
    known = known_word(party, x)
    if party.id == 0:
        planes, words = planes_to_deal(window, known, masks), masks.words(x.size, ring).reshape(x.shape)
        party.exchange({2: [*deal(party, BITS, [planes]), *deal(party, WORDS, [words])]}, {})
        return None
    dealt, half = take_dealt(party, [window.dealt_layout, Layout(x.shape, ring)])
    opened = unpack_bits(open_sign(party, window, known, dealt, masks), x.size, ring).reshape(x.shape)
    # The sign is e XOR r = e + (1 - 2e) * r.
    half = np.asarray(half - opened * (half + half))
    return half + opened if party.id == 1 else half


def _wins_half(party: Party, losses: RingArray, first: Indices, second: Indices, values: int) -> RingArray:
    """Count: the second of a pair wins where the first loses, and the first where it does not."""
    wins = np.zeros((values, losses.shape[1]), dtype=losses.dtype)
    np.add.at(wins, second, losses)
    np.subtract.at(wins, first, losses)
    if party.id == 1:
        wins += np.arange(values - 1, -1, -1).astype(losses.dtype)[:, None]
    return wins


def _places(k: int, values: int, ring: Ring) -> RingArray:
    """Return the wins of the value at each place: C - 1 - t, shape [k, 1, 1]."""
    return np.arange(values - 1, values - 1 - k, -1).astype(ring.dtype)[:, None, None]


def _index_half(party: Party, below: RingArray) -> RingArray:
    """Return halves of sum i * ([not below place t] - [not below place t - 1]), shape [k, N]."""
    k, values, _examples = below.shape
    indices = np.arange(values).astype(below.dtype)
    sums = np.tensordot(indices, below, axes=([0], [1]))
    half = np.negative(sums)
    half[1:] += sums[: k - 1]
    if party.id == 1:
        half[0] += indices.sum(dtype=below.dtype)
    return half
