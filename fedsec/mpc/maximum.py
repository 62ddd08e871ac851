"""Largest values of secrets: of two, of windows over images, of the last axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsec.errors import UsageError
from fedsec.mpc.activation import relu
from fedsec.mpc.costs import Cost, protocol
from fedsec.mpc.party import Party
from fedsec.sharing.replicated import RepShare

_SOURCE = "fedsec: max(a, b) = b + ReLU(a - b), in a tree"


def _maximum_cost(a: RepShare, b: RepShare, window_bits: int) -> Cost:
    return relu.cost(a, window_bits)


@protocol(cost=_maximum_cost, source=_SOURCE)
def maximum(party: Party, a: RepShare, b: RepShare, window_bits: int) -> RepShare:
    """Take the larger of two secrets, element by element: ``[b + max(a - b, 0)]``.

    Shapes:    a, b and the result have one shape.
    Units:     a - b fits ``window_bits`` signed bits; fraction bits are those of a and b.
    Cost:      as ``relu``.
    Security:  semi-honest, one corrupt party of three: ``relu``, and sums.
    Source:    fedsec.

    Raises:
        UsageError: The two are of different kinds, or the window does not fit the ring.
    """
    return b + relu.function(party, a - b, window_bits)


def _tree_cost(values: int, size: int, window_bits: int, x: RepShare) -> Cost:
    """Return the cost of the largest of ``values`` secrets of ``size`` elements each."""
    cost = Cost.each(0, 0)
    while values > 1:
        pairs = values // 2
        words = np.empty(pairs * size, dtype=x.ring.dtype)
        level = relu.cost(RepShare(words, words), window_bits)
        # Party 0 is a level ahead: its messages take no round but the first.
        cost += level if cost.rounds == 0 else Cost(level.rounds - 1, level.sent)
        values -= pairs
    return cost


def _largest(party: Party, parts: Sequence[RepShare], window_bits: int) -> RepShare:
    """Return the largest of secrets of one shape; a level of a tree halves their number."""
    parts = list(parts)
    while len(parts) > 1:
        pairs = len(parts) // 2
        larger = maximum.function(
            party, _stack(parts[0 : 2 * pairs : 2]), _stack(parts[1 : 2 * pairs : 2]), window_bits
        )
        parts = [*(larger[i] for i in range(pairs)), *parts[2 * pairs :]]
    return parts[0]


def _stack(parts: Sequence[RepShare]) -> RepShare:
    own, following = np.stack([part.own for part in parts]), np.stack([part.next for part in parts])
    return RepShare(own, following, parts[0].fraction_bits)


def _reduce_max_cost(x: RepShare, window_bits: int) -> Cost:
    return _tree_cost(x.shape[-1], x.size // x.shape[-1], window_bits, x)


@protocol(cost=_reduce_max_cost, source=_SOURCE)
def reduce_max(party: Party, x: RepShare, window_bits: int) -> RepShare:
    """Take the largest value of the last axis, which stays with a length of one.

    Shapes:    x [..., C], result [..., 1].
    Units:     differences of values along the axis fit ``window_bits`` signed bits.
    Cost:      ceil(log2(C)) times ``maximum``; party 0's messages wait for nothing.
    Security:  semi-honest, one corrupt party of three: ``maximum``.
    Source:    fedsec.

    Raises:
        UsageError: There is no axis or no value, or the window does not fit the ring.
    """
    if not x.shape or x.shape[-1] < 1:
        raise UsageError(f"the last axis of {x!r} has no value, so no largest one")
    largest = _largest(party, [x[..., i] for i in range(x.shape[-1])], window_bits)
    return largest.reshape(*x.shape[:-1], 1)


def _max_pool_cost(x: RepShare, pool: tuple[int, int], strides: tuple[int, int], window_bits: int) -> Cost:
    number, height, width, channels = x.shape
    rows, columns = (height - pool[0]) // strides[0] + 1, (width - pool[1]) // strides[1] + 1
    along_rows = _tree_cost(pool[0], number * rows * width * channels, window_bits, x)
    along_columns = _tree_cost(pool[1], number * rows * columns * channels, window_bits, x)
    if min(pool) == 1:
        return along_rows + along_columns
    return along_rows + Cost(along_columns.rounds - 1, along_columns.sent)


@protocol(cost=_max_pool_cost, source=_SOURCE)
def max_pool(
    party: Party, x: RepShare, pool: tuple[int, int], strides: tuple[int, int], window_bits: int
) -> RepShare:
    """Take the largest value of every window that lies wholly inside the image.

    First along the rows of a window, then along its columns: what overlapping windows share is compared once.

    Shapes:    x [N, H, W, C], result [N, (H - pool[0]) // strides[0] + 1, (W - pool[1]) // strides[1] + 1,
               C]. The caller pads.
    Units:     differences of two values of a window fit ``window_bits`` signed bits.
    Cost:      ceil(log2(pool[0])) + ceil(log2(pool[1])) times ``maximum``; party 0's messages wait for
               nothing.
    Security:  semi-honest, one corrupt party of three: ``maximum``.
    Source:    fedsec.

    Raises:
        UsageError: The shape is not that of images, a window does not fit, or ``window_bits`` not the ring.
    """
    if len(x.shape) != 4 or min(*pool, *strides) < 1 or x.shape[1] < pool[0] or x.shape[2] < pool[1]:
        raise UsageError(f"windows of {pool} at distances {strides} do not fit images of shape {x.shape}")
    for axis in (0, 1):
        places = (x.shape[1 + axis] - pool[axis]) // strides[axis] + 1
        reach = (places - 1) * strides[axis] + 1
        starts = [slice(first, first + reach, strides[axis]) for first in range(pool[axis])]
        x = _largest(party, [x[:, start] if axis == 0 else x[:, :, start] for start in starts], window_bits)
    return x
