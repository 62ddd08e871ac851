"""The plan: everything public about a network that is served in shares, and nothing of its parameters.

A plan fixes shapes, fraction bits, rings, windows of the sign and the order of steps, so that the owner, the
parties and the user compute on the same terms. It travels and is kept as JSON.

Value 0 is the input; step i makes value i + 1 from values that are there already; the last value is the
answer.

What a plan reveals: architecture, layer names, and for each layer a power of two above the largest value
that its parameters allow (the windows of its gates follow from it).
"""

from __future__ import annotations

import hashlib
import math
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args

import msgspec

from fedsec.errors import UsageError
from fedsec.nn.base import RingBits, Shape, Text, Value, power_of_two
from fedsec.nn.gates import (
    Gate,
    MaxPool2D,
    Multiply,
    PiecewiseLinear,
    RandomisedResponse,
    ReduceMax,
    Relu,
    TopK,
    Truncate,
)
from fedsec.nn.heads import with_head
from fedsec.nn.steps import (
    Add,
    AddConstant,
    Concatenate,
    Conv2D,
    Dense,
    Linear,
    Pad2D,
    ReduceSum,
    Reshape,
    Scale,
    SumPool2D,
)

VERSION = 2

MAX_ELEMENTS = 1 << 24
"""Of one kernel, and of the largest array that a step makes of one example (``Plan.largest_array``), patches
and padding included. It is no bound of memory: a batch has many examples, a step holds a few such arrays at
once, and a plan has up to 512 steps with a kernel each. Who runs a plan bounds the batch."""

Reveal = Literal["logits", "probabilities", "label", "top3"]
REVEALS: tuple[Reveal, ...] = get_args(Reveal)
"""What an answer can be; see ``fedsec.nn.heads``."""

Local = SumPool2D | Reshape | Pad2D | Add | Concatenate | Scale | AddConstant | ReduceSum
Step = Conv2D | Dense | Local | Gate


class WeightSpec(NamedTuple):
    """Shape and fraction bits of one array of parameters."""

    shape: tuple[int, ...]
    fraction_bits: int


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """A network as steps over shares. Equal plans have equal digests.

    Raises:
        UsageError: On making or reading one whose shapes, rings or fraction bits do not follow from each
            other.
    """

    version: int = VERSION
    name: Text
    input_shape: Shape
    output_shape: Shape
    input_low: float
    input_high: float
    ring_bits: Annotated[int, msgspec.Meta(ge=64, le=64)] = 64
    """Of the shares that come and go, and of all values in plain mode."""

    input_ring_bits: RingBits = 64
    """Ring in which dealt mode holds the input."""

    fraction_bits: Annotated[int, msgspec.Meta(ge=4, le=24)]
    """Of the input."""

    layers: Annotated[tuple[Step, ...], msgspec.Meta(min_length=1, max_length=512)]

    def __post_init__(self) -> None:
        """Refuse steps that do not follow from each other."""
        if self.version != VERSION:
            raise UsageError(
                f"plan {self.name!r} has version {self.version}, this fedsec reads {VERSION}; export the"
                " model again"
            )
        if not (math.isfinite(self.input_low) and self.input_low < self.input_high < math.inf):
            raise UsageError(f"plan {self.name!r}: inputs from {self.input_low} to {self.input_high}")
        if self.values[-1].shape != self.output_shape:
            raise UsageError(
                f"plan {self.name!r} ends with {list(self.values[-1].shape)}, not {list(self.output_shape)}"
            )
        unused = set(range(len(self.layers))) - {value for step in self.layers for value in step.inputs}
        if unused:
            raise UsageError(f"plan {self.name!r}: nothing takes the values {sorted(unused)}")

    @cached_property
    def values(self) -> tuple[Value, ...]:
        """What is public about the input and about what each step gives."""
        size = max(abs(self.input_low), abs(self.input_high))
        # Rounding to the input's fraction bits can reach a power of two from below.
        bound = power_of_two(size + 2.0**-self.fraction_bits)
        values = [Value(self.input_shape, self.fraction_bits, self.input_ring_bits, bound)]
        _check_words(self.name, values[0])
        for step in self.layers:
            values.append(_follow(step, values))
        return tuple(values)

    @cached_property
    def last_uses(self) -> tuple[int, ...]:
        """For each value the number of the last step that takes it, so that it can be let go after it.

        The answer's is the number of steps: nothing takes it.
        """
        uses = [len(self.layers)] * (len(self.layers) + 1)
        for number, step in enumerate(self.layers):
            for value in step.inputs:
                uses[value] = number
        return tuple(uses)

    def inputs_of(self, number: int) -> tuple[Value, ...]:
        """Return what is public about the inputs of a step."""
        return tuple(self.values[value] for value in self.layers[number].inputs)

    @property
    def weight_specs(self) -> tuple[WeightSpec, ...]:
        """Shape and fraction bits of each array of parameters: kernel and bias of each linear step."""
        specs = []
        for number, step in enumerate(self.layers):
            if isinstance(step, Linear):
                specs.append(WeightSpec(step.kernel_shape, step.weight_fraction_bits))
                # A bias is added to products before they are truncated.
                specs.append(WeightSpec(step.output_shape[-1:], self.values[number + 1].fraction_bits))
        return tuple(specs)

    @property
    def output_fraction_bits(self) -> int:
        """Fraction bits of the answers."""
        return self.values[-1].fraction_bits

    @property
    def largest_array(self) -> int:
        """Ring elements of the largest array that a step makes of one example; a batch has as many times."""
        return max(step.largest_array for step in self.layers)

    def with_head(self, reveal: Reveal, label_epsilon: float | None = None) -> Plan:
        """Return the plan whose answer is what ``reveal`` says: one of ``REVEALS``.

        Args:
            reveal: What is made of the logits.
            label_epsilon: If given, the label is a noisy one, of at most so much epsilon.

        Raises:
            UnsupportedModelError: If the answer is no list of 2 to 1024 classes.
            UsageError: If something else than the label is to be noisy, or there is no such noise.
        """
        if reveal == "logits" and label_epsilon is None:
            return self
        return with_head(self, reveal, label_epsilon)

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
            return _READER.decode(text)
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


_READER = msgspec.json.Decoder(Plan)
"""Made at import: threads that read their first plan at once would crash in msgspec."""


def _follow(step: Step, values: list[Value]) -> Value:
    """Return what a step gives, after checking that its inputs are there and of the kind it expects."""
    if max(step.inputs) >= len(values):
        raise step.refuse(f"takes value {max(step.inputs)}, of 0 to {len(values) - 1}")
    inputs = tuple(values[number] for number in step.inputs)
    if tuple(value.shape for value in inputs) != step.shapes or step.largest_array > MAX_ELEMENTS:
        raise step.refuse(
            f"takes {[list(shape) for shape in step.shapes]}, gives {list(step.output_shape)} and makes"
            f" {step.largest_array} values of one example; expected to take"
            f" {[list(value.shape) for value in inputs]} and to make at most {MAX_ELEMENTS}"
        )
    if isinstance(step, Linear) and math.prod(step.kernel_shape) > MAX_ELEMENTS:
        raise step.refuse(f"has a kernel that is too large, of more than {MAX_ELEMENTS} parameters")
    value = step.follow(inputs)
    _check_words(step.name, value)
    return value


def _check_words(name: str, value: Value) -> None:
    """Refuse a value that may not fit its ring."""
    fits = math.isfinite(value.bound) and value.bound > 0 and math.frexp(value.bound)[0] == 0.5
    if not fits or value.bound * 2.0**value.fraction_bits > 2.0 ** (value.ring_bits - 1):
        raise UsageError(
            f"plan, step {name!r}: values below {value.bound:g} with {value.fraction_bits} fraction bits in"
            f" {value.ring_bits}-bit words; expected a power of two, and words that hold it"
        )


__all__ = [
    "MAX_ELEMENTS",
    "REVEALS",
    "VERSION",
    "Add",
    "AddConstant",
    "Concatenate",
    "Conv2D",
    "Dense",
    "Gate",
    "Linear",
    "Local",
    "MaxPool2D",
    "Multiply",
    "Pad2D",
    "PiecewiseLinear",
    "Plan",
    "RandomisedResponse",
    "ReduceMax",
    "ReduceSum",
    "Relu",
    "Reshape",
    "Reveal",
    "Scale",
    "Step",
    "SumPool2D",
    "TopK",
    "Truncate",
    "Value",
    "WeightSpec",
]
