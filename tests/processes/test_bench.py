"""The benchmark itself works: every figure is there, from real processes. Times are never asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedsec.bench import aggregate_report
from fedsec.bench.engine import bench_engine
from fedsec.bench.links import SIZES, bench_links
from fedsec.bench.report import rows_of
from fedsec.nn.plan import Dense, Plan

QUICK_S = 200


def _fedsec(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fedsec", *arguments],
        capture_output=True,
        text=True,
        timeout=QUICK_S,
        check=False,
    )


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    done = _fedsec("bench", "predict", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout)
    # Half of the measurement is without TLS, and says so.
    assert "INSECURE" in done.stderr
    return results


@pytest.mark.slow
def test_every_figure_that_the_quick_run_measures_is_there(measured: dict[str, Any]) -> None:
    rows = {row.figure: row.value for row in rows_of(measured)}
    assert all(value > 0 for figure, value in rows.items() if "instead of" not in figure)
    for figure in ("one image", "batches of 128, plain TCP", "rounds, label", "memory of a party"):
        assert figure in rows
    assert set(measured["dealt"]["keras_one"]) == {"predict", "call", "function"}


@pytest.mark.slow
def test_simulation_and_meters_of_the_running_parties_agree_on_bytes(measured: dict[str, Any]) -> None:
    counted = measured["counts"]["dealt"]["logits"]
    metered = measured["dealt"]["party_bytes_an_image"]["all"]
    # The parties also agree on what comes next, and prepare ahead of or behind what they answer.
    assert counted["online_bytes"] < metered < 3 * (counted["online_bytes"] + counted["prepared_bytes"])


def test_rounds_of_links_are_measured() -> None:
    results = bench_links(10)
    assert len(results) == 8
    assert all(set(times) == set(SIZES) and min(times.values()) > 0 for times in results.values())


@pytest.mark.slow
def test_the_engine_alone_is_measured(tmp_path: Path) -> None:
    layer = Dense(
        name="only", inputs=(0,), input_shape=(6,), output_shape=(4,), weight_fraction_bits=8, bound=16.0
    )
    plan = Plan(
        name="small", input_shape=(6,), output_shape=(4,), input_low=0.0, input_high=1.0, fraction_bits=8,
        layers=(layer,),
    )  # fmt: skip
    plan.save(tmp_path / "plan.json")
    results = bench_engine(tmp_path, "logits", 1, batches=(2,))
    assert set(results) == {f"{mode}, {kind}, 2" for mode in ("dealt", "plain") for kind in ("tls", "tcp")}
    parts = {"prepare", "prepare CPU", "online", "online CPU"}
    assert all(set(times) == parts for parties in results.values() for times in parties)


@pytest.mark.slow
def test_the_aggregation_is_measured_beside_plain_averaging() -> None:
    done = _fedsec("bench", "aggregate", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout)
    rows = {row.figure: row for row in aggregate_report.rows_of(results)}
    for figure in ("round, 10 x 1M: secure by (b)", "CPU of a hospital beyond plain (a), 1M"):
        assert rows[figure].value > 0
    for figure in (
        "bytes up a hospital beyond plain, 10 x 1M",
        "error of the mean by 2^-20 of the clip range",
    ):
        assert rows[figure].verdict == "aim"
    assert "no receipt" not in done.stderr
