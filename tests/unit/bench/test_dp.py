"""``fedsec bench dp``: the table's arithmetic, and one small measurement with real processes."""

import io

import pytest
from rich.console import Console

from fedsec.bench import dp
from fedsec.bench.dp import Effort, bench_dp, print_dp, rows_of
from fedsec.bench.dp_noise import bench_noise, rows_of_noise


def found(plain_s: float, private_s: float) -> dict:
    return {
        "ratio": private_s / plain_s,
        "cpu_ratio": 2.0,
        "example_us": {"plain": plain_s * 1e6, "private": private_s * 1e6},
        "memory_mib": {"plain": 400.0, "private": 500.0},
    }


def test_figures_stand_beside_what_is_asked() -> None:
    results = {
        "batch": 256,
        "models": {"short-conv": found(1.0, 1.5), "tf-privacy": found(1.0, 2.5)},
        "noise": {"values": 1000, "deviations": {}},
    }
    verdicts = {
        row.figure.split(",")[0]: row.verdict for row in rows_of(results) if "time of an" in row.figure
    }
    assert verdicts == {"short-conv": "must", "tf-privacy": "missed"}
    out = io.StringIO()
    print_dp(results, Console(file=out, width=120))
    assert "1.25 x" in out.getvalue()


def test_noise_of_every_size_is_measured_beside_numpys() -> None:
    rows = rows_of_noise(bench_noise(1000, 2))
    assert [row.figure for row in rows][-2:] == [
        "1,000 noise values, sigma 1,048,576", "1,000 noise values, sigma 1,048,576, numpy's Poisson"
    ]  # fmt: skip
    assert len(rows) == 6
    assert all(row.value > 0 for row in rows)


@pytest.mark.slow
def test_a_small_measurement(monkeypatch) -> None:
    monkeypatch.setattr(dp, "_ASKED", {"short-conv": (1.7, 1.2)})
    results = bench_dp(Effort(512, 2, noise=1000), lambda text: None)["models"]["short-conv"]
    assert results["parameters"] == 22_158
    assert results["example_us"]["private"] > 0
    assert results["memory_mib"]["plain"] > 100
