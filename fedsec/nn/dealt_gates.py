"""Which gate of dealt mode a plan's step is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import assert_never

from fedsec.mpc.dealt import Gate, ReluGate, TruncateGate
from fedsec.mpc.dealt.maximum import Gather, LargestGate, windows_of
from fedsec.mpc.dealt.piecewise import Pieces, PiecewiseGate
from fedsec.mpc.dealt.products import MultiplyGate
from fedsec.mpc.dealt.ranking import TopKGate, largest_of_last_axis
from fedsec.mpc.dealt.responses import ResponseGate
from fedsec.mpc.party import Layout
from fedsec.nn import windows
from fedsec.nn.plan import Gate as GateStep
from fedsec.nn.plan import (
    MaxPool2D,
    Multiply,
    PiecewiseLinear,
    RandomisedResponse,
    ReduceMax,
    Relu,
    TopK,
    Truncate,
)
from fedsec.ring import Ring, RingArray


def gate_of(party_id: int, step: GateStep, inputs: Sequence[Layout], *, final: bool) -> Gate:
    """Return the gate of a step.

    Args:
        party_id: Id of this party.
        step: The step.
        inputs: Shapes and rings of its inputs.
        final: Whether the result stays in additive shares.

    Raises:
        UsageError: A window does not fit, or is wider than there are tables for.
    """
    match step:
        case Relu() | Truncate():
            return _truncating(party_id, step, inputs[0], final=final)
        case Multiply():
            return MultiplyGate(party_id, *inputs, final=final)
        case MaxPool2D():
            return LargestGate(party_id, inputs[0], _gathers(step), window_bits=step.window_bits, final=final)
        case ReduceMax():
            return largest_of_last_axis(party_id, inputs[0], window_bits=step.window_bits, final=final)
        case PiecewiseLinear():
            return PiecewiseGate(
                party_id,
                inputs[0],
                Pieces(step.knots, step.slopes, step.first_slope, step.offset),
                window_bits=step.window_bits,
                bits=step.bits,
                ring=Ring(step.ring_bits),
                final=final,
            )
        case TopK() | RandomisedResponse():
            return _labelling(party_id, step, inputs[0], final=final)
        case _:
            assert_never(step)


def _labelling(party_id: int, step: TopK | RandomisedResponse, source: Layout, *, final: bool) -> Gate:
    if isinstance(step, RandomisedResponse):
        return ResponseGate(party_id, step.law, final=final)
    return TopKGate(party_id, source, step.k, bits=step.bits, window_bits=step.window_bits, final=final)


def _truncating(party_id: int, step: Relu | Truncate, source: Layout, *, final: bool) -> Gate:
    ring = Ring(step.ring_bits)
    if isinstance(step, Truncate):
        return TruncateGate(
            party_id, source, bits=step.bits, window_bits=step.window_bits, ring=ring, final=final
        )
    return ReluGate(
        party_id,
        source,
        bits=step.bits,
        window_bits=step.window_bits,
        ignore_bits=step.ignore_bits,
        ring=ring,
        final=final,
    )


def _gathers(step: MaxPool2D) -> tuple[Gather, ...]:
    first, *others = windows_of(step.pool, step.strides)
    return (partial(_behind_the_edge, first, step.padding), *others)


def _behind_the_edge(
    gather: Gather, padding: tuple[windows.Pair, windows.Pair], images: RingArray
) -> RingArray:
    """Gather from images whose border is repeated outwards, which changes no maximum."""
    return gather(windows.repeat_edge(images, padding))
