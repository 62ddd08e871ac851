"""Noise nobody holds, as a scenario: the claim, what it rests on, and what it costs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import fedsec
from fedsec.scenario import Scenario

ROOT = Path(fedsec.__file__).parent.parent


def scenario(*overrides: str) -> Scenario:
    return Scenario.load(
        ROOT / "scenarios" / "ten-equal-hospitals",
        ["privacy.level=hospital", "privacy.target_epsilon=6", "privacy.delta=1e-4", *overrides],
    )


def test_a_run_keeps_to_its_target_and_says_what_it_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    result = fedsec.run_scenario(
        scenario(
            "training.rounds=2", "training.examples=90", "training.model=mlp", "training.test_examples=50",
            "hospitals.count=3", "hospitals.dropped_each_round=1", "aggregation.minimum_cohort=2",
            "privacy.colluding_aggregators=1",
        ),
        runs=tmp_path,
    )  # fmt: skip

    assert [report.included for report in result.rounds] == [2, 2]
    # An average with noise is not compared with that of the plain updates.
    assert [report.difference for report in result.rounds] == [None, None]
    assert result.privacy == ()
    told = result.whole_hospital
    assert told is not None
    assert max(told.hospitals.values()) == told.epsilon <= 6
    assert set(told.hospitals) == {"hospital-00", "hospital-01", "hospital-02"}
    # The bound's leading term for noise multiplier z: at this size integers cost less than a thousandth.
    z, rounds = told.noise_multiplier, told.rounds
    closed = min(
        rounds * order / (2 * z * z) + math.log1p(-1 / order) - math.log(told.delta * order) / (order - 1)
        for order in range(2, 300)
    )
    assert told.epsilon == pytest.approx(closed, rel=1e-3)
    # One of three may collude: each of them adds half of the variance that has to be left.
    assert told.noise_of_mean == pytest.approx(math.sqrt(3 / 2) * z / 3)
    assert (told.aggregators, told.colluding) == (3, 1)
    stored = json.loads(result.folder.summary.read_text(encoding="utf-8"))["whole_hospital"]
    assert stored["epsilon"] == told.epsilon
    assert "who takes part is public" in stored["adjacency"]
    assert "up to 1 of 3 aggregators" in stored["assumptions"]
