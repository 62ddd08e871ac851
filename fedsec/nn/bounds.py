"""What a plan's steps can give: bounds of every value that is computed.

They hold for the integers that are computed on: encoded parameters, truncation and the signs' resolution are
included. The distance from real numbers is in ``fedsec.nn.accuracy``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np

from fedsec.nn import windows
from fedsec.nn.intervals import Floats, Interval, with_box
from fedsec.nn.plaintext import piecewise
from fedsec.nn.plan import (
    Add,
    AddConstant,
    Concatenate,
    Conv2D,
    Dense,
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
    Scale,
    Step,
    SumPool2D,
    TopK,
    Truncate,
    Value,
)
from fedsec.nn.weights import Weights, dropped_bits
from fedsec.ring import RING64, decode, encode

Parameters = tuple[Floats, Floats]
"""Kernel and bias."""


@dataclass(frozen=True, slots=True, eq=False)
class Within:
    """Parameters that nobody knows: of each one's size there is a bound."""

    kernel: Floats
    bias: Floats


def rounded(values: Floats, fraction_bits: int) -> Floats:
    """Return real numbers as the ring holds them.

    Raises:
        RangeError: If one does not fit the ring.
    """
    return decode(encode(values, fraction_bits, RING64), fraction_bits)


def rounded_parameters(
    step: Conv2D | Dense, given: Value, parameters: Parameters, dropped: int = 0
) -> Parameters:
    """Return the parameters of a linear step as the ring holds them.

    Args:
        step: The step.
        given: What is public about its input.
        parameters: Kernel and bias.
        dropped: Bits that are dropped from the product next, see ``weights.dropped_bits``.
    """
    kernel, bias = parameters
    bits = given.fraction_bits + step.weight_fraction_bits
    made_up = 2.0 ** (dropped - bits) if dropped else 0.0
    return rounded(kernel, step.weight_fraction_bits), rounded(bias, bits) + made_up


def unseen_parameters(step: Conv2D | Dense, given: Value, sizes: Parameters) -> Within:
    """Return bounds of the sizes of parameters as the ring will hold them: off by one unit at most.

    Args:
        step: The step.
        given: What is public about its input.
        sizes: Bounds of kernel and bias as real numbers.
    """
    kernel, bias = sizes
    bits = given.fraction_bits + step.weight_fraction_bits
    return Within(kernel + 2.0**-step.weight_fraction_bits, bias + 2.0**-bits)


def of_input(plan: Plan) -> Interval:
    """Bound the encoded input."""
    ends = rounded(np.array([plan.input_low, plan.input_high]), plan.fraction_bits)
    return Interval.uniform(plan.input_shape, float(ends[0]), float(ends[1]))


def of_values(plan: Plan, weights: Weights) -> list[Interval]:
    """Bound the input and what every step gives, for any input that the plan allows."""
    found = [of_input(plan)]
    parameters, dropped = iter(weights), iter(dropped_bits(plan))
    for number, step in enumerate(plan.layers):
        inputs = [found[value] for value in step.inputs]
        given, encoded = plan.inputs_of(number), None
        if isinstance(step, Conv2D | Dense):
            exact = (next(parameters), next(parameters))
            encoded = rounded_parameters(step, given[0], exact, next(dropped))
        found.append(after(step, inputs, given, encoded))
    return found


def after(
    step: Step,
    inputs: Sequence[Interval],
    given: Sequence[Value],
    parameters: Parameters | Within | None = None,
) -> Interval:
    """Bound what one step gives.

    Args:
        step: The step. Its own bound and windows are not looked at.
        inputs: Bounds of its inputs.
        given: What is public about them.
        parameters: Kernel and bias of a linear step, as the ring holds them.
    """
    match step:
        case Conv2D() | Dense():
            if parameters is None:
                raise TypeError(f"step {step.name!r} has parameters")
            return product(step, inputs[0], parameters)
        case SumPool2D() | Reshape() | Pad2D() | Add() | Concatenate() | Scale() | ReduceSum():
            return locally(step, inputs)
        case AddConstant():
            constant = float(rounded(np.array(step.constant), given[0].fraction_bits))
            return inputs[0].plus(Interval(np.array(constant), np.array(constant)))
        case Multiply():
            return inputs[0].map(_ranked(step)).times(inputs[1].map(_ranked(step)))
        case Truncate() | Relu() | MaxPool2D() | ReduceMax() | PiecewiseLinear() | TopK():
            return _after_gate(step, inputs[0], given[0])
        case RandomisedResponse():
            return inputs[0]
        case _:
            assert_never(step)


def product(step: Conv2D | Dense, x: Interval, parameters: Parameters | Within) -> Interval:
    """Bound the product with a kernel, plus bias, of parameters that are known or only bounded."""
    if not isinstance(parameters, Within):
        return linear(step, x, *parameters)
    # Largest where every input and every parameter is as large as it can be and all have one sign.
    most = linear(step, Interval(-x.sizes, x.sizes), parameters.kernel, parameters.bias).high
    return Interval(-most, most)


def linear(step: Conv2D | Dense, x: Interval, kernel: Floats, bias: Floats) -> Interval:
    """Bound the product with a kernel, plus bias."""
    if isinstance(step, Dense):
        return x.linear(kernel, np.abs(kernel), bias, np.matmul)
    padded = x.map(lambda values: windows.pad(values, step.padding))
    joint, sizes = (
        with_box(array, step.box, step.box_step, step.dilation) for array in (kernel, np.abs(kernel))
    )
    return padded.linear(
        joint,
        sizes,
        bias,
        lambda values, array: windows.conv2d(values, array, step.strides, (1, 1), step.groups),
    )


def locally(
    step: SumPool2D | Reshape | Pad2D | Add | Concatenate | Scale | ReduceSum, inputs: Sequence[Interval]
) -> Interval:
    """Bound what a step gives that has public constants only and is linear."""
    match step:
        case Add():
            total = Interval.uniform(step.output_shape, 0.0, 0.0)
            for sign, value in zip(step.signs, inputs, strict=True):
                total = total.plus(value) if sign > 0 else total.minus(value)
            return total
        case Concatenate():
            lows, highs = ([getattr(value, end) for value in inputs] for end in ("low", "high"))
            return Interval(np.concatenate(lows, step.axis + 1), np.concatenate(highs, step.axis + 1))
        case Scale():
            factors = np.ldexp(np.array(step.factors, dtype=np.float64), -step.fraction_bits)
            spread = windows.spread(factors, step.input_shape)
            return inputs[0].times(Interval(spread, spread))
        case _:
            return _placed(step, inputs[0])


def _placed(step: SumPool2D | Reshape | Pad2D | ReduceSum, x: Interval) -> Interval:
    match step:
        case SumPool2D():
            return x.map(lambda values: windows.pad(values, step.padding)).summed(
                lambda values: windows.sum_pool(values, step.pool, step.strides), math.prod(step.pool)
            )
        case Reshape():
            return x.map(lambda values: values.reshape(1, *step.output_shape))
        case Pad2D():
            return x.map(lambda values: windows.pad(values, step.padding))
        case ReduceSum():
            return x.summed(lambda values: values.sum(axis=-1, keepdims=True), step.input_shape[-1])
        case _:
            assert_never(step)


def _ranked(step: Multiply) -> Callable[[Floats], Floats]:
    return lambda values: windows.with_rank(values, len(step.output_shape))


def _after_gate(
    step: Truncate | Relu | MaxPool2D | ReduceMax | PiecewiseLinear | TopK, x: Interval, given: Value
) -> Interval:
    match step:
        case Truncate():
            return _truncated(x, step.bits, given.fraction_bits)
        case Relu():
            return _truncated(x, step.bits, given.fraction_bits).relu()
        case MaxPool2D() | ReduceMax():
            return x.map(lambda values: largest(step, values))
        case PiecewiseLinear():
            found = of_piecewise(step, x, given.fraction_bits)
            return _truncated(found, step.bits, given.fraction_bits + step.slope_bits)
        case TopK():
            return Interval.uniform(step.output_shape, 0.0, step.input_shape[0] - 1.0)
        case _:
            assert_never(step)


def _truncated(x: Interval, bits: int, fraction_bits: int) -> Interval:
    return x.truncated(fraction_bits - bits) if bits else x


def largest(step: MaxPool2D | ReduceMax, values: Floats) -> Floats:
    """Return the largest of each window, or of the last axis."""
    if isinstance(step, ReduceMax):
        return np.asarray(np.max(values, axis=-1, keepdims=True))
    padded = windows.repeat_edge(values, step.padding)
    return np.asarray(np.max(windows.patches(padded, step.pool, step.strides), axis=(4, 5)))


def of_piecewise(step: PiecewiseLinear, x: Interval, fraction_bits: int) -> Interval:
    """Bound a function of straight pieces: its extremes are at the ends and at the knots between them."""
    ends = [piecewise(step, end, fraction_bits) for end in (x.low, x.high)]
    low, high = np.minimum(*ends), np.maximum(*ends)
    knots = np.ldexp(np.array(step.knots, dtype=np.float64), -fraction_bits)
    for knot, y in zip(knots, piecewise(step, knots, fraction_bits), strict=True):
        inside = (x.low < knot) & (knot < x.high)
        low = np.where(inside, np.minimum(low, y), low)
        high = np.where(inside, np.maximum(high, y), high)
    # One rounding for each knot's part, of the size that the parts have.
    terms = len(step.knots) + 4
    steepest = sum(abs(slope) for slope in (step.first_slope, *step.slopes)) * 2.0**-step.slope_bits
    sizes = steepest * (x.sizes + np.max(np.abs(knots))) + np.maximum(np.abs(low), np.abs(high))
    return Interval(low, high).widened(terms * 2.0**-52 * sizes)
