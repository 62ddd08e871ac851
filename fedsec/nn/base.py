"""What all steps of a plan have, and what is public about the values between them."""

from __future__ import annotations

import math
import sys
from typing import Annotated, Literal, NamedTuple

import msgspec

from fedsec.errors import UsageError

Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
Margin = Annotated[int, msgspec.Meta(ge=0, le=1 << 10)]
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
    """Return the least power of two that is not below ``size``; infinity where a float holds none."""
    mantissa, exponent = math.frexp(size)
    exponent -= mantissa == 0.5
    return math.ldexp(1.0, exponent) if exponent < sys.float_info.max_exp else math.inf


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
