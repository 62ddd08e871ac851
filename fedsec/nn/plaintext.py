"""The plain twin of ``layers``: the same steps on real numbers, without shares, rounding or truncation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_never

import numpy as np
import numpy.typing as npt

from fedsec.nn import windows
from fedsec.nn.plan import Conv2D, Dense, Flatten, Plan, Relu, Step, SumPool2D, Truncate
from fedsec.nn.weights import Weights

Floats = npt.NDArray[np.float64]


def predict(plan: Plan, weights: Weights, images: npt.ArrayLike) -> Floats:
    """Return what the parties would answer if they computed with real numbers.

    Args:
        plan: The steps.
        weights: Parameters in the plan's order.
        images: Shape [N, *input shape].

    Returns:
        Logits, shape [N, *output shape].
    """
    values = np.asarray(images, dtype=np.float64)
    parameters = iter(weights)
    for step in plan.layers:
        values = _apply(step, values, parameters)
    return values


def _apply(step: Step, values: Floats, parameters: Iterator[Floats]) -> Floats:
    match step:
        case Conv2D():
            boxed = windows.box_sum(windows.pad(values, step.padding), step.box, step.box_step)
            return windows.conv2d(boxed, next(parameters), step.stride) + next(parameters)
        case Dense():
            return values @ next(parameters) + next(parameters)
        case SumPool2D():
            return windows.sum_pool(values, step.pool, step.strides)
        case Relu():
            return np.maximum(values, 0.0)
        case Flatten():
            return values.reshape(len(values), -1)
        case Truncate():
            return values
        case _:
            assert_never(step)
