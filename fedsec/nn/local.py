"""A plan's local steps on ring elements: what a party does to its shares, or to masks, without a message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import numpy as np

from fedsec.nn import windows
from fedsec.nn.plan import (
    Add,
    AddConstant,
    Concatenate,
    Local,
    Pad2D,
    ReduceSum,
    Reshape,
    Scale,
    SumPool2D,
)
from fedsec.ring import Ring, RingArray, encode, ring_of


def apply(step: Local, inputs: Sequence[RingArray]) -> RingArray:
    """Return the linear part of a step, the same for every summand of a value; constants are left out.

    Args:
        step: The step.
        inputs: One summand of each input, [N, *shape], all of one ring.

    Returns:
        The same summand of the result, [N, *output shape]; may be a view of an input.
    """
    if isinstance(step, Add):
        return _signed_sum(step, inputs)
    if isinstance(step, Concatenate):
        return np.concatenate(inputs, axis=step.axis + 1)
    return _of_one(step, inputs[0])


def constant_of(step: Local, fraction_bits: int, ring: Ring) -> RingArray | None:
    """Return what a step adds to one summand of its result, a single word, or None.

    Args:
        step: The step.
        fraction_bits: Fraction bits of the result.
        ring: Ring of the result.
    """
    if not isinstance(step, AddConstant):
        return None
    return encode(np.array(step.constant), fraction_bits, ring)


def _of_one(
    step: SumPool2D | Reshape | Pad2D | Scale | AddConstant | ReduceSum, words: RingArray
) -> RingArray:
    result = words
    match step:
        case SumPool2D():
            result = windows.sum_pool(windows.pad(words, step.padding), step.pool, step.strides)
        case Reshape():
            result = words.reshape(len(words), *step.output_shape)
        case Pad2D():
            result = windows.pad(words, step.padding)
        case Scale():
            result = _scaled(step, words)
        case AddConstant():
            pass
        case ReduceSum():
            result = words.sum(axis=-1, keepdims=True, dtype=words.dtype)
        case _:
            assert_never(step)
    return result


def _signed_sum(step: Add, inputs: Sequence[RingArray]) -> RingArray:
    first, *others = inputs
    total: RingArray = first.copy() if step.signs[0] > 0 else np.negative(first)
    for sign, words in zip(step.signs[1:], others, strict=True):
        (np.add if sign > 0 else np.subtract)(total, words, out=total)
    return total


def _scaled(step: Scale, words: RingArray) -> RingArray:
    ring = ring_of(words)
    factors = np.array([factor % ring.modulus for factor in step.factors], dtype=ring.dtype)
    product: RingArray = words * windows.spread(factors, step.input_shape)
    return product
