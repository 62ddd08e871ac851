"""A plan's steps over replicated shares: what each of the three computing parties runs in plain mode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import assert_never

import numpy as np

from fedsec.errors import InputError
from fedsec.mpc import (
    Pair,
    Party,
    conv2d,
    conv2d_pair,
    matmul,
    matmul_pair,
    max_pool,
    multiply,
    piecewise_linear,
    reduce_max,
    share_pair,
    top_k,
    truncate,
    truncated_relu,
)
from fedsec.mpc.dealt.responses import randomised_response
from fedsec.mpc.two_holders import known_word
from fedsec.nn import local, windows
from fedsec.nn.plan import (
    Conv2D,
    Dense,
    Gate,
    Linear,
    Local,
    MaxPool2D,
    Multiply,
    PiecewiseLinear,
    Plan,
    RandomisedResponse,
    ReduceMax,
    Relu,
    Scale,
    TopK,
    Truncate,
)
from fedsec.nn.weights import check_shares
from fedsec.ring import Ring, RingArray
from fedsec.sharing.replicated import RepShare


def predict(party: Party, plan: Plan, weights: Sequence[RepShare], x: RepShare) -> RepShare:
    """Compute a network on a batch, parameters and inputs both secret.

    Args:
        party: This party's side of the session.
        plan: The public steps; the same at all three parties.
        weights: This party's shares of the parameters, in the plan's order; as they came, or ``in_rings``.
        x: Its shares of the inputs, shape [N, *input shape], encoded with the plan's fraction bits.

    Returns:
        Shares of the answers, shape [N, *output shape]; their ``fraction_bits`` are the plan's
        ``output_fraction_bits``.

    Raises:
        InputError: If shapes or fraction bits are not those of the plan; nothing was sent.
        PeerLostError, DeadlineError, ProtocolError: As the protocols. The session is over.

    Security: every message is one of the protocols' own; sums, padding and reshaping are local. An input
    outside of the plan's range gives an arbitrary answer in its own row of the batch and in no other.
    """
    check_shares(plan, weights)
    if x.shape[1:] != plan.input_shape or x.fraction_bits != plan.fraction_bits:
        raise InputError(
            f"plan {plan.name!r} takes [N, {', '.join(map(str, plan.input_shape))}] with {plan.fraction_bits}"
            f" fraction bits, got {list(x.shape)} with {x.fraction_bits}"
        )
    parameters = iter(in_rings(plan, weights))
    pairs = _only_cut(plan)
    values: dict[int, RepShare | Pair] = {0: _in_ring(x, plan.input_ring_bits)}
    for number, step in enumerate(plan.layers):
        inputs = [values[value] for value in step.inputs]
        if isinstance(step, Linear):
            values[number + 1] = _linear(party, step, inputs, parameters, pair=number + 1 in pairs)
        else:
            values[number + 1] = _apply(party, step, inputs)
        for value in step.inputs:
            if plan.last_uses[value] == number:
                values.pop(value, None)
    return _replicated(party, values[len(plan.layers)])


def in_rings(plan: Plan, weights: Sequence[RepShare]) -> list[RepShare]:
    """Return shares of parameters in the rings of their steps: words of 32 bits are the lowest 32 of 64.

    Worth doing once for many predictions: ``predict`` then has nothing to copy.
    """
    rings = [
        plan.inputs_of(number)[0].ring_bits
        for number, step in enumerate(plan.layers)
        if isinstance(step, Linear)
    ]
    return [
        _in_ring(share, ring_bits)
        for share, ring_bits in zip(weights, np.repeat(rings, 2).tolist(), strict=True)
    ]


def _in_ring(x: RepShare, ring_bits: int) -> RepShare:
    dtype = Ring(ring_bits).dtype
    return RepShare(x.own.astype(dtype, copy=False), x.next.astype(dtype, copy=False), x.fraction_bits)


def _only_cut(plan: Plan) -> set[int]:
    """Return the values that only gates take that cut bits, through local steps or at once.

    A product of which that is so need not be replicated.
    """
    found = set(range(1, len(plan.values) - 1))
    for number in reversed(range(len(plan.layers))):
        step = plan.layers[number]
        passed_on = isinstance(step, Local) and number + 1 in found
        if not (passed_on or isinstance(step, Truncate | Relu | PiecewiseLinear)):
            found -= set(step.inputs)
    return found


def _replicated(party: Party, x: RepShare | Pair) -> RepShare:
    return share_pair(party, x) if isinstance(x, Pair) else x


def _linear(
    party: Party,
    step: Conv2D | Dense,
    inputs: Sequence[RepShare | Pair],
    parameters: Iterator[RepShare],
    *,
    pair: bool,
) -> RepShare | Pair:
    x = _replicated(party, inputs[0])
    kernel, bias = next(parameters), next(parameters)
    if isinstance(step, Dense):
        rows = x.reshape(-1, x.shape[-1])
        if pair:
            cut = matmul_pair(party, rows, kernel).plus(party, bias)
            return cut.reshape(x.shape[0], *step.output_shape)
        return (matmul(party, rows, kernel) + bias).reshape(x.shape[0], *step.output_shape)
    boxed = RepShare(_boxed(step, x.own), _boxed(step, x.next), x.fraction_bits)
    if pair:
        return conv2d_pair(party, boxed, kernel, step.strides, step.dilation).plus(party, bias)
    return conv2d(party, boxed, kernel, step.strides, step.dilation) + bias


def _boxed(step: Conv2D, images: RingArray) -> RingArray:
    padded = windows.pad(images, step.padding)
    return np.ascontiguousarray(windows.box_sum(padded, step.box, step.box_step))


def _apply(party: Party, step: Local | Gate, inputs: Sequence[RepShare | Pair]) -> RepShare | Pair:
    match step:
        case Multiply():
            x, y = (_with_rank(_replicated(party, value), len(step.output_shape)) for value in inputs)
            return multiply(party, x, y)
        case Truncate() | Relu() | PiecewiseLinear():
            return _cut(party, step, inputs[0])
        case MaxPool2D() | ReduceMax() | TopK():
            return _compare(party, step, _replicated(party, inputs[0]))
        case RandomisedResponse():
            return randomised_response(party, _replicated(party, inputs[0]), step.law)
        case _:
            return _locally(party, step, inputs)


def _locally(party: Party, step: Local, inputs: Sequence[RepShare | Pair]) -> RepShare | Pair:
    """Compute a step that is linear with public constants on every component alike, without a message."""
    bits = inputs[0].fraction_bits + (step.fraction_bits if isinstance(step, Scale) else 0)
    constant = local.constant_of(step, bits, inputs[0].ring)
    shares = [x for x in inputs if isinstance(x, RepShare)]
    if len(shares) == len(inputs):
        own, following = (
            np.ascontiguousarray(local.apply(step, parts))
            for parts in ([x.own for x in shares], [x.next for x in shares])
        )
        replicated = RepShare(own, following, bits)
        return replicated if constant is None else replicated.add_public(party.id, constant)
    known = local.apply(step, [known_word(party, x) for x in inputs])
    # What party 0 knows is one summand of two, so it alone adds a constant.
    return Pair(np.ascontiguousarray(known if constant is None or party.id else known + constant), bits)


def _with_rank(x: RepShare, rank: int) -> RepShare:
    return RepShare(windows.with_rank(x.own, rank), windows.with_rank(x.next, rank), x.fraction_bits)


def _cut(party: Party, step: Truncate | Relu | PiecewiseLinear, x: RepShare | Pair) -> RepShare:
    ring = Ring(step.ring_bits)
    match step:
        case Truncate():
            return truncate(party, x, step.bits, ring=ring)
        case Relu():
            return truncated_relu(party, x, step.bits, step.window_bits, step.ignore_bits, ring=ring)
        case PiecewiseLinear():
            y = piecewise_linear(
                party,
                x,
                step.knots,
                step.slopes,
                first_slope=step.first_slope,
                offset=step.offset,
                slope_bits=step.slope_bits,
                window_bits=step.window_bits,
            )
            return truncate(party, y, step.bits, ring=ring)
        case _:
            assert_never(step)


def _compare(party: Party, step: MaxPool2D | ReduceMax | TopK, x: RepShare) -> RepShare:
    match step:
        case MaxPool2D():
            own, following = (windows.repeat_edge(part, step.padding) for part in (x.own, x.next))
            padded = RepShare(own, following, x.fraction_bits)
            return max_pool(party, padded, step.pool, step.strides, step.window_bits)
        case ReduceMax():
            return reduce_max(party, x, step.window_bits)
        case TopK():
            return top_k(party, truncate(party, x, step.bits), step.k, step.window_bits)
        case _:
            assert_never(step)
