"""Whatever bytes come: readers take them or raise an error of ours, and allocate nothing they announce."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

# Test modules are no package here, so what several of them share is found by path.
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from fuzz_targets import every_target
from fuzzing import KEPT, Target, odd, read, spoilt

TARGETS = every_target()
LONG = (b"\xc6\xff\xff\xff\xff", b"\xdb\x7f\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01", b"\xff" * 8, b"\x7f" + b"\xff" * 7)  # fmt: skip
"""Starts of what says it is long: MessagePack's texts, bytes, lists, tables, extensions; and plain sizes."""
PLACES = 6
MOST_BYTES = 8 << 20


@pytest.fixture(scope="module", autouse=True)
def targets_end() -> Iterator[None]:
    yield
    KEPT.close()


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_what_is_valid_is_taken(target: Target) -> None:
    """Otherwise spoilt seeds would say little: the first check would refuse them all."""
    refusals = [read(target, seed) for seed in target.seeds]
    if target.needs:
        assert "got another message" not in str(refusals[0])
    else:
        assert refusals == [None] * len(target.seeds)


@pytest.mark.parametrize("target", [one for one in TARGETS if one.trees or one.lines], ids=str)
def test_threat_38_an_odd_value_anywhere_raises_errors_of_ours_only(target: Target) -> None:
    for data in odd(target):
        read(target, data)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_threat_38_spoilt_bytes_raise_errors_of_ours_only(target: Target) -> None:
    @settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(spoilt(target))
    def spoil(data: bytes) -> None:
        read(target, data)

    spoil()


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_threat_37_an_announced_length_is_not_allocated(target: Target) -> None:
    seed = target.seeds[0]
    step = max(1, len(seed) // PLACES)
    spoilt = [seed[:at] + long + seed[at + 1 :] for at in range(0, len(seed) + 1, step) for long in LONG]
    read(target, seed)
    tracemalloc.start()
    try:
        for data in spoilt:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            read(target, data)
            assert tracemalloc.get_traced_memory()[1] - before < MOST_BYTES, data
    finally:
        tracemalloc.stop()
