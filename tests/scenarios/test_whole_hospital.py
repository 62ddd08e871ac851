"""Noise nobody holds, as a scenario: the claim, what it rests on, and what it costs."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from pathlib import Path

import pytest

import fedsec
from fedsec.lab.accounts import cost_before
from fedsec.lab.engines import Engine
from fedsec.scenario import Scenario

ROOT = Path(fedsec.__file__).parent.parent
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Flower's simulation engine needs the extra fedsec[ray]"
)


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


def test_a_run_says_beforehand_how_long_its_noise_is() -> None:
    """With noise multiplier z, n aggregators of which one is honest, d parameters: sqrt(n d) z / N clips."""
    z = 3.5
    epsilon = min(
        6 * order / (2 * z * z) + math.log1p(-1 / order) - math.log(1e-4 * order) / (order - 1)
        for order in range(2, 300)
    )
    told = cost_before(scenario(f"privacy.target_epsilon={epsilon}", "training.rounds=6"), 22_000)
    found = re.search(r"average over 10 hospitals will be ([\d.]+) clips", told)
    assert found is not None
    # Rounding makes an update a thousandth longer, and the noise with it.
    assert float(found[1]) == pytest.approx(math.sqrt(3 * 22_000) * z / 10, rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["deployment", pytest.param("ray", marks=needs_ray)])
def test_flowers_own_engines_have_the_same_noise_and_accounts(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    result = fedsec.run_scenario(
        scenario(
            "training.rounds=2", "training.examples=300", "training.test_examples=50", "training.model=mlp",
            "hospitals.count=3", "hospitals.dropped_each_round=0", "aggregation.minimum_cohort=2",
        ),
        runs=tmp_path,
        engine=engine,
    )  # fmt: skip
    assert result.whole_hospital is not None
    assert 5.99 < result.whole_hospital.epsilon <= 6
    assert result.whole_hospital.rounds == 2


@pytest.mark.slow
def test_a_hundred_hospitals_learn_something_where_ten_learn_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As measured for the documentation: 92.85 % and 14.9 %."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    reached = {
        count: fedsec.run_scenario(
            scenario(
                "privacy.target_epsilon=8", "privacy.delta=1e-5", "training.rounds=6", "training.model=gabor",
                f"hospitals.count={count}", "hospitals.dropped_each_round=0",
            ),
            runs=tmp_path,
        ).accuracy
        for count in (10, 100)
    }  # fmt: skip
    assert reached[10] < 0.5
    assert reached[100] > 0.8
