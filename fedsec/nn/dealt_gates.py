"""Which gate of dealt mode a plan's step is."""

from __future__ import annotations

from collections.abc import Sequence

from fedsec.errors import UnsupportedModelError
from fedsec.mpc.dealt import Gate, ReluGate, TruncateGate
from fedsec.mpc.party import Layout
from fedsec.nn.plan import Gate as GateStep
from fedsec.nn.plan import Relu, Truncate
from fedsec.ring import Ring


def gate_of(party_id: int, step: GateStep, inputs: Sequence[Layout], *, final: bool) -> Gate:
    """Return the gate of a step.

    Args:
        party_id: Id of this party.
        step: The step.
        inputs: Shapes and rings of its inputs.
        final: Whether the result stays in additive shares.

    Raises:
        UnsupportedModelError: Dealt mode has no gate for the step.
        UsageError: A window does not fit.
    """
    match step:
        case Relu():
            return ReluGate(
                party_id,
                inputs[0],
                bits=step.bits,
                window_bits=step.window_bits,
                ignore_bits=step.ignore_bits,
                ring=Ring(step.ring_bits),
                final=final,
            )
        case Truncate():
            return TruncateGate(
                party_id,
                inputs[0],
                bits=step.bits,
                window_bits=step.window_bits,
                ring=Ring(step.ring_bits),
                final=final,
            )
        case _:
            raise UnsupportedModelError(
                f"step {step.name!r} cannot be computed in dealt mode; use plain mode"
            )
