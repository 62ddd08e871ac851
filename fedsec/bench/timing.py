"""Times as percentiles."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Timing:
    """Wall times of one thing done again and again, in milliseconds.

    Attributes:
        count: How many times it was done.
        p5: Five percent were faster.
        median: Half were faster.
        p95: Five percent were slower.
    """

    count: int
    p5: float
    median: float
    p95: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Return the percentiles of wall times in seconds."""
        p5, median, p95 = (float(value) * 1e3 for value in np.percentile(seconds, (5, 50, 95)))
        return cls(len(seconds), p5, median, p95)

    def summary(self) -> dict[str, float]:
        """Return what JSON can hold."""
        return asdict(self)


def timed(call: Callable[[], object], count: int) -> list[float]:
    """Return the wall time of each of ``count`` calls in seconds."""
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def rate(call: Callable[[], object], count: int, images: int) -> float:
    """Return the images a second of ``count`` calls one after the other, each with ``images``."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return count * images / (time.perf_counter() - start)
