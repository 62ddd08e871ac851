"""Maxima of masked values: of pairs, and of many by a tree of pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fedsec.errors import UsageError
from fedsec.mpc.dealt.gates import FIRST, Fields, Gate, Masks, Material, Rounds, count_of, flat
from fedsec.mpc.dealt.signs import Payload, Signs
from fedsec.mpc.party import Layout
from fedsec.ring import RingArray

Gather = Callable[[RingArray], RingArray]
"""Brings [N, *shape] into the form [N, candidates, *shape of the maximum]: the same for masked values as for
masks."""


class MaximumGate(Gate):
    """max(x, y) = y + relu(x - y), in two rounds.

    The difference is not truncated and stays in its ring, so that what is kept of it is keep * m + keep * r:
    the payloads of its sign are 1 and its mask.
    """

    def __init__(self, party_id: int, source: Layout, *, window_bits: int, final: bool = False) -> None:
        """Choose tables.

        Args:
            party_id: Id of this party.
            source: Shape without the batch, and ring, of x and of y.
            window_bits: Number of bits that hold x - y with its sign.
            final: Whether the result stays in additive shares.

        Raises:
            UsageError: The window does not fit the ring, or there are no tables for it.
        """
        check_window(source, window_bits)
        payloads = [Payload(source.ring, 1), Payload(source.ring)]
        self._signs = Signs(party_id, count_of(source.shape), window_bits, payloads)
        super().__init__(party_id, self._signs.fields, 1, source, final=final)

    @property
    def kept(self) -> int:
        """Number of arrays of the material."""
        return len(self._signs.fields.dealt) + 2

    def deal(
        self, r: Sequence[RingArray], shares: Sequence[RingArray], masks: Sequence[Masks]
    ) -> RingArray | None:
        """Deal the tables of the difference's sign."""
        difference = flat(r[0] - r[1])
        self._signs.deal(difference, [None, difference], shares, masks[0])
        return self.result_mask(masks)

    def prepare(
        self, r: Sequence[RingArray], shares: Sequence[RingArray], masks: Sequence[RingArray]
    ) -> tuple[Material, RingArray | None]:
        """Keep the tables, the mask of the digits, and that of y minus that of the result."""
        if self.final:
            return (*shares, masks[0], r[1]), None
        return (*shares, masks[0], r[1] - masks[1]), masks[1]

    def run(self, m: Sequence[RingArray], material: Material) -> Rounds:
        """Look up, open the digits, choose, add y, open the result."""
        *shares, delta, offset = material
        difference = flat(m[0] - m[1])
        mine = self._signs.digits(difference, shares, delta)

        # One round: the digits under their mask.
        theirs = yield mine

        keep, kept_mask = self._signs.keep(mine, theirs, shares)
        keep *= difference
        keep += kept_mask
        share = keep.reshape(offset.shape)
        share += offset
        if self.party_id == FIRST:
            share += m[1]
        if self.final:
            return share
        # One round: the result under its mask, which is part of the offset.
        theirs = yield share
        return theirs + share


class _Level(NamedTuple):
    """One level of a tree.

    Attributes:
        gather: Brings the values into the form of candidates, at the lowest level of a tree.
        gate: Joins the pairs.
        last: Whether it joins the last two candidates of its tree, which are then no candidates any more.
    """

    gather: Gather | None
    gate: MaximumGate
    last: bool


class LargestGate(Gate):
    """The largest of many values, by trees of pairs: two rounds a level.

    A tree joins its candidates in pairs, all pairs of a level at once; an odd one goes up a level as it is.
    """

    def __init__(
        self,
        party_id: int,
        source: Layout,
        gathers: Sequence[Gather],
        *,
        window_bits: int,
        final: bool = False,
    ) -> None:
        """Lay out the levels.

        Args:
            party_id: Id of this party.
            source: Shape without the batch, and ring.
            gathers: A tree each: brings what the tree before gave into the form of candidates, two or more.
            window_bits: Number of bits that hold any difference of two candidates with its sign.
            final: Whether the result stays in additive shares.

        Raises:
            UsageError: There is nothing to compare; or as ``MaximumGate``.
        """
        shape, plan = source.shape, []
        for gather in gathers:
            candidates, *rest = gather(np.empty((1, *shape), dtype=source.ring.dtype)).shape[1:]
            shape, first = tuple(rest), True
            while candidates > 1:
                last = candidates == 2
                pairs = Layout(shape if last else (candidates // 2, *shape), source.ring)
                plan.append((gather if first else None, pairs, last))
                candidates -= candidates // 2
                first = False
            if first:
                raise UsageError("the largest of one value is that value; expected two candidates or more")
        if not plan:
            raise UsageError("expected a gather for each tree of pairs, got none")
        self._levels = [
            _Level(
                gather,
                MaximumGate(party_id, pairs, window_bits=window_bits, final=final and i == len(plan) - 1),
                last,
            )
            for i, (gather, pairs, last) in enumerate(plan)
        ]
        fields = sum((level.gate.fields for level in self._levels), Fields())
        rounds = sum(level.gate.rounds for level in self._levels)
        # The levels bring the masks and the rounds of their results: nothing is to be added for this one.
        super().__init__(party_id, fields, rounds, Layout(shape, source.ring), final=True)
        self.final = final

    def deal(
        self, r: Sequence[RingArray], shares: Sequence[RingArray], masks: Sequence[Masks]
    ) -> RingArray | None:
        """Deal for all levels."""
        value, some_shares, some_masks = r[0], iter(shares), iter(masks)
        for level in self._levels:
            x, y, odd = _pairs(value, level)
            fields = level.gate.fields
            joined = level.gate.deal(
                (x, y),
                list(islice(some_shares, len(fields.dealt))),
                list(islice(some_masks, len(fields.masks))),
            )
            if joined is None:
                return None
            value = _above(joined, odd, level)
        return value

    def prepare(
        self, r: Sequence[RingArray], shares: Sequence[RingArray], masks: Sequence[RingArray]
    ) -> tuple[Material, RingArray | None]:
        """Prepare all levels."""
        value, some_shares, some_masks = r[0], iter(shares), iter(masks)
        kept: list[RingArray] = []
        for level in self._levels:
            x, y, odd = _pairs(value, level)
            fields = level.gate.fields
            material, joined = level.gate.prepare(
                (x, y),
                list(islice(some_shares, len(fields.dealt))),
                list(islice(some_masks, len(fields.masks))),
            )
            kept.extend(material)
            if joined is None:
                return tuple(kept), None
            value = _above(joined, odd, level)
        return tuple(kept), value

    def run(self, m: Sequence[RingArray], material: Material) -> Rounds:
        """Climb the trees."""
        value, some = m[0], iter(material)
        for level in self._levels:
            x, y, odd = _pairs(value, level)
            joined = yield from level.gate.run((x, y), tuple(islice(some, level.gate.kept)))
            value = _above(joined, odd, level)
        return value


def windows_of(pool: tuple[int, int], strides: tuple[int, int]) -> tuple[Gather, ...]:
    """Return the trees of a two-dimensional maximum over windows of [N, H, W, C].

    Where windows overlap, the maximum down the columns is taken first and serves all windows of its rows: of
    2 x 2 values at strides of 1 this takes two comparisons a result in place of three. Where they do not, one
    tree over the whole window has the fewest levels.

    Args:
        pool: Height and width of a window; one of more than one value.
        strides: Distance of neighbouring windows.
    """
    apart = all(stride >= size for size, stride in zip(pool, strides, strict=True))
    if apart or 1 in pool:
        return (partial(_windows, pool=pool, strides=strides),)
    down = partial(_windows, pool=(pool[0], 1), strides=(strides[0], 1))
    across = partial(_windows, pool=(1, pool[1]), strides=(1, strides[1]))
    return (down, across)


def last_axis(words: RingArray) -> RingArray:
    """Gather the last axis of [N, ..., C] as candidates; it stays with a length of one."""
    return np.moveaxis(words, -1, 1)[..., np.newaxis]


def check_window(source: Layout, window_bits: int) -> None:
    """Refuse a window that does not fit the ring.

    Raises:
        UsageError: It does not.
    """
    if window_bits > source.ring.bits:
        raise UsageError(f"a window of {window_bits} bits does not fit {source.ring}")


def _windows(images: RingArray, pool: tuple[int, int], strides: tuple[int, int]) -> RingArray:
    found = sliding_window_view(images, pool, axis=(1, 2))[:, :: strides[0], :: strides[1]]
    # [N, rows, columns, C, h, w] to [N, h * w, rows, columns, C].
    moved = np.moveaxis(found, (4, 5), (1, 2))
    return moved.reshape(len(images), pool[0] * pool[1], *moved.shape[3:])


def _pairs(value: RingArray, level: _Level) -> tuple[RingArray, RingArray, RingArray]:
    candidates = level.gather(value) if level.gather else value
    if level.last:
        return candidates[:, 0], candidates[:, 1], candidates[:, 2:]
    half = candidates.shape[1] // 2
    return candidates[:, :half], candidates[:, half : 2 * half], candidates[:, 2 * half :]


def _above(joined: RingArray, odd: RingArray, level: _Level) -> RingArray:
    if level.last:
        return joined
    return np.concatenate((joined, odd), axis=1) if odd.shape[1] else joined
