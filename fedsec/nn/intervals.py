"""Interval arithmetic: bounds of every value of one example.

A ring wraps silently, so ranges are proven when a model is planned and what could wrap is refused. The
bounds hold for the integers that are computed on: encoded parameters and truncation errors are included.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Pair = tuple[int, int]

_TWO_ROUNDINGS = 2.0**-52
"""Twice float64's relative error of one operation. The error of a sum is at most its number of terms times
one such error of the sum of the terms' SIZES: where terms cancel, it can be any multiple of the result."""


@dataclass(frozen=True, slots=True, eq=False)
class Interval:
    """Lower and upper bound of each value of one example, with a batch axis of one in front."""

    low: Floats
    high: Floats

    @classmethod
    def uniform(cls, shape: tuple[int, ...], low: float, high: float) -> Interval:
        """Return the same bounds for every value."""
        return cls(np.full((1, *shape), low), np.full((1, *shape), high))

    @property
    def size(self) -> float:
        """The largest absolute value."""
        return float(max(np.max(np.abs(self.low)), np.max(np.abs(self.high))))

    @property
    def exponent(self) -> int:
        """The least integer e for which every value is smaller than 2^e in size."""
        return math.frexp(self.size)[1]

    def linear(
        self, kernel: Floats, sizes: Floats, bias: Floats, apply: Callable[[Floats, Floats], Floats]
    ) -> Interval:
        """Bound ``apply(x, kernel) + bias``, where ``apply`` is linear in both.

        A lower bound takes the lower input where the kernel is positive and the upper where it is negative.

        Args:
            kernel: The last axis is that of the outputs.
            sizes: At least the kernel's absolute values; of a kernel that was summed, the sums of them.
            bias: One an output.
            apply: A matrix product or a convolution.
        """
        positive, negative = np.maximum(kernel, 0.0), np.minimum(kernel, 0.0)
        low = apply(self.low, positive) + apply(self.high, negative) + bias
        high = apply(self.high, positive) + apply(self.low, negative) + bias
        # One rounding a term for these sums, one for those within a joint kernel.
        terms = kernel[..., 0].size + 4
        slack = terms * _TWO_ROUNDINGS * (apply(self.sizes, sizes) + np.abs(bias))
        return Interval(low - slack, high + slack)

    def summed(self, add: Callable[[Floats], Floats], terms: int) -> Interval:
        """Bound sums of ``terms`` values each."""
        slack = (terms + 4) * _TWO_ROUNDINGS * add(self.sizes)
        return Interval(add(self.low) - slack, add(self.high) + slack)

    def truncated(self, fraction_bits: int) -> Interval:
        """Bound what a sound truncation leaves: the floor, or one unit less."""
        low: Floats = np.nextafter(self.low - 2.0 ** (1 - fraction_bits), -np.inf)
        return Interval(low, self.high)

    def relu(self) -> Interval:
        """Bound max(0, x)."""
        return Interval(np.maximum(self.low, 0.0), np.maximum(self.high, 0.0))

    def plus(self, other: Interval) -> Interval:
        """Bound the sum with other values."""
        return Interval(_down(self.low + other.low), _up(self.high + other.high))

    def minus(self, other: Interval) -> Interval:
        """Bound the difference with other values."""
        return Interval(_down(self.low - other.high), _up(self.high - other.low))

    def times(self, other: Interval) -> Interval:
        """Bound the product with other values; they broadcast."""
        corners = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        low: Floats = np.minimum(np.minimum(corners[0], corners[1]), np.minimum(corners[2], corners[3]))
        high: Floats = np.maximum(np.maximum(corners[0], corners[1]), np.maximum(corners[2], corners[3]))
        return Interval(_down(low), _up(high))

    def widened(self, margin: Floats | float) -> Interval:
        """Bound values that are at most ``margin`` away from these."""
        return Interval(_down(self.low - margin), _up(self.high + margin))

    def map(self, function: Callable[[Floats], Floats]) -> Interval:
        """Bound the same values in another shape, or among zeros."""
        return Interval(function(self.low), function(self.high))

    @property
    def sizes(self) -> Floats:
        """The largest absolute value at each place."""
        sizes: Floats = np.maximum(np.abs(self.low), np.abs(self.high))
        return sizes


def _down(values: Floats) -> Floats:
    below: Floats = np.nextafter(values, -np.inf)
    return below


def _up(values: Floats) -> Floats:
    above: Floats = np.nextafter(values, np.inf)
    return above


def with_box(kernel: Floats, box: Pair, step: Pair, dilation: Pair = (1, 1)) -> Floats:
    """Return the one kernel that does a box sum and then a dilated ``kernel``.

    Bounds of the joint kernel are tighter: neighbouring box sums share inputs, and what cancels in the
    kernel cancels there.

    Args:
        kernel: Shape [h, w, C, F].
        box: Height and width of the box.
        step: Distance of neighbouring values in the box, along rows and columns.
        dilation: Distance of neighbouring values under the kernel.

    Returns:
        Shape [dilation[0]*(h-1) + 1 + step[0]*(box[0]-1), the same along columns, C, F].
    """
    reach = [dilation[axis] * (kernel.shape[axis] - 1) + 1 for axis in (0, 1)]
    sizes = [reach[axis] + step[axis] * (box[axis] - 1) for axis in (0, 1)]
    joint = np.zeros((*sizes, *kernel.shape[2:]), dtype=np.float64)
    for row in range(0, step[0] * box[0], step[0]):
        for column in range(0, step[1] * box[1], step[1]):
            rows = slice(row, row + reach[0], dilation[0])
            joint[rows, column : column + reach[1] : dilation[1]] += kernel
    return joint
