"""A plan's steps over shares: what each of the three computing parties runs for a prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fedsec.errors import InputError, UnsupportedModelError
from fedsec.mpc import Party, conv2d, matmul, relu, sum_pool, truncate
from fedsec.nn import windows
from fedsec.nn.plan import Conv2D, Dense, Plan, Relu, Reshape, Step, SumPool2D, Truncate
from fedsec.nn.weights import check_shares
from fedsec.ring import RingArray
from fedsec.sharing.replicated import RepShare


def predict(party: Party, plan: Plan, weights: Sequence[RepShare], x: RepShare) -> RepShare:
    """Compute a network on a batch, parameters and inputs both secret.

    Args:
        party: This party's side of the session.
        plan: The public steps; the same at all three parties.
        weights: This party's shares of the parameters, in the plan's order.
        x: Its shares of the inputs, shape [N, *input shape], encoded with the plan's fraction bits.

    Returns:
        Shares of the logits, shape [N, *output shape]; their ``fraction_bits`` are the plan's
        ``output_fraction_bits``.

    Raises:
        InputError: If shapes or fraction bits are not those of the plan; nothing was sent.
        PeerLostError, DeadlineError, ProtocolError: As the protocols. The session is over.

    Security: every message is one of the protocols' own (``matmul``, ``conv2d``, ``truncate``, ``relu``); box
    sums, padding and reshaping are local. An input outside of the plan's range gives an arbitrary answer in
    its own row of the batch and in no other.
    """
    check_shares(plan, weights)
    if x.shape[1:] != plan.input_shape or x.fraction_bits != plan.fraction_bits:
        raise InputError(
            f"plan {plan.name!r} takes [N, {', '.join(map(str, plan.input_shape))}] with {plan.fraction_bits}"
            f" fraction bits, got {list(x.shape)} with {x.fraction_bits}"
        )
    parameters = iter(weights)
    values: dict[int, RepShare] = {0: x}
    for number, step in enumerate(plan.layers):
        values[number + 1] = _apply(party, step, [values[value] for value in step.inputs], parameters)
        for value in step.inputs:
            if plan.last_uses[value] == number:
                values.pop(value, None)
    return values[len(plan.layers)]


def _apply(party: Party, step: Step, inputs: list[RepShare], parameters: Iterator[RepShare]) -> RepShare:
    (x,) = inputs
    match step:
        case Conv2D():
            boxed = _locally(
                x, lambda part: windows.box_sum(windows.pad(part, step.padding), step.box, step.box_step)
            )
            return conv2d(party, boxed, next(parameters), step.strides) + next(parameters)
        case Dense():
            return matmul(party, x, next(parameters)) + next(parameters)
        case SumPool2D():
            return sum_pool(x, step.pool, step.strides)
        case Truncate():
            return truncate(party, x, step.bits)
        case Relu():
            return relu(party, truncate(party, x, step.bits), step.window_bits)
        case Reshape():
            return x.reshape(x.shape[0], *step.output_shape)
        case _:
            raise UnsupportedModelError(f"step {step.name!r} cannot be computed on shares yet")


def _locally(x: RepShare, function: Callable[[RingArray], RingArray]) -> RepShare:
    """Apply a linear function with public constants: both halves of the share, no message."""
    return RepShare(
        np.ascontiguousarray(function(x.own)), np.ascontiguousarray(function(x.next)), x.fraction_bits
    )
