"""Activations as steps: ReLU in all its forms, and smooth functions as straight pieces."""

from __future__ import annotations

import math

import numpy as np

from fedsec.errors import UnsupportedModelError
from fedsec.nn import functions, plan
from fedsec.nn.builder import Builder, Operand
from fedsec.nn.formats import ARGUMENT_BITS
from fedsec.nn.network import FunctionLayer, ReluLayer
from fedsec.nn.pieces import Pieces

FUNCTION_ERROR = 2.0**-9
"""Largest distance of the straight pieces from the function; half of it takes 1.4 times as many pieces."""


def lower_relu(builder: Builder, layer: ReluLayer, x: Operand) -> Operand:
    """Append ReLU, which drops a product's fraction bits on the way."""
    _check_finite(layer)
    plain = layer.negative_slope == 0.0 and layer.threshold == 0.0
    reachable = layer.max_value is not None and builder.interval(x).size >= layer.max_value * x.pending
    if not plain or reachable:
        x = _argument(builder, layer.name, x, builder.formats.fraction_bits)
        given = builder.values[x.value]
        return _put(builder, layer.name, x, _clipped(layer, given.fraction_bits, given.bound))
    ring_bits, wanted = builder.next_format
    given = builder.values[x.value]
    surplus = max(given.fraction_bits - wanted, 0)
    ignored = max(given.fraction_bits - surplus - builder.formats.sign_resolution_bits, 0)
    window = builder.window(layer.name, x, surplus, ring_bits, ignored)
    most = builder.formats.most_compared_bits
    while window - ignored > most:
        # Values that can be so large need no sign as fine as that of others.
        ignored = window - most
        window = builder.window(layer.name, x, surplus, ring_bits, ignored)
    step = plan.Relu(
        name=layer.name,
        inputs=(x.value,),
        input_shape=given.shape,
        output_shape=given.shape,
        bits=surplus,
        window_bits=window,
        ring_bits=ring_bits,
        ignore_bits=ignored,
    )
    return Operand(builder.put(step), x.pending)


def lower_function(builder: Builder, layer: FunctionLayer, x: Operand) -> Operand:
    """Append a smooth function."""
    if layer.kind == "softmax":
        raise UnsupportedModelError(
            f"layer {layer.name!r} is a softmax before the end of the model; only the answers can go through"
            ' one (reveal="probabilities"). Use relu or sigmoid there and train again'
        )
    smooth = functions.elu(layer.alpha) if layer.kind == "elu" else functions.SMOOTH[layer.kind]
    x = _argument(builder, layer.name, x, min(ARGUMENT_BITS, builder.formats.fraction_bits))
    return _put_smooth(builder, layer.name, x, smooth, FUNCTION_ERROR)


def _argument(builder: Builder, name: str, x: Operand, bits: int) -> Operand:
    """Return a value as the argument of pieces."""
    x = builder.divided(name, x)
    # Its distance from a knot is what is compared: knots of smooth functions are within 16.
    return builder.comparable(name, x, 2 * max(builder.interval(x).size, 16.0), bits)


def _put_smooth(builder: Builder, name: str, x: Operand, smooth: functions.Smooth, error: float) -> Operand:
    """Append a function of a value that has its final fraction bits and nothing pending."""
    found = builder.interval(x)
    pieces = functions.fit(
        smooth,
        float(np.min(found.low)),
        float(np.max(found.high)),
        error=error,
        fraction_bits=builder.values[x.value].fraction_bits,
    )
    return _put(builder, name, x, pieces)


def _put(builder: Builder, name: str, x: Operand, pieces: Pieces) -> Operand:
    given = builder.values[x.value]
    ring_bits, wanted = builder.next_format
    found = builder.interval(x)
    unit = 2.0**-given.fraction_bits
    furthest = max(
        float(np.max(found.high)) - pieces.knots[0] * unit, pieces.knots[-1] * unit - float(np.min(found.low))
    )
    window = max(2, 1 + given.fraction_bits + math.frexp(furthest)[1])
    builder.check_window(name, window, 0, (x.value, given.ring_bits, 64), furthest)
    step = plan.PiecewiseLinear(
        name=name,
        inputs=(x.value,),
        input_shape=given.shape,
        output_shape=given.shape,
        window_bits=window,
        knots=pieces.knots,
        slopes=pieces.slopes,
        first_slope=pieces.first_slope,
        offset=pieces.offset,
        slope_bits=pieces.slope_bits,
        bits=max(given.fraction_bits + pieces.slope_bits - wanted, 0),
        ring_bits=ring_bits,
        bound=1.0,
        error=min(pieces.error, 1.0),
    )
    return Operand(builder.put(step))


def _clipped(layer: ReluLayer, fraction_bits: int, bound: float) -> Pieces:
    """Return ReLU with a slope below, a largest value or a threshold, exactly but for rounding."""
    # Slopes are so fine that they are off by less than half a unit over the whole range.
    slope_bits = fraction_bits + math.frexp(bound)[1] if layer.negative_slope else 0
    one, below = 1 << slope_bits, round(math.ldexp(layer.negative_slope, slope_bits))
    threshold = round(math.ldexp(layer.threshold, fraction_bits))
    slopes = {threshold: one - below}
    if threshold:
        # From slope * (x - threshold) to x is a jump, which takes one unit here.
        rise = threshold * one + below
        slopes = {threshold - 1: rise - below, threshold: one - rise}
    if layer.max_value is not None:
        slopes[round(math.ldexp(layer.max_value, fraction_bits))] = -one
    knots = sorted(slopes)
    changes = tuple(slopes[knot] for knot in knots)
    unit = 2.0**-fraction_bits
    return Pieces(tuple(knots), changes, below, -below * threshold, slope_bits, unit)


def _check_finite(layer: ReluLayer) -> None:
    top = math.inf if layer.max_value is None else layer.max_value
    if not (layer.threshold < top and math.isfinite(layer.threshold) and math.isfinite(layer.negative_slope)):
        raise UnsupportedModelError(
            f"layer {layer.name!r} has threshold {layer.threshold}, max_value {layer.max_value} and"
            f" negative_slope {layer.negative_slope}; expected numbers, the threshold below the max_value"
        )
