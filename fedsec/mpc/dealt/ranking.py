"""The places of the largest of some masked values, in two rounds: argmax inside the protocol."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsec.errors import UsageError
from fedsec.mpc.dealt.gates import FIRST, Fields, Gate, Masks, Material, Rounds
from fedsec.mpc.dealt.relu import cut
from fedsec.mpc.dealt.signs import Payload, Signs
from fedsec.mpc.party import Layout
from fedsec.ring import RING64, WORD_SIZES, Ring, RingArray

INDEX_RING = RING64
"""The indices are the answer, which users join in the 64-bit ring."""


class TopKGate(Gate):
    """The indices of the k largest of C values, the largest first; of equal ones the lowest index first.

    A value is taken as T = floor(m / 2^d) + floor(r / 2^d) modulo 2^w, that is x / 2^d rounded down or that
    minus 1, the same in all comparisons. For each pair i < j tables tell whether T_i >= T_j: then i wins,
    else j. The wins of the values, which are 0 to C - 1 in some order, are opened under masks. For each value
    a table over its masked wins holds, for each place t, the index i where the wins are C - 1 - t, and 0
    elsewhere: summed over the values that is the index in place t.
    """

    def __init__(
        self, party_id: int, source: Layout, k: int, *, bits: int, window_bits: int, final: bool = False
    ) -> None:
        """Lay out the pairs and choose tables.

        Args:
            party_id: Id of this party.
            source: Shape [C], and ring of the values.
            k: How many places.
            bits: Number d of low bits to drop from each value.
            window_bits: Number w of bits that hold each T_i - T_j with its sign.
            final: Whether the indices stay in additive shares.

        Raises:
            UsageError: The values are not a list of at least two and at least k; the window does not fit the
                ring, or there are no tables for it.
        """
        if len(source.shape) != 1 or not 1 <= k <= source.shape[0] or source.shape[0] < 2:
            raise UsageError(f"expected a list of two values or more, and {k} of them; got {source.shape}")
        if bits < 0 or bits + window_bits > source.ring.bits:
            raise UsageError(f"{bits} bits and a window of {window_bits} do not fit {source.ring}")
        self._values, self._k = source.shape[0], k
        self._bits, self._window_bits = bits, window_bits
        self._first, self._second = np.triu_indices(self._values, 1)
        self._wins = Ring(next(size for size in WORD_SIZES if size >= (self._values - 1).bit_length()))
        """Wins are counted and opened in these words, of which the tables look at the lowest bits."""
        self._entries = 1 << (self._values - 1).bit_length()
        self._signs = Signs(party_id, len(self._first), window_bits, [Payload(self._wins, 1)])
        places = Layout((k, self._entries, self._values), INDEX_RING)
        fields = self._signs.fields + Fields((places,), (Layout((self._values,), self._wins),))
        super().__init__(party_id, fields, 2, Layout((k,), INDEX_RING), final=final)

    def deal(
        self, r: Sequence[RingArray], shares: Sequence[RingArray], masks: Sequence[Masks]
    ) -> RingArray | None:
        """Deal the tables of the pairs, then those of the places."""
        self._signs.deal(self._differences(r[0]), [None], shares[:-1], masks[0])
        mask = masks[1][0] + masks[1][1]
        places = shares[-1]
        index = np.arange(self._values, dtype=INDEX_RING.dtype)
        opened = np.arange(self._entries, dtype=mask.dtype)
        # The wins that each opened word means: [N, entries, values].
        wins = (opened[:, np.newaxis] - mask[:, np.newaxis]) & mask.dtype.type(self._entries - 1)
        for t in range(self._k):
            entry = (wins == self._values - 1 - t) * index
            np.subtract(entry, places[:, t], out=places[:, t])
        return None if self.final else masks[2][0] + masks[2][1]

    def prepare(
        self, r: Sequence[RingArray], shares: Sequence[RingArray], masks: Sequence[RingArray]
    ) -> tuple[Material, RingArray | None]:
        """Keep tables and masks; nothing is left to do."""
        return (*shares, *masks), None if self.final else masks[2]

    def run(self, m: Sequence[RingArray], material: Material) -> Rounds:
        """Compare all pairs, open digits, open wins, look up places, open the indices."""
        tables = len(self._signs.fields.dealt)
        shares, (places, delta, mask, *_) = material[:tables], material[tables:]
        mine = self._signs.digits(self._differences(m[0]), shares, delta)

        # One round: the digits of all pairs under their masks.
        theirs = yield mine

        wins = self._share_of_wins(self._signs.keep(mine, theirs, shares)[0])
        wins += mask
        # One round: the wins under their masks.
        theirs = yield wins

        opened = (wins + theirs) & wins.dtype.type(self._entries - 1)
        found = np.take_along_axis(places, opened.astype(np.intp)[:, np.newaxis, np.newaxis], axis=2)
        share = found[:, :, 0].sum(axis=2, dtype=INDEX_RING.dtype)
        # One round: the indices under their masks, unless they stay in shares.
        return (yield from self.opened(share, material))

    def _differences(self, words: RingArray) -> RingArray:
        """Return the windows of T_i - T_j for all pairs, of masked values or of masks: [N, pairs]."""
        window = cut(words, self._bits, self._window_bits)
        # What is above the window is not looked at.
        return window[:, self._first] - window[:, self._second]

    def _share_of_wins(self, not_less: RingArray) -> RingArray:
        """Return this evaluator's share of the wins [N, C] from that of T_i >= T_j."""
        against = np.zeros((len(not_less), self._values, self._values), dtype=not_less.dtype)
        against[:, self._first, self._second] = not_less
        against[:, self._second, self._first] -= not_less
        wins: RingArray = against.sum(axis=2, dtype=not_less.dtype)
        if self.party_id == FIRST:
            # A value wins against each before it, less what was taken off.
            wins += np.arange(self._values, dtype=not_less.dtype)
        return wins
