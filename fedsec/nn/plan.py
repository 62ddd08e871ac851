"""The plan: everything public about a network that is served in shares, and nothing of its parameters.

A plan fixes shapes, fraction bits, windows of the sign and the order of steps, so that the owner, the
parties and the user compute on the same terms. It travels and is kept as JSON.

What a plan reveals: architecture, layer names, and for each layer a power of two above the largest value
that its parameters allow (the window of a ReLU follows from it).
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from fedsec.errors import UsageError
from fedsec.nn.windows import positions

VERSION = 1

MAX_ELEMENTS = 1 << 24
"""Of one kernel, and of the largest array that a step makes of one example (``Plan.largest_array``), patches
and padding included. It is no bound of memory: a batch has many examples, a step holds a few such arrays at
once, and a plan has up to 256 steps with a kernel each. Who runs a plan bounds the batch."""

Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
Margin = Annotated[int, msgspec.Meta(ge=0, le=1 << 10)]
Bits = Annotated[int, msgspec.Meta(ge=1, le=64)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Shape = Annotated[tuple[Size, ...], msgspec.Meta(min_length=1, max_length=3)]
Sizes2 = tuple[Size, Size]


class WeightSpec(NamedTuple):
    """Shape and fraction bits of one array of parameters."""

    shape: tuple[int, ...]
    fraction_bits: int


class _Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every step has. Shapes are those of one example, without the batch."""

    name: Text
    input_shape: Shape
    output_shape: Shape

    @property
    def largest_array(self) -> int:
        """Ring elements of the largest array that this step makes of one example."""
        return max(math.prod(self.input_shape), math.prod(self.output_shape))

    def _expect_output(self, expected: tuple[int, ...]) -> None:
        if min(expected) < 1 or self.output_shape != expected:
            raise UsageError(
                f"plan, step {self.name!r}: from input {list(self.input_shape)} comes {list(expected)},"
                f" the plan says {list(self.output_shape)}"
            )

    def _expect_rank(self, rank: int) -> None:
        if len(self.input_shape) != rank:
            raise UsageError(f"plan, step {self.name!r}: expected {rank} axes, got {list(self.input_shape)}")


class Conv2D(_Step, frozen=True, kw_only=True, tag="conv2d"):
    """Pad with zeros, sum a box around every place, convolve, add the bias.

    An average pooling after a convolution is the same linear map as a box sum before it, with longer
    strides and the kernel divided by the pool's size: the box sum is free on shares.
    """

    kernel_shape: tuple[Size, Size, Size, Size]
    stride: Size
    """Of rows and columns alike."""

    padding: tuple[tuple[Margin, Margin], tuple[Margin, Margin]] = ((0, 0), (0, 0))
    box: Sizes2 = (1, 1)
    box_step: Size = 1
    weight_fraction_bits: Bits
    bound: float
    """A power of two above the largest size that an output can have."""

    def __post_init__(self) -> None:
        """Refuse shapes that do not follow from each other."""
        self._expect_rank(3)
        height, width = (
            positions(
                self.input_shape[axis] + sum(self.padding[axis]) - self.box_step * (self.box[axis] - 1),
                self.kernel_shape[axis],
                self.stride,
            )
            for axis in (0, 1)
        )
        if self.kernel_shape[2] != self.input_shape[2]:
            raise UsageError(f"plan, step {self.name!r}: kernel {self.kernel_shape} on {self.input_shape}")
        self._expect_output((height, width, self.kernel_shape[3]))

    @property
    def largest_array(self) -> int:
        """Ring elements of the padded image, or of the patches under the kernel, one for each position."""
        padded = [size + sum(margin) for size, margin in zip(self.input_shape, self.padding, strict=False)]
        image = math.prod(padded) * self.input_shape[2]
        patches = math.prod(self.output_shape[:2]) * math.prod(self.kernel_shape[:3])
        return max(image, patches, math.prod(self.output_shape))


class Dense(_Step, frozen=True, kw_only=True, tag="dense"):
    """Multiply by a matrix, add the bias."""

    weight_fraction_bits: Bits
    bound: float
    """As in ``Conv2D``."""

    def __post_init__(self) -> None:
        """Refuse shapes that do not follow from each other."""
        self._expect_rank(1)
        self._expect_output(self.output_shape[:1])

    @property
    def kernel_shape(self) -> tuple[int, int]:
        """Inputs and outputs."""
        return (self.input_shape[0], self.output_shape[0])


class SumPool2D(_Step, frozen=True, kw_only=True, tag="sum_pool2d"):
    """Sum over windows: an average pooling whose division is folded into the next kernel."""

    pool: Sizes2
    strides: Sizes2

    def __post_init__(self) -> None:
        """Refuse shapes that do not follow from each other."""
        self._expect_rank(3)
        height, width = (positions(self.input_shape[i], self.pool[i], self.strides[i]) for i in (0, 1))
        self._expect_output((height, width, self.input_shape[2]))


class Truncate(_Step, frozen=True, kw_only=True, tag="truncate"):
    """Drop the fraction bits that a product has too many."""

    bits: Bits

    def __post_init__(self) -> None:
        """Refuse shapes that do not follow from each other."""
        self._expect_output(self.input_shape)


class Relu(_Step, frozen=True, kw_only=True, tag="relu"):
    """max(0, x), with the sign taken on the lowest ``window_bits`` bits, which hold every possible value."""

    window_bits: Bits

    def __post_init__(self) -> None:
        """Refuse shapes that do not follow from each other."""
        self._expect_output(self.input_shape)


class Flatten(_Step, frozen=True, kw_only=True, tag="flatten"):
    """An image as one list, in C order."""

    def __post_init__(self) -> None:
        """Refuse shapes that do not follow from each other."""
        self._expect_output((math.prod(self.input_shape),))


Step = Conv2D | Dense | SumPool2D | Truncate | Relu | Flatten
Linear = Conv2D | Dense


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A network as steps over shares. Equal plans have equal digests.

    Raises:
        UsageError: On making or reading one whose shapes or fraction bits do not follow from each other.
    """

    version: int = VERSION
    name: Text
    input_shape: Shape
    output_shape: Shape
    input_low: float
    input_high: float
    ring_bits: Annotated[int, msgspec.Meta(ge=64, le=64)] = 64
    fraction_bits: Annotated[int, msgspec.Meta(ge=4, le=24)]
    """Of inputs and of every value between two steps; a product has more until it is truncated."""

    layers: Annotated[tuple[Step, ...], msgspec.Meta(min_length=1, max_length=256)]

    def __post_init__(self) -> None:
        """Refuse a chain that breaks."""
        if self.version != VERSION:
            raise UsageError(f"plan {self.name!r} has version {self.version}, this fedsec reads {VERSION}")
        if not (math.isfinite(self.input_low) and self.input_low < self.input_high < math.inf):
            raise UsageError(f"plan {self.name!r}: inputs from {self.input_low} to {self.input_high}")
        _follow(self)

    @property
    def weight_specs(self) -> tuple[WeightSpec, ...]:
        """Shape and fraction bits of each array of parameters: kernel and bias of each linear step."""
        specs = []
        for step in self.layers:
            if isinstance(step, Conv2D | Dense):
                specs.append(WeightSpec(step.kernel_shape, step.weight_fraction_bits))
                # A bias is added to products before they are truncated.
                bits = self.fraction_bits + step.weight_fraction_bits
                specs.append(WeightSpec(step.output_shape[-1:], bits))
        return tuple(specs)

    @property
    def output_fraction_bits(self) -> int:
        """Fraction bits of the answers; more than ``fraction_bits`` if the last product is not truncated."""
        return _follow(self)

    @property
    def largest_array(self) -> int:
        """Ring elements of the largest array that a step makes of one example; a batch has as many times."""
        return max(step.largest_array for step in self.layers)

    def digest(self) -> str:
        """Return the SHA-256 of the plan's JSON in hexadecimal."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def to_json(self) -> bytes:
        """Return the plan as JSON; the same plan gives the same bytes."""
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, text: bytes | str) -> Plan:
        """Read a plan.

        Raises:
            UsageError: If the text is no plan; the message names the place.
        """
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"this is no plan of fedsec: {error}") from error

    def save(self, path: Path) -> None:
        """Write the plan as indented JSON."""
        path.write_bytes(msgspec.json.format(self.to_json(), indent=2))

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a plan from a file.

        Raises:
            UsageError: If the file cannot be read or holds no plan.
        """
        try:
            return cls.from_json(path.read_bytes())
        except OSError as error:
            raise UsageError(f"cannot read the plan {path}: {error.strerror}") from error


def _follow(plan: Plan) -> int:
    """Follow shapes and fraction bits through the plan; returns those of the output."""
    shape, bits = plan.input_shape, plan.fraction_bits
    for step in plan.layers:
        if step.input_shape != shape or step.largest_array > MAX_ELEMENTS:
            raise UsageError(
                f"plan, step {step.name!r}: takes {list(step.input_shape)}, gives {list(step.output_shape)}"
                f" and makes {step.largest_array} values of one example; expected to take {list(shape)} and"
                f" to make at most {MAX_ELEMENTS}"
            )
        bits = _follow_bits(plan, step, bits)
        shape = step.output_shape
    if shape != plan.output_shape:
        raise UsageError(f"plan {plan.name!r} ends with {list(shape)}, not with {list(plan.output_shape)}")
    return bits


def _follow_bits(plan: Plan, step: Step, bits: int) -> int:
    if isinstance(step, Truncate):
        bits -= step.bits
        if bits != plan.fraction_bits:
            raise UsageError(
                f"plan, step {step.name!r} leaves {bits} fraction bits, not {plan.fraction_bits}"
            )
    elif isinstance(step, Conv2D | Dense):
        if bits != plan.fraction_bits or math.prod(step.kernel_shape) > MAX_ELEMENTS:
            raise UsageError(f"plan, step {step.name!r}: input not truncated, or a kernel that is too large")
        bits += step.weight_fraction_bits
        if bits >= plan.ring_bits:
            raise UsageError(f"plan, step {step.name!r}: {bits} fraction bits in {plan.ring_bits}-bit words")
    elif isinstance(step, Relu) and step.window_bits > plan.ring_bits - 1:
        raise UsageError(f"plan, step {step.name!r}: a window of {step.window_bits} bits is too wide")
    return bits


__all__ = [
    "MAX_ELEMENTS",
    "VERSION",
    "Conv2D",
    "Dense",
    "Flatten",
    "Linear",
    "Plan",
    "Relu",
    "Step",
    "SumPool2D",
    "Truncate",
    "WeightSpec",
]
