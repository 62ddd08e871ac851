"""The largest of a few masked values and their places, in two rounds and an opening: all pairs at once."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import numpy.typing as npt

from fedsec.errors import UsageError
from fedsec.mpc.dealt.gates import FIRST, Fields, Gate, Masks, Material, Rounds, flat
from fedsec.mpc.dealt.maximum import LargestGate, check_window, last_axis
from fedsec.mpc.dealt.relu import cut
from fedsec.mpc.dealt.signs import Payload, Signs
from fedsec.mpc.party import Layout
from fedsec.ring import RING64, WORD_SIZES, Ring, RingArray

INDEX_RING = RING64
"""The indices are the answer, which users join in the 64-bit ring."""

MOST_AT_ONCE = 16
"""Most values of which all pairs are compared for the largest alone; a tree of pairs takes fewer bytes, but
two rounds a level."""


class Contest:
    """Compares all pairs of C values, in some rows: how many of the others does a value beat?

    A value is taken as T = floor(m / 2^d) + floor(r / 2^d) modulo 2^w, that is x / 2^d rounded down or that
    minus 1, the same in all comparisons. For each pair i < j tables tell whether T_i >= T_j: then i wins,
    else j. So the wins of a row are 0 to C - 1 in some order, and of equal values the first one wins. They
    are opened under masks, which nobody but the dealer knows: it deals tables over the opened words.

    Attributes:
        fields: What one image needs; the last mask is that of the wins.
        entries: Values that an opened word can take, a power of two from C up.
    """

    def __init__(self, party_id: int, rows: int, values: int, *, bits: int, window_bits: int) -> None:
        """Lay out the pairs and choose tables.

        Args:
            party_id: Id of this party.
            rows: Number of rows an image.
            values: Values of a row.
            bits: Number d of low bits to drop from each value.
            window_bits: Number w of bits that hold each T_i - T_j with its sign.

        Raises:
            UsageError: There are no tables for the window.
        """
        self._party_id, self._shape = party_id, (rows, values)
        self._bits, self._window_bits = bits, window_bits
        self._first, self._second = np.triu_indices(values, 1)
        self.entries = 1 << (values - 1).bit_length()
        ring = Ring(next(size for size in WORD_SIZES if size >= (values - 1).bit_length()))
        self._signs = Signs(party_id, rows * len(self._first), window_bits, [Payload(ring, 1)])
        self.fields = self._signs.fields + Fields(masks=(Layout(self._shape, ring),))

    def deal(self, r: RingArray, shares: Sequence[RingArray], masks: Sequence[Masks]) -> RingArray:
        """Deal the tables of the pairs; return the wins that each opened word means, [N, entries, rows, C].

        Args:
            r: Masks of the values.
            shares: Evaluator 1's shares of the fields; are overwritten by evaluator 2's.
            masks: Both parts of each mask.
        """
        self._signs.deal(self._differences(r), [None], shares, masks[0])
        mask = masks[1][0] + masks[1][1]
        opened = np.arange(self.entries, dtype=mask.dtype).reshape(-1, 1, 1)
        wins: RingArray = (opened - mask[:, np.newaxis]) & mask.dtype.type(self.entries - 1)
        return wins

    def play(self, m: RingArray, shares: Sequence[RingArray], delta: RingArray, mask: RingArray) -> Rounds:
        """Compare all pairs and open the wins under their masks: words below ``entries``, [N, rows, C].

        Args:
            m: The masked values.
            shares: This evaluator's shares of the fields.
            delta: Its part of the mask of the digits.
            mask: Its part of the mask of the wins.
        """
        mine = self._signs.digits(self._differences(m), shares, delta)

        # One round: the digits of all pairs under their masks.
        theirs = yield mine

        not_less = self._signs.keep(mine, theirs, shares)[0]
        wins = self._share_of_wins(not_less.reshape(len(m), self._shape[0], -1))
        wins += mask
        # One round: the wins under their masks.
        theirs = yield wins

        return (wins + theirs) & wins.dtype.type(self.entries - 1)

    def _differences(self, words: RingArray) -> RingArray:
        """Return the windows of T_i - T_j for all pairs, of masked values or of masks: [N, rows * pairs]."""
        window = cut(flat(words), self._bits, self._window_bits).reshape(-1, *self._shape)
        # What is above the window is not looked at.
        return flat(window[..., self._first] - window[..., self._second])

    def _share_of_wins(self, not_less: RingArray) -> RingArray:
        """Return this evaluator's share of the wins [N, rows, C] from that of T_i >= T_j."""
        rows, values = self._shape
        against = np.zeros((len(not_less), rows, values, values), dtype=not_less.dtype)
        against[..., self._first, self._second] = not_less
        against[..., self._second, self._first] -= not_less
        wins: RingArray = against.sum(axis=-1, dtype=not_less.dtype)
        if self._party_id == FIRST:
            # A value wins against each before it, less what was taken off.
            wins += np.arange(values, dtype=not_less.dtype)
        return wins


class TopKGate(Gate):
    """The indices of the k largest of C values, the largest first; of equal ones the lowest index first.

    For each value a table over its opened word holds, for each place t, its index if its wins are C - 1 - t,
    and 0 otherwise: summed over the values that is the index in place t.
    """

    def __init__(
        self, party_id: int, source: Layout, k: int, *, bits: int, window_bits: int, final: bool = False
    ) -> None:
        """Lay out the tables.

        Args:
            party_id: Id of this party.
            source: Shape [C], and ring of the values.
            k: How many places.
            bits: Number of low bits to drop from each value.
            window_bits: Number of bits that hold each difference of two truncated values with its sign.
            final: Whether the indices stay in additive shares.

        Raises:
            UsageError: The values are not a list of at least two and at least k; the window does not fit the
                ring, or there are no tables for it.
        """
        if len(source.shape) != 1 or not 1 <= k <= source.shape[0] or source.shape[0] < 2:
            raise UsageError(f"expected a list of two values or more, and {k} of them; got {source.shape}")
        if bits < 0:
            raise UsageError(f"expected a number of bits to drop, got {bits}")
        check_window(source, bits + window_bits)
        (self._values,), self._k = source.shape, k
        self._contest = Contest(party_id, 1, self._values, bits=bits, window_bits=window_bits)
        places = Layout((k, self._contest.entries, self._values), INDEX_RING)
        fields = self._contest.fields + Fields((places,))
        super().__init__(party_id, fields, 2, Layout((k,), INDEX_RING), final=final)

    def deal(
        self, r: Sequence[RingArray], shares: Sequence[RingArray], masks: Sequence[Masks]
    ) -> RingArray | None:
        """Deal the tables of the pairs, then those of the places."""
        wins = self._contest.deal(r[0], shares[:-1], masks)[:, :, 0]
        places, index = shares[-1], np.arange(self._values, dtype=INDEX_RING.dtype)
        for t in range(self._k):
            entry = (wins == self._values - 1 - t) * index
            np.subtract(entry, places[:, t], out=places[:, t])
        return self.result_mask(masks)

    def run(self, m: Sequence[RingArray], material: Material) -> Rounds:
        """Compare all pairs, look up places, open the indices."""
        tables = len(self._contest.fields.dealt)
        shares, (places, delta, mask, *_) = material[:tables], material[tables:]
        opened = yield from self._contest.play(m[0], shares, delta, mask)
        found = np.take_along_axis(places, _index(opened), axis=2)
        share = found[:, :, 0].sum(axis=2, dtype=INDEX_RING.dtype)
        # One round: the indices under their masks, unless they stay in shares.
        return (yield from self.opened(share, material))


class LargestAtOnceGate(Gate):
    """The largest value of the last axis, which stays with a length of one, in three rounds.

    With b = 1 for the one value that wins against all others and 0 for the rest, the largest is the sum of
    b * x = b * m + b * r: for each value tables over its opened word hold b and b * r.
    """

    def __init__(self, party_id: int, source: Layout, *, window_bits: int, final: bool = False) -> None:
        """Lay out the tables.

        Args:
            party_id: Id of this party.
            source: Shape without the batch, and ring.
            window_bits: Number of bits that hold any difference of two values of a row with its sign.
            final: Whether the result stays in additive shares.

        Raises:
            UsageError: There is one value only; the window does not fit the ring, or there are no tables for
                it.
        """
        *rows, self._values = source.shape
        if self._values < 2:
            raise UsageError("the largest of one value is that value; expected two candidates or more")
        check_window(source, window_bits)
        self._rows = prod(rows)
        self._contest = Contest(party_id, self._rows, self._values, bits=0, window_bits=window_bits)
        tables = Layout((2, self._contest.entries, self._rows, self._values), source.ring)
        fields = self._contest.fields + Fields((tables,))
        super().__init__(party_id, fields, 2, Layout((*rows, 1), source.ring), final=final)

    def deal(
        self, r: Sequence[RingArray], shares: Sequence[RingArray], masks: Sequence[Masks]
    ) -> RingArray | None:
        """Deal the tables of the pairs, then those of the largest."""
        largest = self._contest.deal(r[0], shares[:-1], masks) == self._values - 1
        tables = shares[-1]
        np.subtract(largest, tables[:, 0], out=tables[:, 0], dtype=self.ring.dtype)
        np.subtract(largest * self._in_rows(r[0])[:, np.newaxis], tables[:, 1], out=tables[:, 1])
        return self.result_mask(masks)

    def run(self, m: Sequence[RingArray], material: Material) -> Rounds:
        """Compare all pairs, choose, open the result."""
        pairs = len(self._contest.fields.dealt)
        shares, (tables, delta, mask, *_) = material[:pairs], material[pairs:]
        opened = yield from self._contest.play(m[0], shares, delta, mask)
        found = np.take_along_axis(tables, _index(opened[:, np.newaxis]), axis=2)
        chosen = found[:, 0, 0] * self._in_rows(m[0]) + found[:, 1, 0]
        share: RingArray = chosen.sum(axis=-1, dtype=self.ring.dtype)
        # One round: the result under its mask, unless it stays in shares.
        return (yield from self.opened(share.reshape(len(share), *self.shape), material))

    def _in_rows(self, words: RingArray) -> RingArray:
        return words.reshape(len(words), self._rows, self._values)


def largest_of_last_axis(party_id: int, source: Layout, *, window_bits: int, final: bool = False) -> Gate:
    """Return the gate for the largest value of the last axis: of a few at once, of many by a tree.

    Arguments and errors are those of ``LargestAtOnceGate``.
    """
    if source.shape[-1] <= MOST_AT_ONCE:
        return LargestAtOnceGate(party_id, source, window_bits=window_bits, final=final)
    return LargestGate(party_id, source, (last_axis,), window_bits=window_bits, final=final)


def _index(opened: RingArray) -> npt.NDArray[np.intp]:
    """Return opened words [N, ..., rows, C] as an index into tables [N, ..., entries, rows, C]."""
    return np.expand_dims(opened.astype(np.intp), -3)
