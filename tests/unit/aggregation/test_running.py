"""The running sum: what was added too early, twice, half or for nobody does not matter in the end."""

from __future__ import annotations

import secrets

import numpy as np
import pytest

from fedsec.aggregation.planner import ArraySpec, Layout, plan_encoding
from fedsec.aggregation.running import RunningSum
from fedsec.errors import StateError
from fedsec.ring import KeyedStream, derive_key

HEADERS = [bytes([index]) * 32 for index in range(6)]
SEEDS = [secrets.token_bytes(32) for _ in HEADERS]
LAYOUT = Layout(plan_encoding(6, 1.0, 100, 50.0, 32), (ArraySpec("layer", "float32", (20_000,), 1.0),), ())


def expanded(seed):
    """A seed as docs/reference/wire-format.md has it expanded."""
    key = derive_key(seed, purpose="sharing/compressed", context=bytes([32]))
    return np.frombuffer(KeyedStream(key).take(4 * LAYOUT.words), "<u4")


def total(places):
    return sum((expanded(SEEDS[place]) for place in places), np.zeros(LAYOUT.words, np.uint32))


def included(places):
    return {HEADERS[place]: SEEDS[place] for place in places}


def heard(running, place):
    pieces = []
    running.expand(HEADERS[place], SEEDS[place], lambda piece: pieces.append(piece.copy()))
    return np.concatenate(pieces)


@pytest.mark.parametrize("added", [(), (0,), (0, 1, 2), (3, 4, 5), (0, 0, 4), range(6)], ids=str)
@pytest.mark.parametrize("chosen", [(), (0,), (1, 2), range(6)], ids=str)
def test_the_sum_is_that_of_the_included_whatever_was_added(added, chosen):
    running = RunningSum(LAYOUT, 6)
    for place in added:
        assert np.array_equal(heard(running, place), expanded(SEEDS[place]))
    assert np.array_equal(running.take(included(chosen)), total(chosen))


def test_vectors_are_read_from_their_files(tmp_path):
    words = np.arange(LAYOUT.words, dtype=np.uint32)
    (tmp_path / "one.part").write_bytes(bytes(32) + words.tobytes())
    running = RunningSum(LAYOUT, 6)
    heard(running, 1)
    found = running.take({HEADERS[0]: tmp_path / "one.part", **included([1, 2])})
    assert np.array_equal(found, words + total([1, 2]))


def test_an_error_halfway_leaves_nothing_of_a_seed_in_the_sum():
    running = RunningSum(LAYOUT, 6)
    heard(running, 0)
    pieces = []

    def fails(piece):
        pieces.append(piece)
        if len(pieces) == 2:
            raise MemoryError

    with pytest.raises(MemoryError):
        running.expand(HEADERS[1], SEEDS[1], fails)
    heard(running, 2)
    assert np.array_equal(running.take(included([0, 1, 2])), total([0, 1, 2]))


def test_a_sum_takes_no_more_than_there_are_hospitals_and_nothing_once_it_was_taken():
    running = RunningSum(LAYOUT, 2)
    for place in range(4):
        assert np.array_equal(heard(running, place), expanded(SEEDS[place]))
    assert len(running._seeds) == 2
    assert np.array_equal(running.take(included([3])), total([3]))
    assert np.array_equal(heard(running, 0), expanded(SEEDS[0]))
    assert (running._total, running._seeds) == (None, {})


def test_a_damaged_vector_is_an_error_and_another_attempt_begins_anew(tmp_path):
    path = tmp_path / "one.part"
    path.write_bytes(bytes(31 + 4 * LAYOUT.words))
    running = RunningSum(LAYOUT, 6)
    heard(running, 0)
    with pytest.raises(StateError, match="the state is damaged"):
        running.take({HEADERS[1]: path, **included([0])})
    assert np.array_equal(running.take(included([0, 2])), total([0, 2]))
