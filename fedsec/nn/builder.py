"""A plan under construction: steps one by one, each with proven bounds, windows and fraction bits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
import numpy as np

from fedsec.errors import UnsupportedModelError
from fedsec.nn import bounds, plan
from fedsec.nn.base import RingBits
from fedsec.nn.formats import Formats, SmallRingError, TooWideError
from fedsec.nn.intervals import Interval
from fedsec.nn.network import Network
from fedsec.nn.weights import Weights

WIDEST_PRODUCT = 62
"""Bits of a product in the 64-bit ring, without its sign: truncation is proven for |z| < 2^62."""

FEWEST_WEIGHT_BITS = 10
"""Where a product is too large, its kernel gets fewer fraction bits, down to these."""

FEWEST_COMPARED_BITS = 4
"""Fraction bits that a comparison of large values looks at, at least."""


@dataclass(frozen=True, slots=True)
class Operand:
    """A value of the plan as a layer's input or output.

    Attributes:
        value: Its number.
        pending: What the value in shares is too large by: pools summed and not divided yet.
        product: Whether it has a product's fraction bits, to be dropped before the next product.
    """

    value: int
    pending: int = 1
    product: bool = False


class Builder:
    """The plan so far.

    Attributes:
        divisors: For each linear step, in order, what its kernel was divided by.
    """

    def __init__(self, network: Network, formats: Formats) -> None:
        self.network = network
        self.formats = formats
        self.steps: list[plan.Step] = []
        self.weights: Weights = []
        self.divisors: list[int] = []
        ring_bits, bits = formats.of(0)
        ends = bounds.rounded(np.array([network.input_low, network.input_high]), bits)
        self.intervals = [Interval.uniform(network.input_shape, float(ends[0]), float(ends[1]))]
        size = self.intervals[0].exponent
        self.values = [plan.Value(network.input_shape, bits, ring_bits, 2.0**size)]
        self._dropped: dict[tuple[int, int], int] = {}

    def finish(self, output: Operand) -> tuple[plan.Plan, Weights]:
        """Return the plan that ends with a value, and its parameters."""
        output = self.divided(self.network.name, output)
        if output.value != len(self.steps):
            # The answer is what the last step gives.
            output = self.reshaped(self.network.name, output, self.shape(output))
        planned = plan.Plan(
            name=self.network.name,
            input_shape=self.network.input_shape,
            output_shape=self.shape(output),
            input_low=self.network.input_low,
            input_high=self.network.input_high,
            input_ring_bits=64 if self.values[0].ring_bits == 64 else 32,
            fraction_bits=self.values[0].fraction_bits,
            layers=tuple(self.steps),
        )
        return planned, self.weights

    def shape(self, operand: Operand) -> tuple[int, ...]:
        """Return the shape of a value."""
        return self.values[operand.value].shape

    def interval(self, operand: Operand) -> Interval:
        """Return the bounds of a value in shares."""
        return self.intervals[operand.value]

    @property
    def next_format(self) -> tuple[RingBits, int]:
        """Ring and fraction bits of what a gate will give that comes next."""
        ring_bits, bits = self.formats.of(len(self.steps) + 1)
        return (64 if ring_bits == 64 else 32), bits

    # One step.

    def encoded(
        self, step: plan.Conv2D | plan.Dense, parameters: bounds.Parameters, given: plan.Value
    ) -> bounds.Parameters | bounds.Within:
        """Return what is known of a step's parameters as the ring will hold them."""
        if self.formats.unseen:
            return bounds.unseen_parameters(step, given, parameters)
        return bounds.rounded_parameters(step, given, parameters)

    def put(
        self,
        step: plan.Step,
        parameters: bounds.Parameters | bounds.Within | None = None,
        *,
        more: float = 0.0,
    ) -> int:
        """Append a step, with its bound filled in; returns the number of its value.

        Args:
            step: The step.
            parameters: Kernel and bias of a linear step, as ``encoded`` gives them.
            more: What may still be added to each value.

        Raises:
            TooWideError: If its values may not fit the ring.
            SmallRingError: If that is the 32-bit ring, in which they need not be.
        """
        given = tuple(self.values[value] for value in step.inputs)
        found = bounds.after(step, [self.intervals[value] for value in step.inputs], given, parameters)
        if more:
            found = Interval(found.low, np.nextafter(found.high + more, np.inf))
        if isinstance(step, plan.Conv2D | plan.Dense | plan.PiecewiseLinear):
            step = msgspec.structs.replace(step, bound=2.0**found.exponent)
        value = step.follow(given)
        self._check_words(step, found.size, value)
        self.steps.append(step)
        self.values.append(value)
        self.intervals.append(found)
        return len(self.steps)

    def _check_words(self, step: plan.Step, size: float, value: plan.Value) -> None:
        """Refuse what a step gives if it may not fit the words of its ring."""
        exponent = math.frexp(value.bound)[1] - 1
        needed, available = exponent + value.fraction_bits, min(value.ring_bits - 1, WIDEST_PRODUCT)
        if needed <= available:
            return
        if value.ring_bits != 64:
            raise SmallRingError(len(self.steps) + 1)
        raise TooWideError(
            f"layer {step.name!r} can reach {size:.4g}, which with {value.fraction_bits} fraction bits needs"
            f" {needed} of {available} bits of a ring element and could wrap; {self._advice}",
            step,
            needed - available,
        )

    def window(
        self, name: str, operand: Operand, surplus: int, ring_bits: int = 64, ignore_bits: int | None = None
    ) -> int:
        """Return the window of a value after dropping bits.

        Args:
            name: The layer that needs it.
            operand: The value.
            surplus: Bits that are dropped.
            ring_bits: Ring of the result.
            ignore_bits: Of a sign; None for a truncation, which gives values of both signs.

        Raises:
            UnsupportedModelError, SmallRingError: If the value is too wide for a ring.
        """
        given = self.values[operand.value]
        left = given.fraction_bits - surplus
        found = self.intervals[operand.value]
        # A truncation takes up to two units; what a sign ignores may carry into it.
        units = 2.0 if ignore_bits is None else 2.0**ignore_bits
        below = units * 2.0**-left if surplus or ignore_bits else 0.0
        size = float(max(np.max(found.high), below - np.min(found.low)))
        # One bit for the sign. Values of a few units need a window of two bits at least.
        width = max(2, 1 + left + math.frexp(size)[1])
        # A truncation moves what it gets to positive numbers first, which takes another bit.
        moved = surplus + 1 if ignore_bits is None and surplus else surplus
        self.check_window(name, width, moved, (operand.value, given.ring_bits, ring_bits), size)
        return width

    def check_window(
        self, name: str, width: int, surplus: int, rings: tuple[int, int, int], size: float
    ) -> None:
        """Refuse values that are too wide for a comparison or a truncation.

        Args:
            name: The layer that needs it.
            width: Of the window.
            surplus: Bits that the ring must hold besides.
            rings: The value's number, the bits of its ring and those of the result's.
            size: What the value can reach.
        """
        value, ring_bits, result_ring_bits = rings
        if width + surplus <= ring_bits and width < min(ring_bits, result_ring_bits):
            return
        if min(ring_bits, result_ring_bits) < 64:
            raise SmallRingError(value if ring_bits < 64 else len(self.steps) + 1)
        raise UnsupportedModelError(
            f"layer {name!r} gets values up to {size:.4g}, which take a window of {width} bits: too wide to"
            f" be compared or truncated; {self._advice}"
        )

    @property
    def _advice(self) -> str:
        if self.formats.unseen:
            return (
                "parameters that nobody sees are bounded by their initial values and rounds times clip: run"
                " fewer rounds, or with a smaller clip"
            )
        return (
            f"use fewer fraction bits (now {self.formats.fraction_bits}), or train with smaller parameters"
            " (for example weight decay)"
        )

    def comparable(self, name: str, operand: Operand, size: float, bits: int) -> Operand:
        """Return a value with so few fraction bits that differences can be compared.

        Args:
            name: The layer that needs it.
            operand: The value.
            size: Of the largest difference.
            bits: Fraction bits that are wanted.

        Raises:
            UnsupportedModelError: If too few would be left.
        """
        left = min(bits, self.formats.most_compared_bits - 1 - math.frexp(size)[1])
        if left < FEWEST_COMPARED_BITS:
            raise UnsupportedModelError(
                f"layer {name!r} gets values up to {size:.4g}, of which a comparison would look at {left}"
                f" fraction bits, fewer than {FEWEST_COMPARED_BITS}; {self._advice}"
            )
        return self.dropped(name, operand, left)

    # Values in other forms.

    def dropped(self, name: str, operand: Operand, bits: int | None = None) -> Operand:
        """Return a value with a product's fraction bits dropped.

        Args:
            name: The layer that needs it.
            operand: The value. What is no product has few enough bits already.
            bits: Fraction bits to be left; by default those of the format.
        """
        key = (operand.value, -1 if bits is None else bits)
        if key not in self._dropped:
            self._dropped[key] = self._truncated(name, operand, bits)
        return Operand(self._dropped[key], operand.pending)

    def _truncated(self, name: str, operand: Operand, bits: int | None) -> int:
        ring_bits, wanted = self.next_format
        given = self.values[operand.value]
        surplus = given.fraction_bits - (wanted if bits is None else bits)
        if surplus <= 0 or (bits is None and not operand.product):
            return operand.value
        return self.put(
            plan.Truncate(
                name=f"{name} truncate",
                inputs=(operand.value,),
                input_shape=given.shape,
                output_shape=given.shape,
                bits=surplus,
                window_bits=self.window(name, operand, surplus, ring_bits),
                ring_bits=ring_bits,
            )
        )

    def divided(self, name: str, operand: Operand) -> Operand:
        """Return a value with what is pending divided out."""
        return self.scaled(name, operand, 1.0) if operand.pending != 1 else operand

    def scaled(self, name: str, operand: Operand, by: float) -> Operand:
        """Return a value times a public number, with what is pending divided out."""
        factor, bits, error = _as_factor(by / operand.pending)
        if (factor, bits) == (1, 0):
            return Operand(operand.value, 1, operand.product)
        shape = self.shape(operand)
        value = self.put(
            plan.Scale(
                name=name,
                inputs=(operand.value,),
                input_shape=shape,
                output_shape=shape,
                factors=(factor,),
                fraction_bits=bits,
                relative_error=error,
            )
        )
        return Operand(value, 1, product=operand.product or bits > 0)

    def reshaped(self, name: str, operand: Operand, shape: tuple[int, ...]) -> Operand:
        """Return the same values in another shape."""
        value = self.put(
            plan.Reshape(
                name=name, inputs=(operand.value,), input_shape=self.shape(operand), output_shape=shape
            )
        )
        return Operand(value, operand.pending, operand.product)

    def aligned(self, name: str, operands: list[Operand]) -> list[Operand]:
        """Return values with the same fraction bits, and the same pending divisor."""
        if len({operand.pending for operand in operands}) > 1:
            operands = [self.divided(name, operand) for operand in operands]
        most = max(self.values[operand.value].fraction_bits for operand in operands)
        if any(self.intervals[operand.value].exponent + most + 3 > WIDEST_PRODUCT for operand in operands):
            operands = [self.dropped(name, operand) for operand in operands]
            most = max(self.values[operand.value].fraction_bits for operand in operands)
        return [self._raised(name, operand, most) for operand in operands]

    def _raised(self, name: str, operand: Operand, fraction_bits: int) -> Operand:
        given = self.values[operand.value]
        missing = fraction_bits - given.fraction_bits
        if missing == 0:
            return operand
        step = plan.Scale(
            name=name,
            inputs=(operand.value,),
            input_shape=given.shape,
            output_shape=given.shape,
            factors=(1 << missing,),
            fraction_bits=missing,
        )
        return Operand(self.put(step), operand.pending, product=True)


def _as_factor(real: float) -> tuple[int, int, float]:
    """Return an integer, fraction bits, and the relative error of the one with the other for a number."""
    if real == 0.0:
        return 0, 0, 0.0
    # 20 significant bits; fewer where the rest are zeros.
    bits = max(20 - math.frexp(real)[1], 0)
    factor = round(math.ldexp(real, bits))
    while bits > 0 and factor % 2 == 0:
        factor, bits = factor // 2, bits - 1
    return factor, bits, abs(math.ldexp(factor, -bits) - real) / abs(real)
