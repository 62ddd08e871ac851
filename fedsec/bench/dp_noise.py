"""Integer noise beside numpy's: Skellam values of ours and differences of its Poisson values, in turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedsec.bench.report import Row
from fedsec.bench.timing import Timing, timed
from fedsec.privacy.skellam import SkellamSampler

_DEVIATIONS = (4, 1_000, 1 << 20)


def bench_noise(values: int, turns: int) -> dict[str, Any]:
    """Measure draws at every standard deviation.

    Ours come from AES-256, of which nobody can tell the next value; numpy's generator is not made for that,
    so it is a yardstick and no alternative. The first draw of a variance, which makes its table, is apart.

    Args:
        values: How many are drawn at a time.
        turns: How often either draws.

    Returns:
        What JSON can hold; times in milliseconds for all values.
    """
    return {
        "values": values,
        "deviations": {str(deviation): _measured(deviation, values, turns) for deviation in _DEVIATIONS},
    }


def _measured(deviation: int, values: int, turns: int) -> dict[str, Any]:
    random, mean = np.random.default_rng(), deviation**2 / 2
    first = timed(lambda: SkellamSampler(float(deviation**2)).draw(1), 1)
    sampler = SkellamSampler(float(deviation**2))
    times: dict[str, list[float]] = {"skellam": [], "numpy": []}
    for _ in range(turns):
        times["skellam"] += timed(lambda: sampler.draw(values), 1)
        times["numpy"] += timed(lambda: random.poisson(mean, values) - random.poisson(mean, values), 1)
    return {"first_ms": first[0] * 1e3, **{kind: Timing.of(found).summary() for kind, found in times.items()}}


def rows_of_noise(results: Mapping[str, Any]) -> list[Row]:
    """Return the figures of :func:`bench_noise`, in the table's order."""
    rows: list[Row] = []
    for deviation, found in results["deviations"].items():
        what = f"{results['values']:,} noise values, sigma {int(deviation):,}"
        rows += [
            Row(what, found["skellam"]["median"], "ms"),
            Row(f"{what}, numpy's Poisson", found["numpy"]["median"], "ms"),
        ]
    return rows
