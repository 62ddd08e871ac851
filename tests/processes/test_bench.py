"""The benchmark itself works: every figure is there, from real processes. Times are never asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from fedsec.bench.clear import SHORT_CONV
from fedsec.bench.engine import BATCHES, bench_engine
from fedsec.bench.links import SIZES, bench_links
from fedsec.bench.report import rows_of

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


def test_every_figure_that_the_quick_run_measures_is_there(measured: dict[str, Any]) -> None:
    rows = {row.figure: row.value for row in rows_of(measured)}
    assert all(value > 0 for figure, value in rows.items() if "instead of" not in figure)
    for figure in ("one image", "batches of 128, plain TCP", "rounds, label", "memory of a party"):
        assert figure in rows
    assert set(measured["dealt"]["keras_one"]) == {"predict", "call", "function"}


def test_simulation_and_meters_of_the_running_parties_agree_on_bytes(measured: dict[str, Any]) -> None:
    counted = measured["counts"]["dealt"]["logits"]
    metered = measured["dealt"]["party_bytes_an_image"]["all"]
    # The parties also agree on what comes next, and prepare ahead of or behind what they answer.
    assert counted["online_bytes"] < metered < 3 * (counted["online_bytes"] + counted["prepared_bytes"])


def test_rounds_of_links_are_measured() -> None:
    results = bench_links(10)
    assert len(results) == 8
    assert all(set(times) == set(SIZES) and min(times.values()) > 0 for times in results.values())


def test_the_engine_alone_is_measured(measured: dict[str, Any]) -> None:
    assert measured["model"]["name"] == SHORT_CONV
    results = bench_engine(None, "logits", 1)
    assert len(results) == 2 * 2 * len(BATCHES)
    parts = {"prepare", "prepare CPU", "online", "online CPU"}
    assert all(set(times) == parts for parties in results.values() for times in parties)
