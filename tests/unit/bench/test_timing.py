from __future__ import annotations

import time

import pytest

from fedsec.bench.timing import Timing, rate, timed


def test_percentiles_are_in_milliseconds() -> None:
    timing = Timing.of([number / 1000 for number in range(101)])
    assert timing.count == 101
    assert (timing.p5, timing.median, timing.p95) == pytest.approx((5, 50, 95))
    assert timing.summary() == {"count": 101, "p5": timing.p5, "median": timing.median, "p95": timing.p95}


def test_every_call_is_timed() -> None:
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        time.sleep(0.001)

    assert all(seconds >= 0.001 for seconds in timed(call, 5))
    assert len(calls) == 5
    # Three calls of at least a millisecond with ten images each.
    assert 0 < rate(call, 3, 10) <= 10_000
