"""The steps of a plan that are linear: with secret kernels, or with public constants and so local.

The steps that compare, truncate or multiply are in ``fedsec.nn.gates``. Shapes are those of one example,
without the batch.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, NamedTuple

import msgspec

from fedsec.errors import UsageError
from fedsec.nn.windows import positions

Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
Margin = Annotated[int, msgspec.Meta(ge=0, le=1 << 10)]
Bits = Annotated[int, msgspec.Meta(ge=1, le=64)]
SomeBits = Annotated[int, msgspec.Meta(ge=0, le=63)]
Window = Annotated[int, msgspec.Meta(ge=2, le=63)]
RingBits = Literal[32, 64]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Shape = Annotated[tuple[Size, ...], msgspec.Meta(min_length=1, max_length=3)]
Sizes2 = tuple[Size, Size]
Margins2 = tuple[tuple[Margin, Margin], tuple[Margin, Margin]]
Number = Annotated[int, msgspec.Meta(ge=0, le=1 << 10)]
Word = Annotated[int, msgspec.Meta(ge=-(1 << 62), le=1 << 62)]

NO_MARGINS: Margins2 = ((0, 0), (0, 0))


class Value(NamedTuple):
    """What is public about a value between two steps."""

    shape: tuple[int, ...]
    fraction_bits: int
    ring_bits: int
    """The ring in which dealt mode holds it. Plain mode holds every value in the session's ring."""

    bound: float
    """A power of two above the largest size that the real value can have."""


def power_of_two(size: float) -> float:
    """Return the least power of two that is not below ``size``."""
    mantissa, exponent = math.frexp(size)
    return math.ldexp(1.0, exponent - 1 if mantissa == 0.5 else exponent)


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every step has.

    Attributes:
        name: The layer's name, for people.
        inputs: Numbers of the values that go in: 0 is the plan's input, i + 1 what step i gives.
        output_shape: Of the value that comes out.
    """

    name: Text
    inputs: Annotated[tuple[Number, ...], msgspec.Meta(min_length=1, max_length=64)]
    output_shape: Shape

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the inputs."""
        raise NotImplementedError

    @property
    def largest_array(self) -> int:
        """Ring elements of the largest array that this step makes of one example."""
        return max(math.prod(shape) for shape in (*self.shapes, self.output_shape))

    def follow(self, values: tuple[Value, ...]) -> Value:
        """Return what comes out of these inputs.

        Raises:
            UsageError: Fraction bits, rings or bounds of the inputs do not fit the step.
        """
        raise NotImplementedError

    def refuse(self, why: str) -> UsageError:
        """Return the error for a step that does not follow from its inputs or within itself."""
        return UsageError(f"plan, step {self.name!r}: {why}")

    def _expect_output(self, expected: tuple[int, ...]) -> None:
        if len(expected) == 0 or min(expected) < 1 or self.output_shape != expected:
            raise self.refuse(
                f"from {' and '.join(str(list(shape)) for shape in self.shapes)} comes {list(expected)},"
                f" the plan says {list(self.output_shape)}"
            )

    def _expect_alike(self, values: tuple[Value, ...], *, bits: bool = True) -> None:
        rings = {value.ring_bits for value in values}
        fractions = {value.fraction_bits for value in values}
        if len(rings) > 1 or (bits and len(fractions) > 1):
            raise self.refuse(
                f"its inputs are in rings of {sorted(rings)} bits with {sorted(fractions)} fraction bits,"
                " expected the same of all"
            )


class Unary(Step, frozen=True, kw_only=True):
    """A step with one input."""

    input_shape: Shape

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of the input."""
        return (self.input_shape,)

    def __post_init__(self) -> None:
        """Refuse shapes that do not follow from each other."""
        if len(self.inputs) != 1:
            raise self.refuse(f"takes one value, got {len(self.inputs)}")
        self._check()

    def _check(self) -> None:
        self._expect_output(self.input_shape)

    def _expect_rank(self, rank: int) -> None:
        if len(self.input_shape) != rank:
            raise self.refuse(f"expected {rank} axes, got {list(self.input_shape)}")

    def _padded(self, padding: Margins2) -> tuple[int, int]:
        height, width = (self.input_shape[axis] + sum(padding[axis]) for axis in (0, 1))
        return height, width


class Several(Step, frozen=True, kw_only=True):
    """A step with two inputs or more."""

    input_shapes: Annotated[tuple[Shape, ...], msgspec.Meta(min_length=2, max_length=64)]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the inputs."""
        return self.input_shapes

    def __post_init__(self) -> None:
        """Refuse shapes that do not follow from each other."""
        if len(self.inputs) != len(self.input_shapes):
            raise self.refuse(f"{len(self.inputs)} inputs with {len(self.input_shapes)} shapes")
        self._check()

    def _check(self) -> None:
        raise NotImplementedError


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
