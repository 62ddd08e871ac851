"""The steps of a plan that are linear: with secret kernels, or with public constants and so local.

The steps that compare, truncate or multiply are in ``fedsec.nn.gates``. Shapes are those of one example,
without the batch.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec

from fedsec.nn.base import (
    NO_MARGINS,
    Margins2,
    Several,
    Size,
    Sizes2,
    SomeBits,
    Unary,
    Value,
    Word,
    power_of_two,
)
from fedsec.nn.windows import positions

# Linear, with a secret kernel and bias.


class Linear(Unary, frozen=True, kw_only=True):
    """A linear map whose kernel and bias are secret. The bias has the product's fraction bits."""

    weight_fraction_bits: SomeBits
    bound: float
    """A power of two above the largest size that an output can have."""

    def follow(self, values: tuple[Value, ...]) -> Value:
        """Return the product: fraction bits add, the ring stays."""
        (x,) = values
        return Value(self.output_shape, x.fraction_bits + self.weight_fraction_bits, x.ring_bits, self.bound)


class Conv2D(Linear, frozen=True, kw_only=True, tag="conv2d"):
    """Pad with zeros, sum a box around every place, convolve, add the bias.

    An average pooling after a convolution is the same linear map as a box sum before it, with longer
    strides and the kernel divided by the pool's size: the box sum is free on shares. A depthwise convolution
    has as many groups as channels.
    """

    kernel_shape: tuple[Size, Size, Size, Size]
    """Height, width, channels of a group, filters."""

    strides: Sizes2 = (1, 1)
    padding: Margins2 = NO_MARGINS
    """Zeros: (top, bottom), (left, right)."""

    dilation: Sizes2 = (1, 1)
    groups: Size = 1
    box: Sizes2 = (1, 1)
    box_step: Sizes2 = (1, 1)
    """Distance of neighbouring values in the box."""

    def _check(self) -> None:
        self._expect_rank(3)
        height, width = (
            positions(
                self._padded(self.padding)[axis] - self.box_step[axis] * (self.box[axis] - 1),
                self.dilation[axis] * (self.kernel_shape[axis] - 1) + 1,
                self.strides[axis],
            )
            for axis in (0, 1)
        )
        if self.kernel_shape[2] * self.groups != self.input_shape[2] or self.kernel_shape[3] % self.groups:
            raise self.refuse(
                f"kernel {list(self.kernel_shape)} in {self.groups} groups on {list(self.input_shape)}"
            )
        self._expect_output((height, width, self.kernel_shape[3]))

    @property
    def largest_array(self) -> int:
        """Ring elements of the padded image, or of the patches under the kernel, one for each position."""
        image = math.prod(self._padded(self.padding)) * self.input_shape[2]
        patches = math.prod(self.output_shape[:2]) * math.prod(self.kernel_shape[:2]) * self.input_shape[2]
        return max(image, patches, math.prod(self.output_shape))


class Dense(Linear, frozen=True, kw_only=True, tag="dense"):
    """Multiply the last axis by a matrix, add the bias."""

    def _check(self) -> None:
        self._expect_output((*self.input_shape[:-1], self.output_shape[-1]))

    @property
    def kernel_shape(self) -> tuple[int, int]:
        """Inputs and outputs."""
        return (self.input_shape[-1], self.output_shape[-1])


# Local: linear with public constants, no message.


class SumPool2D(Unary, frozen=True, kw_only=True, tag="sum_pool2d"):
    """Sum over windows, zeros around: an average pooling whose division is done elsewhere."""

    pool: Sizes2
    strides: Sizes2
    padding: Margins2 = NO_MARGINS

    def _check(self) -> None:
        self._expect_rank(3)
        padded = self._padded(self.padding)
        height, width = (positions(padded[i], self.pool[i], self.strides[i]) for i in (0, 1))
        self._expect_output((height, width, self.input_shape[2]))

    @property
    def largest_array(self) -> int:
        """Ring elements of the padded image."""
        return math.prod(self._padded(self.padding)) * self.input_shape[2]

    def follow(self, values: tuple[Value, ...]) -> Value:
        """Return the sums: as many values as a window has."""
        (x,) = values
        return x._replace(shape=self.output_shape, bound=power_of_two(x.bound * math.prod(self.pool)))


class Reshape(Unary, frozen=True, kw_only=True, tag="reshape"):
    """The same values in C order in another shape."""

    def _check(self) -> None:
        if math.prod(self.input_shape) != math.prod(self.output_shape):
            raise self.refuse(f"{list(self.input_shape)} cannot be {list(self.output_shape)}")

    def follow(self, values: tuple[Value, ...]) -> Value:
        """Return the same value in the new shape."""
        return values[0]._replace(shape=self.output_shape)


class Pad2D(Unary, frozen=True, kw_only=True, tag="pad2d"):
    """Zeros around every image."""

    padding: Margins2

    def _check(self) -> None:
        self._expect_rank(3)
        self._expect_output((*self._padded(self.padding), self.input_shape[2]))

    def follow(self, values: tuple[Value, ...]) -> Value:
        """Return the same value in the new shape."""
        return values[0]._replace(shape=self.output_shape)


class Add(Several, frozen=True, kw_only=True, tag="add"):
    """Sum of values, each with a sign. Axes of length one are repeated, but for those of the first value."""

    signs: Annotated[tuple[Literal[-1, 1], ...], msgspec.Meta(min_length=2, max_length=64)]

    def _check(self) -> None:
        if len(self.signs) != len(self.inputs):
            raise self.refuse(f"{len(self.inputs)} inputs with {len(self.signs)} signs")
        self._expect_output(self.input_shapes[0])
        for shape in self.input_shapes:
            fits = len(shape) == len(self.output_shape)
            if not fits or any(a not in {1, b} for a, b in zip(shape, self.output_shape, strict=True)):
                raise self.refuse(f"adds {list(shape)} to {list(self.output_shape)}")

    def follow(self, values: tuple[Value, ...]) -> Value:
        """Return the sum; the bounds add."""
        self._expect_alike(values)
        # A sum of numbers below powers of two is below the sum of the powers.
        bound = power_of_two(sum(value.bound for value in values))
        return values[0]._replace(bound=bound)


class Concatenate(Several, frozen=True, kw_only=True, tag="concatenate"):
    """Values one after the other along an axis, which is counted without the batch."""

    axis: Annotated[int, msgspec.Meta(ge=0, le=2)]

    def _check(self) -> None:
        first = self.input_shapes[0]
        rests = {shape[: self.axis] + shape[self.axis + 1 :] for shape in self.input_shapes}
        if self.axis >= len(first) or len(rests) > 1 or len({len(s) for s in self.input_shapes}) > 1:
            raise self.refuse(
                f"{', '.join(str(list(s)) for s in self.input_shapes)} do not fit along axis {self.axis}"
            )
        along = sum(shape[self.axis] for shape in self.input_shapes)
        self._expect_output((*first[: self.axis], along, *first[self.axis + 1 :]))

    def follow(self, values: tuple[Value, ...]) -> Value:
        """Return all of them; the largest bound counts."""
        self._expect_alike(values)
        return values[0]._replace(shape=self.output_shape, bound=max(value.bound for value in values))


class Scale(Unary, frozen=True, kw_only=True, tag="scale"):
    """Multiply by public integers: one, one for each place of the last axis, or one a value in C order."""

    factors: Annotated[tuple[Word, ...], msgspec.Meta(min_length=1, max_length=1 << 16)]
    fraction_bits: SomeBits = 0
    """Fraction bits of the factors; the value gets as many more."""

    relative_error: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.0
    """Largest relative distance of a factor from the real number it stands for."""

    def _check(self) -> None:
        if len(self.factors) not in {1, self.input_shape[-1], math.prod(self.input_shape)}:
            raise self.refuse(f"{len(self.factors)} factors for {list(self.input_shape)}")
        self._expect_output(self.input_shape)

    def follow(self, values: tuple[Value, ...]) -> Value:
        """Return the scaled value."""
        (x,) = values
        largest = max(1, *(abs(factor) for factor in self.factors))
        bound = x.bound * power_of_two(largest) * 2.0**-self.fraction_bits
        return x._replace(fraction_bits=x.fraction_bits + self.fraction_bits, bound=bound)


class AddConstant(Unary, frozen=True, kw_only=True, tag="add_constant"):
    """Add one public number, encoded with the value's fraction bits, to every value."""

    constant: float

    def follow(self, values: tuple[Value, ...]) -> Value:
        """Return the sum."""
        (x,) = values
        if not math.isfinite(self.constant):
            raise self.refuse("the constant is not finite")
        # One unit for the constant's rounding.
        size = abs(self.constant) + 2.0**-x.fraction_bits
        return x._replace(bound=power_of_two(x.bound + size))


class ReduceSum(Unary, frozen=True, kw_only=True, tag="reduce_sum"):
    """The sum of the last axis, which stays with a length of one."""

    def _check(self) -> None:
        self._expect_output((*self.input_shape[:-1], 1))

    def follow(self, values: tuple[Value, ...]) -> Value:
        """Return the sum."""
        (x,) = values
        return x._replace(shape=self.output_shape, bound=power_of_two(x.bound * self.input_shape[-1]))
