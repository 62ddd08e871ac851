"""Masks of dealt gates left out or used for two things: answers stay right, the view check must tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest

from fedsec.mpc import Party
from fedsec.mpc.dealt import Gate
from fedsec.mpc.dealt.maximum import MaximumGate
from fedsec.mpc.dealt.piecewise import Pieces, PiecewiseGate
from fedsec.mpc.dealt.protocols import run_alone
from fedsec.mpc.dealt.ranking import LargestAtOnceGate, TopKGate
from fedsec.mpc.party import Layout
from fedsec.ring import RING64, RingArray
from fedsec.sharing.replicated import RepShare
from fedsec.testing import Example, Secret
from fedsec.testing.checks import P_LIMIT
from fedsec.testing.fixed_inputs import p_of_fixed_inputs

pytestmark = pytest.mark.slow  # what the checks of the gates would have to notice; 14 s

pytest_plugins = ["fedsec.testing"]

LANES = 1 << 13
WINDOW_BITS = 8

Change = Callable[[Sequence[RingArray]], None]
"""Spoils the masks of a gate in place, at all three parties alike."""


def _spoiled(gate: Gate, change: Change) -> Gate:
    deal, prepare = gate.deal, gate.prepare

    def spoiled_deal(r: Any, shares: Any, masks: Any) -> Any:
        for part in zip(*masks, strict=True):
            change(part)
        return deal(r, shares, masks)

    def spoiled_prepare(r: Any, shares: Any, masks: Any) -> Any:
        change(masks)
        return prepare(r, shares, masks)

    gate.deal, gate.prepare = spoiled_deal, spoiled_prepare  # type: ignore[method-assign]
    return gate


def _left_out(mask: int) -> Change:
    def change(masks: Sequence[RingArray]) -> None:
        masks[mask][...] = 0

    return change


def _of_another(mask: int, other: int) -> Change:
    def change(masks: Sequence[RingArray]) -> None:
        masks[mask][...] = masks[other]

    return change


def _word_of(mask: int, element: int, other: int) -> Change:
    def change(masks: Sequence[RingArray]) -> None:
        words = masks[mask].reshape(len(masks[mask]), -1)
        words[:, element] = words[:, other]

    return change


def _digit_of(element: int, other: int) -> Change:
    def change(masks: Sequence[RingArray]) -> None:
        masks[0][...] &= ~np.uint64(1 << element)
        masks[0][...] |= (masks[0] >> np.uint64(other) & np.uint64(1)) << np.uint64(element)

    return change


def _nothing(masks: Sequence[RingArray]) -> None:
    pass


class _Kind(NamedTuple):
    make: Callable[[int, Layout], Gate]
    inputs: dict[str, Secret]


def _secret(elements: int) -> Secret:
    return Secret((elements,), low=-30, high=30)


MAXIMUM = _Kind(
    lambda i, source: MaximumGate(i, source, window_bits=WINDOW_BITS), {"x": _secret(2), "y": _secret(2)}
)
TOP_2 = _Kind(lambda i, source: TopKGate(i, source, 2, bits=0, window_bits=WINDOW_BITS), {"x": _secret(4)})
LARGEST = _Kind(lambda i, source: LargestAtOnceGate(i, source, window_bits=WINDOW_BITS), {"x": _secret(4)})
PIECES = _Kind(
    lambda i, source: PiecewiseGate(
        i, source, Pieces((-20, 0, 20), (3, -5, 7), 1, 2), window_bits=WINDOW_BITS, bits=4, ring=RING64
    ),
    {"x": _secret(1)},
)


def _p(kind: _Kind, change: Change, seed: bytes) -> float:
    def protocol(party: Party, **inputs: RepShare) -> RepShare:
        values = list(inputs.values())
        gate = kind.make(party.id, Layout(values[0].shape[1:], RING64))
        return run_alone(party, _spoiled(gate, change), values, 0)

    return p_of_fixed_inputs(Example(protocol, kind.inputs), LANES, seed, None)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        pytest.param(MAXIMUM, _left_out(0), id="maximum: no delta"),
        pytest.param(MAXIMUM, _left_out(1), id="maximum: result in the clear"),
        pytest.param(MAXIMUM, _digit_of(1, 0), id="maximum: one delta for two elements"),
        pytest.param(MAXIMUM, _word_of(1, 1, 0), id="maximum: one mask for two results"),
        pytest.param(TOP_2, _digit_of(5, 0), id="top 2: one delta for two pairs"),
        pytest.param(TOP_2, _left_out(1), id="top 2: wins in the clear"),
        pytest.param(TOP_2, _word_of(1, 3, 0), id="top 2: one mask for two wins"),
        pytest.param(TOP_2, _word_of(2, 1, 0), id="top 2: one mask for two indices"),
        pytest.param(LARGEST, _word_of(1, 2, 1), id="largest: one mask for two wins"),
        pytest.param(LARGEST, _left_out(2), id="largest: result in the clear"),
        pytest.param(PIECES, _digit_of(2, 0), id="pieces: one delta for two knots"),
        pytest.param(PIECES, _left_out(1), id="pieces: sum in the clear"),
        pytest.param(PIECES, _of_another(2, 1), id="pieces: the sum's mask for the result"),
    ],
)
def test_a_mask_left_out_or_used_for_two_is_noticed(
    kind: _Kind, change: Change, protocol_seed: bytes
) -> None:
    assert _p(kind, change, protocol_seed) < P_LIMIT


@pytest.mark.parametrize("kind", [MAXIMUM, TOP_2, LARGEST, PIECES])
def test_the_gates_as_they_are_hide_their_inputs(kind: _Kind, protocol_seed: bytes) -> None:
    assert _p(kind, _nothing, protocol_seed) > P_LIMIT
