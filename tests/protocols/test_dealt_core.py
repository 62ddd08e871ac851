"""The gates of dealt mode, each prepared and run at once: value, cost, view and teeth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from fedsec.errors import UsageError
from fedsec.mpc import Party, simulate
from fedsec.mpc.dealt import DEALER, FIRST, LinearGate, Masks, Material, ReluGate
from fedsec.mpc.dealt.protocols import (
    dealt_conv2d,
    dealt_input,
    dealt_matmul,
    dealt_relu,
    dealt_truncate,
    run_alone,
)
from fedsec.mpc.party import Layout
from fedsec.mpc.patches import convolve
from fedsec.mpc.simulator import Draw, Received, View
from fedsec.ring import RING32, RING64, RingArray, fresh_stream, kernels, signed
from fedsec.sharing import replicated
from fedsec.sharing.replicated import RepShare
from fedsec.testing import Example, Secret, check_protocol, leaks
from fedsec.testing.checks import P_LIMIT, VIEW_LANES, check_value
from fedsec.testing.fixed_inputs import p_of_fixed_inputs

pytest_plugins = ["fedsec.testing"]


def _relu_agrees(bits: int, ignore_bits: int) -> Callable[[Any, Any], bool]:
    def agrees(result: Any, expected: Any) -> bool:
        return bool(_possible(signed(result), signed(expected) >> bits, ignore_bits).all())

    return agrees


def _possible(result: Any, floor: Any, ignore_bits: int) -> Any:
    """Return where a result is T, or 0 where T is small or negative, for T = floor or floor - 1."""
    right = np.zeros(result.shape, dtype=bool)
    for t in (floor, floor - 1):
        right |= (result == t) & (t >= 0)
        right |= (result == 0) & (t < 1 << ignore_bits)
    return right


def _floor_or_one_less(result: Any, expected: Any) -> bool:
    return bool(np.isin(expected - signed(result), (0, 1)).all())


@check_protocol(dealt_input, inputs={"x": Secret((2,))})
def test_dealt_input(x: Any) -> Any:
    return x


@check_protocol(
    dealt_matmul,
    inputs={"x": Secret((3,)), "w": Secret((3, 2), per_lane=False), "b": Secret((2,), per_lane=False)},
)
def test_dealt_matmul(x: Any, w: Any, b: Any) -> Any:
    return x @ w + b


@check_protocol(
    dealt_matmul,
    inputs={"x": Secret((3,)), "w": Secret((3, 1), per_lane=False), "b": Secret((1,), per_lane=False)},
    ring=RING32,
)
def test_dealt_matmul_in_the_32_bit_ring(x: Any, w: Any, b: Any) -> Any:
    return x @ w + b


@check_protocol(
    dealt_conv2d,
    inputs={
        "x": Secret((1, 3, 2)),
        "w": Secret((1, 2, 1, 2), per_lane=False),
        "b": Secret((2,), per_lane=False),
        "strides": (1, 1),
        "dilation": (1, 2),
    },
)
def test_dealt_conv2d(x: Any, w: Any, b: Any, strides: Any, dilation: Any) -> Any:
    return convolve(x, w, strides, dilation) + b


@check_protocol(
    dealt_relu,
    inputs={
        "x": Secret(low=-(2**9) + 2**3, high=2**9 - 1, fraction_bits=3, window_bits=10),
        "bits": 3,
        "window_bits": 7,
    },
    agrees=_relu_agrees(3, 0),
    ring=RING32,
)
def test_dealt_relu(x: Any, **_public: int) -> Any:
    return x


@check_protocol(
    dealt_relu,
    inputs={
        "x": Secret(low=-(2**15) + 2**5, high=2**15 - 1, fraction_bits=3, window_bits=4),
        "bits": 3,
        "window_bits": 13,
        "ignore_bits": 2,
        "ring": RING64,
    },
    agrees=_relu_agrees(3, 2),
    ring=RING32,
)
def test_dealt_relu_from_the_32_to_the_64_bit_ring(x: Any, **_public: int) -> Any:
    return x.astype(np.int32).astype(np.int64).astype(np.uint64)


@check_protocol(
    dealt_truncate,
    inputs={"x": Secret(low=-5000, high=5000, fraction_bits=4), "bits": 4, "window_bits": 10},
    agrees=_floor_or_one_less,
)
def test_dealt_truncate(x: Any, bits: int, window_bits: int) -> Any:
    return signed(x) >> bits


@check_protocol(
    dealt_truncate,
    inputs={"x": Secret(low=-5000, high=5000, fraction_bits=4), "bits": 4, "window_bits": 10, "ring": RING32},
    agrees=_floor_or_one_less,
)
def test_dealt_truncate_from_the_64_to_the_32_bit_ring(x: Any, bits: int, **_public: int) -> Any:
    return signed(x).astype(np.int32) >> bits


class _DigitsInTheClear(ReluGate):
    """The digits are opened without delta."""

    def deal(self, r: Any, shares: Any, masks: Sequence[Masks]) -> RingArray | None:
        none = np.zeros_like(masks[0][0])
        return super().deal(r, shares, [(none, none), *masks[1:]])

    def prepare(self, r: Any, shares: Any, masks: Any) -> tuple[Material, RingArray | None]:
        return super().prepare(r, shares, [np.zeros_like(masks[0]), *masks[1:]])


def _for_both(delta: RingArray) -> RingArray:
    """Return masks of digits of which the last of ten elements has that of the first."""
    first, others = delta & np.uint64(1), delta & ~np.uint64(1 << 9)
    return np.asarray(others | first << np.uint64(9))


class _OneDeltaForTwo(ReluGate):
    """Of the digits in one message two elements have one mask: their difference is open."""

    def deal(self, r: Any, shares: Any, masks: Sequence[Masks]) -> RingArray | None:
        first, second = masks[0]
        return super().deal(r, shares, [(_for_both(first), _for_both(second)), *masks[1:]])

    def prepare(self, r: Any, shares: Any, masks: Any) -> tuple[Material, RingArray | None]:
        return super().prepare(r, shares, [_for_both(masks[0]), *masks[1:]])


class _OneResultMaskForTwoLanes(ReluGate):
    """Of the results in one message two neighbours have one mask."""

    def deal(self, r: Any, shares: Any, masks: Sequence[Masks]) -> RingArray | None:
        for part in masks[1]:
            part[1::2] = part[::2]
        return super().deal(r, shares, masks)

    def prepare(self, r: Any, shares: Any, masks: Any) -> tuple[Material, RingArray | None]:
        masks[1][1::2] = masks[1][::2]
        return super().prepare(r, shares, masks)


class _UnmaskedField(ReluGate):
    """Evaluator 2 gets a dealt field in the clear; evaluator 1's share is zero."""

    field = 0

    def deal(self, r: Any, shares: Any, masks: Sequence[Masks]) -> RingArray | None:
        shares[self.field][...] = 0
        return super().deal(r, shares, masks)

    def prepare(self, r: Any, shares: Any, masks: Any) -> tuple[Material, RingArray | None]:
        own = [words.copy() for words in shares]
        if self.party_id == FIRST:
            own[self.field][...] = 0
        return super().prepare(r, own, masks)


class _UnmaskedSigns(_UnmaskedField):
    field = 2


class _UnmaskedRest(_UnmaskedField):
    field = 3


def _relu_by(gate: type[ReluGate]) -> Callable[..., RepShare]:
    def protocol(party: Party, x: RepShare) -> RepShare:
        source = Layout(x.shape[1:], x.ring)
        return run_alone(party, gate(party.id, source, bits=3, window_bits=7, ring=x.ring), [x], 0)

    return protocol


def _relu_example(gate: type[ReluGate], elements: int = 1) -> Example:
    return Example(
        _relu_by(gate),
        {"x": Secret((elements,), low=-(2**9) + 2**3, high=2**9 - 1, window_bits=10)},
        plain=lambda x: x,
        agrees=_relu_agrees(3, 0),
        ring=RING32,
    )


@pytest.mark.parametrize(
    "gate",
    [_DigitsInTheClear, _OneResultMaskForTwoLanes, _UnmaskedField, _UnmaskedSigns, _UnmaskedRest],
)
def test_a_relu_that_leaves_a_mask_out_is_noticed(gate: type[ReluGate], protocol_seed: bytes) -> None:
    check_value(_relu_example(gate), protocol_seed)
    assert leaks(_relu_example(gate), protocol_seed)


def test_a_relu_that_masks_two_digits_of_a_message_alike_is_noticed(protocol_seed: bytes) -> None:
    example = _relu_example(_OneDeltaForTwo, elements=10)

    check_value(example, protocol_seed)
    assert p_of_fixed_inputs(example, VIEW_LANES, protocol_seed, None) < P_LIMIT


class _MaskIsTheShare(LinearGate):
    """Evaluator 1 masks its part of the product with the words that are its share of what was dealt."""

    def deal(self, r: Any, shares: Any, masks: Sequence[Masks]) -> RingArray | None:
        return super().deal(r, shares, [(shares[0].copy(), masks[0][1])])

    def prepare(self, r: Any, shares: Any, masks: Any) -> tuple[Material, RingArray | None]:
        return super().prepare(r, shares, [shares[0]] if self.party_id == FIRST else masks)


def test_a_product_masked_with_its_own_share_is_noticed(protocol_seed: bytes) -> None:
    def protocol(party: Party, x: RepShare, w: RepShare) -> RepShare:
        bias = RepShare(np.zeros(1, x.ring.dtype), np.zeros(1, x.ring.dtype))
        return run_alone(party, _MaskIsTheShare(party.id, kernels.matmul, w, bias, (1,), ring=x.ring), [x], 0)

    example = Example(protocol, {"x": Secret((2,)), "w": Secret((2, 1), per_lane=False)})

    assert leaks(example, protocol_seed)


def _words_seen(view: View) -> set[int]:
    """Return every word that a party drew or received."""
    events = [event for call in view.calls for event in call if isinstance(event, Draw | Received)]
    return {int(word) for event in events for word in event.words.reshape(-1)}


def test_a_masked_value_and_its_mask_never_meet_in_one_view() -> None:
    stream = fresh_stream()
    x, w, b = (
        replicated.share(stream.words(shape) >> np.uint64(30), stream) for shape in ((5, 3), (3, 4), (4,))
    )

    def program(party: Party) -> list[RepShare]:
        values = [dealt_input(party, x[party.id])]
        values.append(dealt_matmul(party, values[-1], w[party.id], b[party.id]))
        values.append(dealt_relu(party, values[-1], bits=20, window_bits=40))
        values.append(dealt_truncate(party, values[-1], bits=0, window_bits=62))
        return values

    done = simulate(program, record=True)

    seen = [_words_seen(view) for view in done.views]
    for at_0, at_1, at_2 in zip(*done.results, strict=True):
        # What party i lacks of a value: 0 the masked value, 1 and 2 each other's part of the mask.
        for party_id, lacking in enumerate((at_1.next, at_2.next, at_0.next)):
            assert not seen[party_id] & {int(word) for word in lacking.reshape(-1)}
        assert np.array_equal(at_0.own, at_2.next)
        assert np.array_equal(at_0.next, at_1.own)
        assert np.array_equal(at_1.next, at_2.own)
    assert not done.views[DEALER].received()


def test_a_gate_whose_result_stays_in_shares_does_not_run_alone() -> None:
    x = RepShare(np.zeros((1, 2), np.uint64), np.zeros((1, 2), np.uint64))
    gate = ReluGate(0, Layout((2,), RING64), bits=0, window_bits=5, ring=RING64, final=True)

    with pytest.raises(UsageError, match="opens its result"):
        simulate(lambda party: run_alone(party, gate, [x], 0))


@pytest.mark.parametrize(("bits", "window_bits"), [(0, 65), (60, 5), (-1, 4)])
def test_a_window_that_does_not_fit_is_refused(bits: int, window_bits: int) -> None:
    shares = replicated.share(np.zeros((1, 1), dtype=np.uint64), fresh_stream())

    with pytest.raises(UsageError, match="window"):
        simulate(lambda party: dealt_relu(party, shares[party.id], bits=bits, window_bits=window_bits))
    with pytest.raises(UsageError, match="window"):
        simulate(lambda party: dealt_truncate(party, shares[party.id], bits=bits, window_bits=window_bits))
