"""A scenario under differential privacy, at smoke size: every hospital's row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fedsec
from fedsec.aggregation import TrustLimits
from fedsec.cluster.cluster import Cluster
from fedsec.federation.plan import EVALUATE_METRICS
from fedsec.lab.experiment import local_cluster
from fedsec.lab.plan import round_plan
from fedsec.lab.rundir import RunFolder
from fedsec.privacy.accounting import SampledGaussian, epsilon_of
from fedsec.scenario import Scenario

ROOT = Path(fedsec.__file__).parent.parent


def test_each_hospital_keeps_to_its_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    scenario = Scenario.load(
        ROOT / "scenarios" / "ten-equal-hospitals",
        [
            "training.rounds=2", "training.examples=600", "training.test_examples=90",
            "hospitals.count=3", "hospitals.dropped_each_round=1", "aggregation.minimum_cohort=2",
            "privacy.target_epsilon=4", "privacy.delta=1e-4",
        ],
    )  # fmt: skip
    result = fedsec.run_scenario(scenario, runs=tmp_path)

    assert [report.included for report in result.rounds] == [2, 2]
    rows = {row.hospital: row for row in result.privacy}
    assert len(rows) in {2, 3}
    for row in rows.values():
        # 200 images each in samples of 32: seven steps for each round in which it took part.
        assert row.steps in {7, 14}
        expected = epsilon_of([SampledGaussian(row.noise_multiplier, 32 / 200, row.steps)], 1e-4)
        assert row.epsilon == pytest.approx(expected.value)
        assert row.epsilon <= 4
    assert max(row.steps for row in rows.values()) == 14
    stored = json.loads(result.folder.summary.read_text(encoding="utf-8"))
    assert {row["hospital"] for row in stored["privacy"]} == set(rows)


def test_what_is_opened_under_privacy_is_the_mean_alone() -> None:
    plain, private = (
        round_plan(Scenario.from_values({"privacy": {"target_epsilon": target}})) for target in (0.0, 2.0)
    )
    assert plain.train_metrics
    assert plain.weights == "examples"
    assert not private.train_metrics
    assert private.weights == "equal"


def test_hospitals_of_a_sealed_run_admit_the_noisy_metrics_of_its_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else has the model: without them no round would have an accuracy."""
    limits: list[TrustLimits] = []
    monkeypatch.setattr(Cluster, "local", lambda *_, **named: limits.append(named["limits"]))
    for reveal_to in ("hospitals", "server"):
        values = {"privacy": {"target_epsilon": 2.0}, "aggregation": {"reveal_to": reveal_to}}
        local_cluster(RunFolder.create(tmp_path, reveal_to), Scenario.from_values(values))
    assert [one.metrics for one in limits] == [EVALUATE_METRICS, {}]
