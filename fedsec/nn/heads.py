"""What is made of the logits before an answer is revealed: softmax, or the places of the largest.

A head is public and the same for all plans with as many classes and the same bound. Every party and every
user makes it from the plan, so that it must not depend on a machine's floating point: its numbers come from
``decimal``, which rounds alike everywhere.
"""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Context, Decimal
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

from fedsec.errors import UnsupportedModelError, UsageError
from fedsec.mpc.randomised_response import ResponseLaw
from fedsec.nn.base import Value
from fedsec.nn.gates import (
    WIDEST_ORDER,
    Multiply,
    PiecewiseLinear,
    RandomisedResponse,
    ReduceMax,
    TopK,
    Truncate,
)
from fedsec.nn.pieces import Pieces, join
from fedsec.nn.steps import Add, AddConstant, ReduceSum

if TYPE_CHECKING:
    from fedsec.nn.plan import Plan, Reveal, Step

MOST_CLASSES = 1024

LABEL_BITS = 11
"""Fraction bits of logits that are ordered: those nearer than 2^-11 to each other may change places."""

FEWEST_BITS = 6
"""Fraction bits of logits that are compared, at least, however large they can be."""

_ARGUMENT_BITS = 14
"""Fraction bits of what goes into the exponential function."""

_VALUE_BITS = 16
"""Fraction bits of exponentials, of their sum and of its reciprocal."""

_EXP_PIECES = 24
_EXP_ERROR = 2.0**-11
_RECIPROCAL_PIECES = 46
"""For infinitely many classes; fewer classes need fewer."""

_RECIPROCAL_ERROR = 2.0**-11.5

_DECIMAL = Context(prec=40)


def with_head(plan: Plan, reveal: Reveal, label_epsilon: float | None = None) -> Plan:
    """Return a plan that goes on from the logits to what is revealed.

    Args:
        plan: Gives logits, one a class.
        reveal: ``label`` is the index of the largest logit, ``top3`` the indices of the three largest, or of
            all if there are fewer; of equal ones the lowest index comes first. ``probabilities`` are the
            softmax of the logits.
        label_epsilon: If given, the label is answered by randomised response, of at most so much epsilon.

    Raises:
        UnsupportedModelError: If the answer is no list of 2 to 1024 classes.
        UsageError: If there is no such way to reveal, or something else than a label is to be noisy.
    """
    if label_epsilon is not None and reveal != "label":
        raise UsageError(
            f"{reveal} cannot be revealed with noise: only the label has a law; reveal label alone"
        )
    logits = plan.values[-1]
    if len(logits.shape) != 1 or not 2 <= logits.shape[0] <= MOST_CLASSES:
        raise UnsupportedModelError(
            f"model {plan.name!r} answers {list(logits.shape)}, which are no logits of 2 to {MOST_CLASSES}"
            f" classes: {reveal} cannot be revealed; reveal logits, or end the model with a Dense layer"
        )
    match reveal:
        case "label":
            steps: list[Step] = [_largest(len(plan.layers), logits, 1)]
            if label_epsilon is not None:
                law = ResponseLaw.of(logits.shape[0], label_epsilon)
                steps.append(_response(len(plan.layers) + 1, law))
        case "top3":
            steps = [_largest(len(plan.layers), logits, min(3, logits.shape[0]))]
        case "probabilities":
            steps = _softmax(len(plan.layers), logits)
        case _:
            raise UsageError(f"{reveal!r} cannot be revealed; expected logits, probabilities, label or top3")
    layers = (*plan.layers, *steps)
    return msgspec.structs.replace(plan, layers=layers, output_shape=steps[-1].output_shape)


def softmax_error(classes: int) -> float:
    """Bound the distance of probabilities from the softmax of the logits that were computed.

    Args:
        classes: Number of logits.
    """
    # Differences of truncated logits are off by two units at most, and exponentials by as much or less.
    exponential = _EXP_ERROR + 2 * 2.0**-_ARGUMENT_BITS + 2.0 ** (1 - _VALUE_BITS)
    reciprocal = _RECIPROCAL_ERROR + 2.0 ** (1 - _VALUE_BITS)
    # The sum is off by that many exponentials. It is at least 1, and its reciprocal at most.
    return (exponential * (classes + 1) + reciprocal) * (1 + 2 * exponential * classes)


def _largest(value: int, logits: Value, k: int) -> TopK:
    dropped = _dropped(logits, 2 * logits.bound, LABEL_BITS)
    return TopK(
        name=f"largest {k}",
        inputs=(value,),
        input_shape=logits.shape,
        output_shape=(k,),
        k=k,
        bits=dropped,
        window_bits=_width(2 * logits.bound, logits.fraction_bits - dropped),
    )


def _response(value: int, law: ResponseLaw) -> RandomisedResponse:
    return RandomisedResponse(
        name="noisy label",
        inputs=(value,),
        input_shape=(1,),
        output_shape=(1,),
        classes=law.classes,
        table_bits=law.bits,
        others=law.others,
    )


def _softmax(value: int, logits: Value) -> list[Step]:
    """Return softmax, of differences from the largest logit so that no exponential is above 1."""
    shape, one = logits.shape, (1,)
    span = max(2 * logits.bound, 16.0)
    dropped = _dropped(logits, span, _ARGUMENT_BITS)
    bits = logits.fraction_bits - dropped
    centred, short, largest, below, exponentials, total, reciprocal = range(value + 1, value + 8)
    return [
        # What dropping bits loses on average, as biases make up for it before other truncations.
        AddConstant(
            name="softmax centre",
            inputs=(value,),
            input_shape=shape,
            output_shape=shape,
            constant=2.0**-bits,
        ),
        Truncate(
            name="softmax truncate",
            inputs=(centred,),
            input_shape=shape,
            output_shape=shape,
            bits=dropped,
            window_bits=_width(2 * logits.bound, bits),
        ),
        ReduceMax(
            name="softmax largest",
            inputs=(short,),
            input_shape=shape,
            output_shape=one,
            window_bits=_width(span, bits),
        ),
        Add(
            name="softmax below the largest",
            inputs=(short, largest),
            input_shapes=(shape, one),
            output_shape=shape,
            signs=(1, -1),
        ),
        _function("softmax exponential", below, shape, _exponential(bits), (span, bits)),
        ReduceSum(name="softmax sum", inputs=(exponentials,), input_shape=shape, output_shape=one),
        _function("softmax reciprocal", total, one, _reciprocal(shape[0]), (2.0 * shape[0], _VALUE_BITS)),
        Multiply(
            name="softmax",
            inputs=(exponentials, reciprocal),
            input_shapes=(shape, one),
            output_shape=shape,
        ),
    ]


def _function(
    name: str, value: int, shape: tuple[int, ...], pieces: Pieces, argument: tuple[float, int]
) -> PiecewiseLinear:
    """Return a function that is at most 1, of arguments of a size and with fraction bits."""
    size, bits = argument
    return PiecewiseLinear(
        name=name,
        inputs=(value,),
        input_shape=shape,
        output_shape=shape,
        window_bits=_width(size, bits),
        knots=pieces.knots,
        slopes=pieces.slopes,
        first_slope=pieces.first_slope,
        offset=pieces.offset,
        slope_bits=pieces.slope_bits,
        bits=bits + pieces.slope_bits - _VALUE_BITS,
        bound=2.0,
        error=pieces.error,
    )


def _dropped(logits: Value, size: float, bits: int) -> int:
    """Return how many bits are dropped from logits so that ``bits`` are left, or fewer if they are large.

    Raises:
        UnsupportedModelError: If they are too large for their differences to be compared.
    """
    left = min(bits, WIDEST_ORDER - 1 - math.frexp(size)[1])
    if left < FEWEST_BITS:
        raise UnsupportedModelError(
            f"logits can be as large as {logits.bound:g}, of which a comparison would look at {left} fraction"
            f" bits, fewer than {FEWEST_BITS}; reveal logits, or train with smaller parameters (for example"
            " weight decay)"
        )
    return max(logits.fraction_bits - left, 0)


def _width(size: float, fraction_bits: int) -> int:
    """Return the window of values up to ``size`` and a few units, for which frexp leaves room."""
    return max(2, 1 + fraction_bits + math.frexp(size)[1])


@lru_cache(maxsize=64)
def _exponential(fraction_bits: int) -> Pieces:
    """Return exp(x) for x <= 0.

    With u = exp(x / 2), equal steps of u bend alike, and chords that are moved down by s = 1 / (2n)^2 are off
    by s on both sides. They begin where exp(x) = s, at a height of 0.
    """
    n, slope_bits = _EXP_PIECES, 16
    moved = Decimal(1) / (2 * n) ** 2
    start = Decimal(1) / (2 * n)
    steps = [_DECIMAL.add(start, (1 - start) * k / n) for k in range(n + 1)]
    knots = [_rounded(2 * u.ln(_DECIMAL), fraction_bits) for u in steps]
    heights = [_rounded(u * u - moved, fraction_bits + slope_bits) for u in steps]
    return replace(join(knots, heights, (0, None), slope_bits), error=_EXP_ERROR)


@lru_cache(maxsize=64)
def _reciprocal(classes: int) -> Pieces:
    """Return 1 / x for x from 1 to the number of classes.

    With v = 1 / sqrt(x), equal steps d of v bend alike, and chords that are moved down by d^2 / 2 are off by
    that on both sides.
    """
    last = 1 / Decimal(classes).sqrt(_DECIMAL)
    n = max(2, math.ceil(_RECIPROCAL_PIECES * (1 - last)))
    # The last pieces are long and flat.
    slope_bits = 17 + (3 * classes.bit_length()) // 2
    moved = ((1 - last) / n) ** 2 / 2
    steps = [1 - (1 - last) * k / n for k in range(n + 1)]
    knots = [_rounded(1 / (v * v), _VALUE_BITS) for v in steps]
    heights = [_rounded(v * v - moved, _VALUE_BITS + slope_bits) for v in steps]
    return replace(join(knots, heights, (None, None), slope_bits), error=_RECIPROCAL_ERROR)


def _rounded(number: Decimal, fraction_bits: int) -> int:
    return int((number * (1 << fraction_bits)).to_integral_value(context=_DECIMAL))
