"""The steps of a plan that compare, truncate or multiply secrets: each costs messages.

A window of w bits means that the value, truncated, lies in [-2^(w-1), 2^(w-1)) for every allowed input;
before a sign that ignores g bits, in [-2^(w-1) + 2^g, 2^(w-1)).
"""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
import numpy as np

from fedsec.errors import UsageError
from fedsec.mpc.randomised_response import ResponseLaw
from fedsec.nn.base import (
    NO_MARGINS,
    Margins2,
    RingBits,
    Several,
    Sizes2,
    SomeBits,
    Unary,
    Value,
    Window,
    Word,
)
from fedsec.nn.windows import positions

WIDEST_COMPARISON = 42
"""Bits of the widest sign that dealt mode has tables for."""

WIDEST_ORDER = 30
"""Bits of the widest differences that the order of many values is taken from."""


class _Truncating(Unary, frozen=True, kw_only=True):
    """What drops the lowest bits of its input and may give its result in another ring."""

    bits: SomeBits
    window_bits: Window
    ring_bits: RingBits = 64

    @property
    def _room(self) -> int:
        """Bits that the input takes."""
        return self.bits + self.window_bits

    def follow(self, values: tuple[Value, ...]) -> Value:
        """Return the truncated value, which fits the window."""
        (x,) = values
        if self.bits > x.fraction_bits:
            raise self.refuse(f"drops {self.bits} bits of {x.fraction_bits} fraction bits")
        if self.window_bits > self.ring_bits - 1 or self._room > x.ring_bits:
            raise self.refuse(
                f"a window of {self.window_bits} bits after {self.bits} dropped ones is too wide from"
                f" {x.ring_bits} to {self.ring_bits} bits"
            )
        left = x.fraction_bits - self.bits
        return Value(self.output_shape, left, self.ring_bits, math.ldexp(1.0, self.window_bits - 1 - left))


class Truncate(_Truncating, frozen=True, kw_only=True, tag="truncate"):
    """T = floor(x / 2^bits), or one less."""

    @property
    def _room(self) -> int:
        # It moves what it gets to positive numbers first, which takes another bit.
        return super()._room + (1 if self.bits else 0)


class Relu(_Truncating, frozen=True, kw_only=True, tag="relu"):
    """T = floor(x / 2^bits) or one less where that is positive, else 0.

    The sign may ignore the lowest ``ignore_bits`` bits of T: a T in [0, 2^ignore_bits) may come out as 0. A
    negative T never comes out as T.
    """

    ignore_bits: SomeBits = 0

    def _check(self) -> None:
        super()._check()
        if self.ignore_bits > self.window_bits - 2:
            raise self.refuse(f"a sign that ignores {self.ignore_bits} of {self.window_bits} bits")
        _check_comparison(self, self.window_bits - self.ignore_bits)


class MaxPool2D(Unary, frozen=True, kw_only=True, tag="max_pool2d"):
    """The largest value of every window; what lies outside of the image is not looked at.

    Margins are smaller than the pool, so that every window has a value of the image's edge: repeating the
    edge outwards (``windows.repeat_edge``) changes no maximum. Differences of two values of a window fit
    ``window_bits``.
    """

    pool: Sizes2
    strides: Sizes2
    padding: Margins2 = NO_MARGINS
    window_bits: Window

    def _check(self) -> None:
        self._expect_rank(3)
        if any(max(self.padding[axis]) >= self.pool[axis] for axis in (0, 1)):
            raise self.refuse(f"margins {self.padding} leave windows of {self.pool} without any value")
        padded = self._padded(self.padding)
        height, width = (positions(padded[i], self.pool[i], self.strides[i]) for i in (0, 1))
        self._expect_output((height, width, self.input_shape[2]))

    @property
    def largest_array(self) -> int:
        """Ring elements of the padded image, or of all windows."""
        return max(
            math.prod(self._padded(self.padding)) * self.input_shape[2],
            math.prod(self.output_shape) * math.prod(self.pool),
        )

    def follow(self, values: tuple[Value, ...]) -> Value:
        """Return a value of the same kind."""
        return _compared(self, self.window_bits, values[0])._replace(shape=self.output_shape)


class ReduceMax(Unary, frozen=True, kw_only=True, tag="reduce_max"):
    """The largest value of the last axis, which stays with a length of one."""

    window_bits: Window

    def _check(self) -> None:
        self._expect_output((*self.input_shape[:-1], 1))

    def follow(self, values: tuple[Value, ...]) -> Value:
        """Return a value of the same kind."""
        return _compared(self, self.window_bits, values[0])._replace(shape=self.output_shape)


class Multiply(Several, frozen=True, kw_only=True, tag="multiply"):
    """Product of two secrets, broadcast as numpy does. Fraction bits add."""

    def _check(self) -> None:
        if len(self.inputs) != 2:
            raise self.refuse(f"multiplies two values, got {len(self.inputs)}")
        try:
            shape = np.broadcast_shapes(*self.input_shapes)
        except ValueError as error:
            raise self.refuse(f"{self.input_shapes} do not broadcast") from error
        self._expect_output(shape)

    def follow(self, values: tuple[Value, ...]) -> Value:
        """Return the product; the bounds multiply."""
        self._expect_alike(values, bits=False)
        x, y = values
        bits = x.fraction_bits + y.fraction_bits
        return Value(self.output_shape, bits, x.ring_bits, x.bound * y.bound)


class PiecewiseLinear(Unary, frozen=True, kw_only=True, tag="piecewise_linear"):
    """y = first_slope * x + offset + sum_k slopes[k] * max(0, x - knots[k]), then ``bits`` bits dropped.

    Attributes:
        window_bits: Every x - knots[k] fits it.
        knots: Integers with the input's fraction bits.
        slopes: Change of slope at each knot, integers with ``slope_bits`` fraction bits.
        first_slope: Slope below all knots, with ``slope_bits`` fraction bits.
        offset: Integer with the input's fraction bits and ``slope_bits``.
        slope_bits: Fraction bits of the slopes.
        bits: Dropped from the sum.
        ring_bits: Ring of the result.
        bound: A power of two above the largest size of the result.
        error: Largest distance of y, before bits are dropped, from the function that it stands for.
    """

    window_bits: Window
    knots: Annotated[tuple[Word, ...], msgspec.Meta(min_length=1, max_length=256)]
    slopes: Annotated[tuple[Word, ...], msgspec.Meta(min_length=1, max_length=256)]
    first_slope: Word
    offset: Word
    slope_bits: SomeBits
    bits: SomeBits
    ring_bits: RingBits = 64
    bound: float
    error: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.0

    def _check(self) -> None:
        super()._check()
        if len(self.knots) != len(self.slopes) or list(self.knots) != sorted(set(self.knots)):
            raise self.refuse(
                f"{len(self.knots)} knots and {len(self.slopes)} slopes; expected a slope for each of rising"
                " knots"
            )

    @property
    def largest_array(self) -> int:
        """Ring elements of the values, once for each knot."""
        return math.prod(self.input_shape) * len(self.knots)

    def follow(self, values: tuple[Value, ...]) -> Value:
        """Return the function's value."""
        (x,) = values
        summed = x.fraction_bits + self.slope_bits
        _compared(self, self.window_bits, x)
        if self.bits > summed or self.bound * 2.0**summed > 2.0 ** (x.ring_bits - 2):
            raise self.refuse(
                f"drops {self.bits} of {summed} fraction bits from values below {self.bound:g} in a"
                f" {x.ring_bits}-bit ring"
            )
        if self.bits == 0 and self.ring_bits != x.ring_bits:
            raise self.refuse("drops no bits, and so its result stays in its argument's ring")
        return Value(self.output_shape, summed - self.bits, self.ring_bits, self.bound)


class TopK(Unary, frozen=True, kw_only=True, tag="top_k"):
    """The indices of the k largest values, the largest first; of equal ones the lowest index first.

    Values are truncated by ``bits`` first; differences of truncated values fit ``window_bits``. An index is
    an integer, in the 64-bit ring.
    """

    k: Annotated[int, msgspec.Meta(ge=1, le=1 << 10)]
    bits: SomeBits
    window_bits: Window

    def _check(self) -> None:
        self._expect_rank(1)
        if not 2 <= self.input_shape[0] <= 1 << 10 or self.k > self.input_shape[0]:
            raise self.refuse(f"the {self.k} largest of {self.input_shape[0]} values; 2 to 1024 are ordered")
        self._expect_output((self.k,))

    @property
    def largest_array(self) -> int:
        """Ring elements of one value for each pair."""
        return self.input_shape[0] ** 2

    def follow(self, values: tuple[Value, ...]) -> Value:
        """Return integers below the number of values."""
        (x,) = values
        _check_comparison(self, self.window_bits, WIDEST_ORDER)
        if self.bits > x.fraction_bits or self.bits + self.window_bits > x.ring_bits:
            raise self.refuse(
                f"drops {self.bits} bits and keeps {self.window_bits} of {x.fraction_bits} fraction bits in a"
                f" {x.ring_bits}-bit ring"
            )
        return Value(self.output_shape, 0, 64, float(1 << (self.input_shape[0] - 1).bit_length()))


class RandomisedResponse(Unary, frozen=True, kw_only=True, tag="randomised_response"):
    """A label, shifted modulo the number of classes by what nobody knows; see ``ResponseLaw``.

    Attributes:
        classes: Number of labels.
        table_bits: The law's table has 2^table_bits entries.
        others: How many of them hold each shift but 0.
    """

    classes: Annotated[int, msgspec.Meta(ge=2, le=1 << 10)]
    table_bits: Annotated[int, msgspec.Meta(ge=1, le=16)]
    others: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]

    @property
    def law(self) -> ResponseLaw:
        """How often each shift is drawn."""
        return ResponseLaw(self.classes, self.table_bits, self.others)

    def _check(self) -> None:
        self._expect_output((1,))
        try:
            _ = self.law
        except UsageError as error:
            raise self.refuse(str(error)) from error

    @property
    def largest_array(self) -> int:
        """Entries of the table."""
        return 1 << self.table_bits

    def follow(self, values: tuple[Value, ...]) -> Value:
        """Return another label."""
        (x,) = values
        if x.shape != (1,) or x.fraction_bits or x.ring_bits != 64:
            raise self.refuse("answers one label, an integer of the 64-bit ring")
        return x


def _check_comparison(step: Unary, window_bits: int, widest: int = WIDEST_COMPARISON) -> None:
    if window_bits > widest:
        raise step.refuse(f"a comparison of {window_bits} bits is too wide; at most {widest} are compared")


def _compared(step: Unary, window_bits: int, x: Value) -> Value:
    _check_comparison(step, window_bits)
    if window_bits > x.ring_bits - 1:
        raise step.refuse(f"a window of {window_bits} bits is too wide for a {x.ring_bits}-bit ring")
    return x


Gate = Truncate | Relu | MaxPool2D | ReduceMax | Multiply | PiecewiseLinear | TopK | RandomisedResponse
