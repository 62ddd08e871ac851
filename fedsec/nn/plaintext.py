"""The plain twin of ``layers``: the same steps on real numbers, without shares, rounding or truncation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import assert_never

import numpy as np
import numpy.typing as npt

from fedsec.nn import windows
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
from fedsec.nn.weights import Weights

Floats = npt.NDArray[np.float64]


def predict(plan: Plan, weights: Weights, images: npt.ArrayLike) -> Floats:
    """Return what the parties would answer if they computed with real numbers.

    Args:
        plan: The steps.
        weights: Parameters in the plan's order.
        images: Shape [N, *input shape].

    Returns:
        The plan's answers, shape [N, *output shape]: logits, or what its head makes of them.
    """
    return trace(plan, weights, images)[-1]


def trace(plan: Plan, weights: Weights, images: npt.ArrayLike) -> list[Floats]:
    """Return the images and what every step gives, each with a batch axis in front."""
    values: list[Floats] = [np.asarray(images, dtype=np.float64)]
    parameters = iter(weights)
    for number, step in enumerate(plan.layers):
        inputs = [values[value] for value in step.inputs]
        values.append(_apply(step, inputs, plan.inputs_of(number), parameters))
    return values


def _apply(
    step: Step, inputs: Sequence[Floats], given: tuple[Value, ...], parameters: Iterator[Floats]
) -> Floats:
    match step:
        case Conv2D() | Dense():
            return _linear(step, inputs[0], next(parameters)) + next(parameters)
        case SumPool2D() | Reshape() | Pad2D() | Scale() | AddConstant() | ReduceSum():
            return _locally(step, inputs[0])
        case Add():
            return np.asarray(sum(sign * x for sign, x in zip(step.signs, inputs, strict=True)))
        case Concatenate():
            return np.concatenate(inputs, axis=step.axis + 1)
        case Multiply():
            rank = len(step.output_shape)
            return windows.with_rank(inputs[0], rank) * windows.with_rank(inputs[1], rank)
        case (
            Truncate()
            | Relu()
            | MaxPool2D()
            | ReduceMax()
            | PiecewiseLinear()
            | TopK()
            | RandomisedResponse()
        ):
            return _compare(step, inputs[0], given[0])
        case _:
            assert_never(step)


def _linear(step: Conv2D | Dense, x: Floats, kernel: Floats) -> Floats:
    if isinstance(step, Dense):
        return x @ kernel
    boxed = windows.box_sum(windows.pad(x, step.padding), step.box, step.box_step)
    return windows.conv2d(boxed, kernel, step.strides, step.dilation, step.groups)


def _locally(step: SumPool2D | Reshape | Pad2D | Scale | AddConstant | ReduceSum, x: Floats) -> Floats:
    match step:
        case SumPool2D():
            return windows.sum_pool(windows.pad(x, step.padding), step.pool, step.strides)
        case Reshape():
            return x.reshape(len(x), *step.output_shape)
        case Pad2D():
            return windows.pad(x, step.padding)
        case Scale():
            factors = np.ldexp(np.array(step.factors, dtype=np.float64), -step.fraction_bits)
            return x * windows.spread(factors, step.input_shape)
        case AddConstant():
            return x + step.constant
        case ReduceSum():
            return _along_last_axis(np.add, x)
        case _:
            assert_never(step)


def _along_last_axis(operation: np.ufunc, x: Floats) -> Floats:
    reduced: Floats = operation.reduce(x, axis=-1, keepdims=True)
    return reduced


def _compare(
    step: Truncate | Relu | MaxPool2D | ReduceMax | PiecewiseLinear | TopK | RandomisedResponse,
    x: Floats,
    given: Value,
) -> Floats:
    match step:
        case Truncate() | RandomisedResponse():
            # Nothing is rounded here, and of noisy answers the label itself is the likeliest.
            return x
        case Relu():
            return np.maximum(x, 0.0)
        case MaxPool2D():
            padded = windows.repeat_edge(x, step.padding)
            largest: Floats = windows.patches(padded, step.pool, step.strides).max(axis=(4, 5))
            return largest
        case ReduceMax():
            return _along_last_axis(np.maximum, x)
        case PiecewiseLinear():
            return piecewise(step, x, given.fraction_bits)
        case TopK():
            # A stable sort: of equal values the lowest index comes first.
            return np.argsort(-x, axis=-1, kind="stable")[..., : step.k].astype(np.float64)
        case _:
            assert_never(step)


def piecewise(step: PiecewiseLinear, x: Floats, fraction_bits: int) -> Floats:
    """Return the function of a step on real numbers.

    Args:
        step: The step.
        x: Real numbers of any shape.
        fraction_bits: Of the step's input: those of its knots.
    """
    first_slope, offset = (
        np.ldexp(float(step.first_slope), -step.slope_bits),
        np.ldexp(float(step.offset), -step.slope_bits - fraction_bits),
    )
    y = first_slope * x + offset
    for knot, slope in zip(step.knots, step.slopes, strict=True):
        y += np.ldexp(float(slope), -step.slope_bits) * np.maximum(
            x - np.ldexp(float(knot), -fraction_bits), 0
        )
    return np.asarray(y)
