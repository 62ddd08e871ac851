"""How a secret travels: sizes, the three parts, and who holds which component."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.errors import ProtocolError
from fedsec.ring import RING32, RING64, Ring, RingArray, fresh_key
from fedsec.serving import parts
from fedsec.sharing import compressed


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=50))
def test_the_three_parts_hold_the_secret(values: list[int]) -> None:
    secret = np.array(values, dtype=np.uint64)
    held = [parts.join(i, body, secret.size, RING64) for i, body in enumerate(parts.split(secret))]
    np.testing.assert_array_equal(held[0].own + held[1].own + held[2].own, secret)
    for i in range(3):
        np.testing.assert_array_equal(held[i].next, held[(i + 1) % 3].own)


@pytest.mark.parametrize(("ring", "word"), [(RING32, 4), (RING64, 8)])
def test_threat_35_sizes_depend_on_the_shape_only(ring: Ring, word: int) -> None:
    for secret in (np.zeros(784, ring.dtype), np.full(784, ring.modulus - 1, ring.dtype)):
        sizes = [len(body) for body in parts.split(secret)]
        assert sizes == [64, 32 + 784 * word, 784 * word + 32]
        assert sizes == [parts.body_bytes(i, 784, ring) for i in range(3)]


def test_threat_03_every_split_is_fresh() -> None:
    secret = np.arange(100, dtype=np.uint64)
    first, second = parts.split(secret), parts.split(secret)
    pieces = {body[i : i + 32] for bodies in (first, second) for body in bodies for i in (0, len(body) - 32)}
    assert len(pieces) == 2 * (2 + 2)  # a call: two seeds, the vector's first and last words


def test_threat_03_the_seeds_are_two_draws_of_the_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither seed follows from the other: a party would know a component too many."""
    drawn: list[bytes] = []

    def draw() -> bytes:
        drawn.append(fresh_key())
        return drawn[-1]

    monkeypatch.setattr(parts, "fresh_key", draw)
    of_0, of_1, of_2 = parts.split(np.arange(4, dtype=np.uint64))
    assert len(set(drawn)) == 2
    assert [of_0[:32], of_0[32:]] == drawn
    assert (of_1[:32], of_2[-32:]) == (drawn[1], drawn[0])


@pytest.mark.parametrize("wrong", [-1, 1, -32, 32])
@pytest.mark.parametrize("party", [0, 1, 2])
def test_threat_34_a_part_of_another_length_is_refused(party: int, wrong: int) -> None:
    body = parts.split(np.zeros(10, np.uint64))[party]
    damaged = body[:wrong] if wrong < 0 else body + bytes(wrong)
    with pytest.raises(ProtocolError, match="expected a part of"):
        parts.join(party, damaged, 10, RING64)


def test_a_part_does_not_print_its_words() -> None:
    part = parts.join(0, parts.split(np.zeros(4, np.uint64))[0], 4, RING64)
    assert repr(part) == "Part()"


@pytest.mark.parametrize("party", [0, 1, 2])
def test_seeds_are_expanded_once_and_only_when_needed(party: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expanded: list[int] = []
    expand = compressed.expand

    def count(seed: bytes, size: int, ring: Ring) -> RingArray:
        expanded.append(size)
        return expand(seed, size, ring)

    monkeypatch.setattr(compressed, "expand", count)
    part = parts.join(party, parts.split(np.zeros(9, np.uint64))[party], 9, RING64)
    assert expanded == []
    for _ in range(2):
        part.unpack()
        assert expanded == [9] * (2 if party == 0 else 1)
