"""Mistakes that someone could make inside the protocols: results stay right (or nearly), the views must tell.

The four broken streams of ``fedsec.testing`` are checked for every protocol; these are further, by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedsec.mpc import Party, comparison, is_negative, multiply, select, truncate, two_holders
from fedsec.mpc.party import BIT_WORDS, Stream
from fedsec.ring import Ring, RingArray, ring_of
from fedsec.testing import Bits, Example, Secret, view_report

pytest_plugins = ["fedsec.testing"]

TRUNCATE = Example(truncate, {"x": Secret(low=-5000, high=5000, fraction_bits=13), "bits": 13})
SIGN = Example(is_negative, {"x": Secret(low=-16, high=15, window_bits=5), "window_bits": 5})
SELECT = Example(select, {"bit": Bits(), "x": Secret(low=-9, high=9)})
MULTIPLY = Example(multiply, {"x": Secret(), "y": Secret()})

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


@pytest.mark.parametrize("example", [TRUNCATE, SIGN], ids=["truncate", "is_negative"])
@pytest.mark.parametrize("mutant", [_mask_is_the_part, _part_is_zero, _mask_is_zero, _one_mask_for_all])
def test_a_transfer_with_spoiled_masks_is_noticed(
    example: Example,
    mutant: Callable[..., PartAndMask],
    monkeypatch: pytest.MonkeyPatch,
    protocol_seed: bytes,
) -> None:
    monkeypatch.setattr(two_holders, "_part_and_mask", mutant)

    assert not view_report(example, protocol_seed).hides


class _Repeating:
    """A stream that gives the same words to every request of one call."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._last: RingArray | None = None

    def words(self, shape: int | tuple[int, ...], ring: Ring = BIT_WORDS) -> RingArray:
        if self._last is None:
            self._last = self._stream.words(shape, ring)
        return self._last.copy()


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
    assert not view_report(SELECT, protocol_seed).hides


def _known_to_the_receiver(party: Party, shape: tuple[int, ...]) -> RingArray:
    return party._streams[party.previous_id].zero_words.words(shape, party.ring)


def _one_word_for_all(party: Party, shape: tuple[int, ...]) -> RingArray:
    earlier = party._streams[party.previous_id].zero_words.words((1,), party.ring)
    later = party._streams[party.following_id].zero_words.words((1,), party.ring)
    return np.broadcast_to(earlier - later, shape).copy()


def _even_words(party: Party, shape: tuple[int, ...]) -> RingArray:
    earlier = party._streams[party.previous_id].zero_words.words(shape, party.ring)
    later = party._streams[party.following_id].zero_words.words(shape, party.ring)
    return np.asarray((earlier - later) << np.uint64(1))


@pytest.mark.parametrize("mutant", [_known_to_the_receiver, _one_word_for_all, _even_words])
def test_a_product_with_a_spoiled_zero_share_is_noticed(
    mutant: Callable[..., RingArray], monkeypatch: pytest.MonkeyPatch, protocol_seed: bytes
) -> None:
    monkeypatch.setattr(Party, "zero_share", mutant)

    assert not view_report(MULTIPLY, protocol_seed).hides


def test_the_protocols_as_they_are_hide_their_inputs(protocol_seed: bytes) -> None:
    for example in (TRUNCATE, SIGN, SELECT, MULTIPLY):
        assert view_report(example, protocol_seed).hides
