"""Mistakes that someone could make inside the protocols: results stay right (or nearly), the views must tell.

The four broken streams of ``fedsec.testing`` are checked for every protocol; these are further, by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fedsec.mpc import (
    Party,
    and_bits,
    comparison,
    is_negative,
    matmul,
    multiply,
    reshare,
    select,
    signs,
    truncate,
    truncated_relu,
    two_holders,
    two_parties,
)
from fedsec.mpc.party import BIT_WORDS, Stream
from fedsec.mpc.signs import SignMasks
from fedsec.mpc.simulator import RecordingParty
from fedsec.ring import Ring, RingArray, ring_of, signed
from fedsec.sharing.boolean import BitShare
from fedsec.testing import Additive, Bits, Example, Secret, leaks, view_report
from fedsec.testing.checks import check_value

pytest_plugins = ["fedsec.testing"]


def _is_floor_or_one_less(result: Any, expected: Any) -> bool:
    return bool(np.isin(expected - signed(result), (0, 1)).all())


TRUNCATE = Example(
    truncate,
    {"x": Secret(low=-5000, high=5000, fraction_bits=13), "bits": 13},
    plain=lambda x, bits: signed(x) >> bits,
    agrees=_is_floor_or_one_less,
)
TRUNCATE_40 = Example(
    truncate,
    {"x": Secret(low=-(2**60), high=2**60, fraction_bits=40), "bits": 40},
    plain=lambda x, bits: signed(x) >> bits,
    agrees=_is_floor_or_one_less,
)
SIGN = Example(
    is_negative,
    {"x": Secret(low=-16, high=15, window_bits=5), "window_bits": 5},
    plain=lambda x, window_bits: signed(x) < 0,
)
RELU = Example(
    truncated_relu,
    {"x": Secret(low=-(2**16), high=2**16 - 1, fraction_bits=13), "bits": 13, "window_bits": 9},
    plain=lambda x, bits, window_bits: np.maximum(signed(x) >> bits, 0),
    agrees=_is_floor_or_one_less,
)


def _and_twice(party: Party, x: BitShare, y: BitShare) -> BitShare:
    return and_bits(party, and_bits(party, x, y), x ^ y)


AND_TWICE = Example(_and_twice, {"x": Bits(), "y": Bits()}, plain=lambda x, y: np.zeros(64 * x.shape[1]))
SELECT = Example(select, {"bit": Bits(), "x": Secret(low=-9, high=9)})
MULTIPLY = Example(multiply, {"x": Secret(), "y": Secret()})
RESHARE = Example(reshare, {"words": Additive()})
MATMUL = Example(matmul, {"x": Secret((3,)), "w": Secret((3, 2), per_lane=False)})

PartAndMask = tuple[RingArray, RingArray]


def _mask_is_the_part(party: Party, other: int, factor: RingArray) -> PartAndMask:
    words = party.stream_with(other).words(factor.shape, ring_of(factor))
    return words, words.copy()


def _part_is_zero(party: Party, other: int, factor: RingArray) -> PartAndMask:
    return np.zeros_like(factor), party.stream_with(other).words(factor.shape, ring_of(factor))


def _mask_is_zero(party: Party, other: int, factor: RingArray) -> PartAndMask:
    return party.stream_with(other).words(factor.shape, ring_of(factor)), np.zeros_like(factor)


def _one_mask_for_all(party: Party, other: int, factor: RingArray) -> PartAndMask:
    part = party.stream_with(other).words(factor.shape, ring_of(factor))
    mask = party.stream_with(other).words((1,), ring_of(factor))
    return part, np.broadcast_to(mask, factor.shape).copy()


@pytest.mark.parametrize("example", [TRUNCATE, TRUNCATE_40], ids=["truncate 13", "truncate 40"])
@pytest.mark.parametrize("mutant", [_mask_is_the_part, _part_is_zero, _mask_is_zero, _one_mask_for_all])
def test_a_transfer_with_spoiled_masks_is_noticed(
    example: Example,
    mutant: Callable[..., PartAndMask],
    monkeypatch: pytest.MonkeyPatch,
    protocol_seed: bytes,
) -> None:
    monkeypatch.setattr(two_holders, "_part_and_mask", mutant)

    assert leaks(example, protocol_seed)


class _RhoAgain:
    """The stream of parties 0 and 1 in ``sum_and_product``: of its three draws, one more is the first."""

    def __init__(self, stream: Stream, draw: int) -> None:
        self._stream = stream
        self._draw = draw
        self._taken: list[RingArray] = []

    def words(self, shape: int | tuple[int, ...], ring: Ring = BIT_WORDS) -> RingArray:
        words = self._stream.words(shape, ring)
        self._taken.append(words)
        place = len(self._taken) - 1
        if place % 3 != self._draw:
            return words
        return self._taken[place - self._draw][: len(words)].astype(words.dtype)


@pytest.mark.parametrize("example", [TRUNCATE, TRUNCATE_40], ids=["truncate 13", "truncate 40"])
@pytest.mark.parametrize("draw", [1, 2], ids=["rho is s_1", "rho is mask_1"])
def test_a_transfer_that_uses_the_mask_of_the_sum_again_is_noticed(
    example: Example, draw: int, monkeypatch: pytest.MonkeyPatch, protocol_seed: bytes
) -> None:
    """With s_1 = rho, party 2 reads x_0 + x_1 wherever its own bit is 0: rest + choice = x_0 + x_1."""
    honest = Party.stream_with
    wrapped: dict[int, _RhoAgain] = {}
    # Kept, here and below, so that no party of a later simulation has the identity of an earlier one.
    met: list[Party] = []

    def spoiled(party: Party, other: int) -> Stream:
        met.append(party)
        if {party.id, other} != {0, 1}:
            return honest(party, other)
        return wrapped.setdefault(id(party), _RhoAgain(honest(party, other), draw))

    monkeypatch.setattr(Party, "stream_with", spoiled)

    check_value(example, protocol_seed)
    assert leaks(example, protocol_seed)


@pytest.mark.parametrize("pair", [{0, 1}, {1, 2}, {0, 2}], ids=str)
def test_a_zero_share_of_bits_that_one_pair_uses_again_in_the_next_round_is_noticed(
    pair: set[int], monkeypatch: pytest.MonkeyPatch, protocol_seed: bytes
) -> None:
    first: dict[tuple[int, int], RingArray] = {}
    met: list[RecordingParty] = []

    def spoiled(party: RecordingParty, shape: tuple[int, ...]) -> RingArray:
        met.append(party)
        share = np.zeros(shape, dtype=np.uint64)
        for other in (party.previous_id, party.following_id):
            words = party._streams[other].zero_bits.words(shape, BIT_WORDS)
            if {party.id, other} == pair:
                words = first.setdefault((id(party), len(party.view.calls)), words)[: shape[0]]
            share ^= words
        return share

    monkeypatch.setattr(Party, "zero_bits", spoiled)

    check_value(AND_TWICE, protocol_seed)
    assert leaks(AND_TWICE, protocol_seed)


class _Repeating:
    """A stream that gives the same words to every request of one kind in one call."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._last: dict[object, RingArray] = {}

    def words(self, shape: int | tuple[int, ...], ring: Ring = BIT_WORDS) -> RingArray:
        kind = (shape, ring)
        if kind not in self._last:
            self._last[kind] = self._stream.words(shape, ring)
        return self._last[kind].copy()


@pytest.mark.parametrize("role", ["_select_as_party_0", "_select_as_other"])
def test_a_selection_that_takes_one_stream_word_for_three_is_noticed(
    role: str, monkeypatch: pytest.MonkeyPatch, protocol_seed: bytes
) -> None:
    honest: Callable[..., Any] = getattr(comparison, role)

    def spoiled(party: Party, *shares: Any) -> Any:
        streams = {other: _Repeating(party.stream_with(other)) for other in range(3) if other != party.id}
        original = party.stream_with
        party.stream_with = streams.__getitem__  # type: ignore[method-assign]
        try:
            return honest(party, *shares)
        finally:
            party.stream_with = original  # type: ignore[method-assign]

    monkeypatch.setattr(comparison, role, spoiled)

    # Party 1 holds no more than its own words, so it is party 0 or 2 whose messages repeat.
    assert leaks(SELECT, protocol_seed)


_honest_mask = two_parties.draw_mask


def _no_mask(party: Party, shape: tuple[int, ...], ring: Ring) -> two_parties.Mask:
    return tuple(np.zeros_like(part) for part in _honest_mask(party, shape, ring))


def _mask_of_one_word(party: Party, shape: tuple[int, ...], ring: Ring) -> two_parties.Mask:
    return tuple(
        np.broadcast_to(part.reshape(-1)[:1], shape).copy() if part.size else part
        for part in _honest_mask(party, shape, ring)
    )


def _mask_of_the_low_half(party: Party, shape: tuple[int, ...], ring: Ring) -> two_parties.Mask:
    low = ring.dtype.type((1 << ring.bits // 2) - 1)
    return tuple(np.asarray(part & low) for part in _honest_mask(party, shape, ring))


@pytest.mark.parametrize("module", [signs, two_parties], ids=["mask of the sign", "mask of the result"])
@pytest.mark.parametrize("mutant", [_no_mask, _mask_of_one_word, _mask_of_the_low_half])
def test_a_spoiled_mask_of_what_parties_1_and_2_open_is_noticed(
    module: ModuleType,
    mutant: Callable[..., two_parties.Mask],
    monkeypatch: pytest.MonkeyPatch,
    protocol_seed: bytes,
) -> None:
    monkeypatch.setattr(module, "draw_mask", mutant)

    check_value(RELU, protocol_seed)
    assert leaks(RELU, protocol_seed)


def test_a_mask_that_serves_the_tree_and_the_sign_is_noticed(
    monkeypatch: pytest.MonkeyPatch, protocol_seed: bytes
) -> None:
    honest = SignMasks.draw

    def spoiled(party: Party, window: signs.SignWindow) -> SignMasks:
        masks = honest(party, window)
        return SignMasks(masks.tree, tuple(part[:1] for part in masks.tree))

    monkeypatch.setattr(SignMasks, "draw", spoiled)

    check_value(RELU, protocol_seed)
    assert leaks(RELU, protocol_seed)


@pytest.mark.parametrize("other", [1, 2])
def test_a_relu_that_takes_one_stream_word_twice_is_noticed(
    other: int, monkeypatch: pytest.MonkeyPatch, protocol_seed: bytes
) -> None:
    honest = Party.stream_with
    wrapped: dict[int, _Repeating] = {}
    met: list[Party] = []

    def spoiled(party: Party, with_whom: int) -> Stream:
        met.append(party)
        stream = honest(party, with_whom)
        if {party.id, with_whom} != {0, other}:
            return stream
        return wrapped.setdefault(id(party), _Repeating(stream))

    monkeypatch.setattr(Party, "stream_with", spoiled)

    check_value(RELU, protocol_seed)
    assert leaks(RELU, protocol_seed)


def _known_to_the_receiver(party: Party, shape: tuple[int, ...], ring: Ring) -> RingArray:
    return party._streams[party.previous_id].zero_words.words(shape, ring)


def _one_word_for_all(party: Party, shape: tuple[int, ...], ring: Ring) -> RingArray:
    earlier = party._streams[party.previous_id].zero_words.words((1,), ring)
    later = party._streams[party.following_id].zero_words.words((1,), ring)
    return np.broadcast_to(earlier - later, shape).copy()


def _even_words(party: Party, shape: tuple[int, ...], ring: Ring) -> RingArray:
    earlier = party._streams[party.previous_id].zero_words.words(shape, ring)
    later = party._streams[party.following_id].zero_words.words(shape, ring)
    return np.asarray((earlier - later) << np.uint64(1))


@pytest.mark.parametrize("mutant", [_known_to_the_receiver, _one_word_for_all, _even_words])
def test_a_product_with_a_spoiled_zero_share_is_noticed(
    mutant: Callable[..., RingArray], monkeypatch: pytest.MonkeyPatch, protocol_seed: bytes
) -> None:
    monkeypatch.setattr(Party, "zero_share", mutant)

    assert leaks(MULTIPLY, protocol_seed)


def _known_bits(mask: int) -> Callable[..., RingArray]:
    """Return a zero share of which the receiver knows these bits: they hold its own stream's word alone."""

    def zero_share(party: Party, shape: tuple[int, ...], ring: Ring) -> RingArray:
        earlier = party._streams[party.previous_id].zero_words.words(shape, ring)
        later = party._streams[party.following_id].zero_words.words(shape, ring)
        return np.asarray((earlier - later) & np.uint64(~mask % 2**64) | earlier & np.uint64(mask))

    return zero_share


@pytest.mark.parametrize("example", [MULTIPLY, RESHARE, MATMUL], ids=["multiply", "reshare", "matmul"])
@pytest.mark.parametrize(
    "known", [(2**32 - 1) << 32, 2**62 - 2, 0xFF << 24], ids=["upper half", "bits 1 to 61", "one byte"]
)
def test_a_zero_share_of_which_the_receiver_knows_some_bits_is_noticed(
    example: Example, known: int, monkeypatch: pytest.MonkeyPatch, protocol_seed: bytes
) -> None:
    monkeypatch.setattr(Party, "zero_share", _known_bits(known))

    assert leaks(example, protocol_seed)


def _middle_bits_again(party: RecordingParty, shape: tuple[int, ...], ring: Ring) -> RingArray:
    """A share of zero whose bits 1 to 61 are those of the call before."""
    words = []
    for other in (party.previous_id, party.following_id):
        fresh = party._streams[other].zero_words.words(shape, ring)
        kept = party.__dict__.setdefault("kept", {}).setdefault(other, fresh)
        middle = np.uint64(2**62 - 2)
        words.append(kept & middle | fresh & ~middle)
    return np.asarray(words[0] - words[1])


def test_a_zero_share_whose_middle_bits_come_again_in_the_next_call_is_noticed(
    monkeypatch: pytest.MonkeyPatch, protocol_seed: bytes
) -> None:
    monkeypatch.setattr(Party, "zero_share", _middle_bits_again)

    assert leaks(MULTIPLY, protocol_seed)


def test_the_protocols_as_they_are_hide_their_inputs(protocol_seed: bytes) -> None:
    for example in (TRUNCATE, TRUNCATE_40, SIGN, RELU, AND_TWICE, SELECT, MULTIPLY, RESHARE, MATMUL):
        assert view_report(example, protocol_seed).hides
