"""How far a plan's answers can be from the network's on real numbers: a proven bound.

Every step's error follows from those of its inputs: rounded parameters, truncations, the signs' resolution
and the distance of piecewise linear functions from the ones they stand for. Errors have two ends: a
truncation only ever makes a value smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np

from fedsec.errors import UsageError
from fedsec.nn import bounds, windows
from fedsec.nn.heads import softmax_error
from fedsec.nn.intervals import Interval
from fedsec.nn.plan import (
    Add,
    AddConstant,
    Concatenate,
    Conv2D,
    Dense,
    Gate,
    Local,
    MaxPool2D,
    Multiply,
    Pad2D,
    PiecewiseLinear,
    Plan,
    RandomisedResponse,
    ReduceMax,
    ReduceSum,
    Relu,
    Reshape,
    Reveal,
    Scale,
    SumPool2D,
    TopK,
    Truncate,
    Value,
)
from fedsec.nn.weights import Weights, dropped_bits


def error_bound(plan: Plan, weights: Weights, reveal: Reveal = "logits") -> float:
    """Bound the distance of any answer from the network's on real numbers, for any input that is allowed.

    Worst cases of all steps add up here, through the sizes of the kernels' columns; what is seen is far less.

    Args:
        plan: The plan, without a head.
        weights: Its parameters, not rounded.
        reveal: What the answers are; probabilities can be off by less than logits.

    Returns:
        A bound of every answer's error. It holds for dealt and for plain mode.

    Raises:
        UsageError: If the answer is a label: labels have no distance.
    """
    error = _errors(plan, weights)[-1].size
    if reveal == "logits":
        return error
    if reveal != "probabilities":
        raise UsageError(f"{reveal} has no error bound: labels have no distance from each other")
    # Where logits are off by up to d, their differences are by 2d, and |dp| = p (1 - p) 2d <= d / 2.
    return min(1.0, error / 2 + softmax_error(plan.output_shape[-1]))


def _errors(plan: Plan, weights: Weights) -> list[Interval]:
    """Bound the errors of all values."""
    values = bounds.of_values(plan, weights)
    half_unit = 2.0 ** -(plan.fraction_bits + 1)
    errors = [Interval.uniform(plan.input_shape, -half_unit, half_unit)]
    parameters, dropped = iter(weights), iter(dropped_bits(plan))
    for number, step in enumerate(plan.layers):
        here = _Here(
            [values[value] for value in step.inputs],
            [errors[value] for value in step.inputs],
            plan.inputs_of(number),
            values[number + 1],
        )
        if isinstance(step, Conv2D | Dense):
            exact = (next(parameters), next(parameters))
            encoded = bounds.rounded_parameters(step, here.given[0], exact, next(dropped))
            errors.append(_linear(step, here, exact, encoded))
        else:
            errors.append(_after(step, here))
    return errors


@dataclass(frozen=True, slots=True, eq=False)
class _Here:
    """What is known at one step: bounds of what goes in as computed, errors in it, bounds of what comes out.

    An error is what is computed minus what the network has.
    """

    inputs: Sequence[Interval]
    errors: Sequence[Interval]
    given: Sequence[Value]
    output: Interval


def _after(step: Local | Gate, here: _Here) -> Interval:
    match step:
        case SumPool2D() | Reshape() | Pad2D() | Add() | Concatenate() | ReduceSum():
            return bounds.locally(step, here.errors)
        case Scale():
            # The factors stand for real numbers that are this far from them.
            return bounds.locally(step, here.errors).widened(step.relative_error * here.output.sizes)
        case AddConstant():
            return here.errors[0].widened(2.0 ** -(here.given[0].fraction_bits + 1))
        case Multiply():
            return _product(step, here)
        case Truncate() | Relu() | MaxPool2D() | ReduceMax() | PiecewiseLinear():
            return _gate(step, here)
        case TopK() | RandomisedResponse():
            raise UsageError(f"step {step.name!r} gives labels, which have no distance from each other")
        case _:
            assert_never(step)


def _linear(
    step: Conv2D | Dense, here: _Here, exact: bounds.Parameters, encoded: bounds.Parameters
) -> Interval:
    """W x' - w x = w (x' - x) + (W - w) x', where W and x' are what is computed with."""
    of_input = bounds.linear(step, here.errors[0], exact[0], np.zeros_like(exact[1]))
    of_rounding = bounds.linear(step, here.inputs[0], encoded[0] - exact[0], encoded[1] - exact[1])
    return of_input.plus(of_rounding)


def _product(step: Multiply, here: _Here) -> Interval:
    """X' y' - x y = x' (y' - y) + y (x' - x), where y = y' - (y' - y)."""
    rank = len(step.output_shape)
    (x, y), (x_error, y_error) = (
        [each.map(lambda values: windows.with_rank(values, rank)) for each in pair]
        for pair in (here.inputs, here.errors)
    )
    return x.times(y_error).plus(x_error.times(y.minus(y_error)))


def _gate(step: Truncate | Relu | MaxPool2D | ReduceMax | PiecewiseLinear, here: _Here) -> Interval:
    (error,), (given,) = here.errors, here.given
    match step:
        case Truncate():
            return _truncated(error, step.bits, given.fraction_bits)
        case Relu():
            return _relu(step, here)
        case MaxPool2D() | ReduceMax():
            # The largest of values that are off by d is off by no more than the d on either side.
            low = -bounds.largest(step, -error.low)
            return Interval(low, bounds.largest(step, error.high))
        case PiecewiseLinear():
            return _piecewise(step, here)
        case _:
            assert_never(step)


def _truncated(error: Interval, bits: int, fraction_bits: int) -> Interval:
    return error.truncated(fraction_bits - bits) if bits else error


def _relu(step: Relu, here: _Here) -> Interval:
    left = here.given[0].fraction_bits - step.bits
    error = _truncated(here.errors[0], step.bits, here.given[0].fraction_bits)
    # A value below the sign's resolution may come out as 0.
    resolution = 2.0 ** (step.ignore_bits - left) if step.ignore_bits else 0.0
    low, high = np.minimum(error.low, 0.0) - resolution, np.maximum(error.high, 0.0)
    # What comes out lies in the output's bounds, and what should come out between zero and what the error
    # allows.
    most = np.maximum(here.inputs[0].high - here.errors[0].low, 0.0)
    return Interval(np.maximum(low, -most), np.minimum(high, here.output.high))


def _piecewise(step: PiecewiseLinear, here: _Here) -> Interval:
    slopes = np.ldexp(np.cumsum([float(step.first_slope), *map(float, step.slopes)]), -step.slope_bits)
    between = Interval(np.array(slopes.min()), np.array(slopes.max()))
    moved = here.errors[0].times(between)
    # Nor can it be further off than the function's values are apart, which counts where it is steep.
    bits = here.given[0].fraction_bits
    computed = bounds.of_piecewise(step, here.inputs[0], bits)
    apart = computed.minus(bounds.of_piecewise(step, here.inputs[0].minus(here.errors[0]), bits))
    clipped = Interval(np.maximum(moved.low, apart.low), np.minimum(moved.high, apart.high))
    return _truncated(clipped.widened(step.error), step.bits, bits + step.slope_bits)
