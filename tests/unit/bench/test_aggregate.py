"""The measurement of the aggregation: its table, its fit, its fixed vectors, and a tiny run of all of it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fedsec.bench import aggregate
from fedsec.bench.aggregate_planned import planned
from fedsec.bench.aggregate_report import Line, print_aggregate, rows_of
from fedsec.bench.aggregate_ways import CLIP, Fixed

WAYS = ("flower", "wired", "secure")


def _size(hospitals: int, parameters: int, seconds: tuple[float, float, float]) -> dict[str, Any]:
    return {
        "hospitals": hospitals,
        "parameters": parameters,
        "wall": {
            name: {"count": 3, "p5": 1.0, "median": 1e3 * one, "p95": 9.0}
            for name, one in zip(WAYS, seconds, strict=True)
        },
        "hospital_cpu_ms": {"flower": 2.0, "wired": 6.0, "secure": 14.0},
        "other_end_cpu_ms": {"wired": 6.0, "secure": 15.0},
        "sent_bytes": {
            "flower": 4 * parameters,
            "wired": 4 * parameters + 180,
            "secure": 4 * parameters + 1200,
        },
        "error": {"flower": 1e-7, "wired": 1e-7, "secure": 3e-8},
        "memory_mib": {"party-0": {"peak": 90.0, "now": 80.0}, "party-1": {"peak": 120.0, "now": 80.0}},
    }


RESULTS = {
    "clip": 1.0,
    "opening": {"connections": 300, "hospital_ms": 1.2, "aggregator_ms": 1.1},
    "sizes": [_size(100, 1_000_000, (0.3, 0.6, 0.84)), _size(1000, 100_000, (0.5, 1.5, 3.3))],
    "growth": {
        "hospitals": {"sizes": [[10, 1000], [100, 1000], [1000, 1000]], "seconds": [0.12, 0.3, 2.1]},
        "parameters": {"sizes": [[10, 1000], [10, 1_000_000]], "seconds": [0.1, 1.1]},
    },
    "planner": {"bound": 2.0**-21, "coarse": 0},
}


@pytest.mark.parametrize(
    ("figure", "value", "verdict"),
    [
        ("bytes up a hospital beyond plain, 100 x 1M", 1200, "aim"),
        ("CPU of a hospital beyond plain (a), 1M", 12.0, "must"),
        ("CPU of all aggregators a hospital, 1M", 15.0, ""),
        ("round, 100 x 1M: secure by (b)", 1.4, "must"),
        ("round, 100 x 1M: secure by (a)", 2.8, "aim"),
        ("round, 1000 x 100k: secure by (b)", 2.2, "missed"),
        ("round, 1000 x 100k: secure by (a)", 6.6, "missed"),
        ("opening a connection, both ends, CPU", 2.3, "must"),
        ("peak memory of an aggregator, after 100 x 1M", 120 * 1.048576, "must"),
        ("growth, 10 to 1000 hospitals: one more costs", 2.0, ""),
        ("growth, 10 to 1000 hospitals: furthest from a line", 0.0, ""),
        ("error of the mean by 2^-20 of the clip range", 1.5e-8 * 2**20, "aim"),
        ("the same, as the planner states it before", 0.5, "aim"),
        ("plans beyond that are neither refused nor 64 bits", 0, "aim"),
    ],
)
def test_each_figure_is_held_against_what_is_asked(figure: str, value: float, verdict: str) -> None:
    (row,) = (row for row in rows_of(RESULTS) if row.figure == figure)
    assert row.value == pytest.approx(value, abs=1e-9)
    assert row.verdict == verdict


def test_the_table_shows_the_ratios_and_where_processor_time_goes() -> None:
    out = io.StringIO()
    print_aggregate(RESULTS, Console(file=out, width=140))
    shown = " ".join(out.getvalue().split())
    assert "round, 100 x 1M: secure by (b) │ 1.4 x │ 1.6 │ 1.2 │ must" in shown
    assert "1000 x 100k │ secure │ 14 │ 15 │ 401,200" in shown


def test_a_line_is_found_and_what_bends_is_off_it() -> None:
    sizes = [10, 30, 100, 300, 1000]
    line = Line.through(sizes, [0.05 + 0.002 * size for size in sizes])
    assert (line.start_s, line.slope_s, line.off) == pytest.approx((0.05, 0.002, 0.0), abs=1e-9)
    assert Line.through(sizes, [0.05 + 1e-5 * size**2 for size in sizes]).off > 0.3


def test_the_planner_keeps_what_is_asked_of_it() -> None:
    assert planned() == {"bound": pytest.approx(2.0**-21, rel=1e-2), "coarse": 0}


def test_no_hospital_returns_the_same_twice_and_the_mean_is_numpys() -> None:
    fixed = Fixed(20, 50)
    seen = set()
    for _ in range(3):
        fixed.vary()
        vectors = [fixed.vector(one).copy() for one in range(20)]
        seen |= {vector.tobytes() for vector in vectors}
        weights = [fixed.examples(one) for one in range(20)]
        assert max(np.abs(vector).max() for vector in vectors) <= CLIP
        assert max(weights) == fixed.largest_weight
        np.testing.assert_allclose(fixed.mean(), np.average(vectors, axis=0, weights=weights), atol=1e-9)
    assert len(seen) == 3 * 8


TINY = aggregate.Effort(
    sizes=((4, 3000),),
    turns=1,
    hospitals=(3, 5),
    grown_parameters=500,
    parameters=(500, 5000),
    grown_hospitals=3,
)


def test_all_of_it_is_measured() -> None:
    said: list[str] = []
    results = aggregate.bench_aggregate(TINY, said.append)
    (size,) = results["sizes"]
    assert set(size["wall"]) == set(size["hospital_cpu_ms"]) == set(WAYS)
    # Every way gave the mean: float32 sums in Flower's own, less than the planner's bound in ours.
    assert size["error"]["flower"] < 1e-6
    assert size["error"]["wired"] < 1e-6
    assert size["error"]["secure"] < 2 * CLIP * 2.0**-20
    assert 12_000 < size["sent_bytes"]["secure"] < 14_000
    rows = {row.figure: row for row in rows_of(results)}
    assert rows["bytes up a hospital beyond plain, 4 x 3k"].verdict == "aim"
    assert all(row.value > 0 for figure, row in rows.items() if "bound" in figure or "round" in figure)
    assert len(results["growth"]["hospitals"]["seconds"]) == 2
    assert said
