"""Every scenario in smoke size, through its own run.py."""

import json
import runpy
import sys
from pathlib import Path

import pytest

import fedsec
from fedsec.cli.main import main
from fedsec.scenario import Scenario

ROOT = Path(fedsec.__file__).parent.parent
SCENARIOS = ROOT / "scenarios"
SMOKE = ["training.test_examples=200", "training.rounds=1"]
SMALLER = {
    "ten-equal-hospitals": ["hospitals.count=3", "aggregation.minimum_cohort=2", "training.examples=600"],
    "thirty-skewed-hospitals": ["hospitals.count=6", "aggregation.minimum_cohort=2", "training.examples=600"],
    "three-of-ten-drop": ["training.rounds=2", "training.examples=1000"],
    "memorised-canaries": [
        "training.examples=150", "training.local_epochs=1", "study.values=[0]", 'study.audits=["membership"]',
    ],
    "private-hospitals": ["hospitals.count=3", "aggregation.minimum_cohort=2", "training.examples=600"],
    "privacy-curve": ["training.examples=300", "training.learning_rate=1", "study.values=[2]"],
    "fairness-under-privacy": [
        "hospitals.count=6", "aggregation.minimum_cohort=2", "training.examples=600",
        "study.values=[0]", 'study.audits=["fairness"]',
    ],
    "gradient-inversion": ["training.examples=150", "training.model=mlp"],
    "many-hospitals": ["hospitals.count=20", "training.examples=1000"],
}  # fmt: skip


def test_there_is_a_smoke_size_for_every_scenario() -> None:
    assert {path.name for path in SCENARIOS.iterdir() if path.is_dir()} == set(SMALLER)


@pytest.mark.parametrize("name", SMALLER)
def test_scenario_folders_are_complete(name: str) -> None:
    assert Scenario.load(SCENARIOS / name).name == name
    readme = (SCENARIOS / name / "README.md").read_text()
    assert f"fedsec run scenarios/{name}" in readme
    for part in ("## Question", "## Set-up", "## Command", "## Expected"):
        assert part in readme, part


@pytest.mark.parametrize("name", SMALLER)
def test_scenarios_run_in_smoke_size(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*SMOKE, *SMALLER[name]]
    script = SCENARIOS / name / "run.py"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(sys, "argv", [str(script), *overrides])

    runpy.run_path(str(script), run_name="__main__")

    scenario = Scenario.load(SCENARIOS / name, overrides)
    latest = tmp_path / "runs" / "latest"
    left = scenario.hospitals.count - scenario.hospitals.dropped_each_round
    for folder in runs_of(latest):
        summary = json.loads((folder / "summary.json").read_text())
        assert [report["included"] for report in summary["rounds"]] == [left] * scenario.training.rounds
        assert all(report["difference"] <= report["error_bound"] for report in summary["rounds"])
        assert Path(summary["run"], "model.keras").is_file()
    assert f"from {left} hospitals" in capsys.readouterr().out
    if scenario.study.wanted:
        assert list(latest.glob("*.png")), "a study ends in a figure"


def runs_of(folder: Path) -> list[Path]:
    """Return the folders of a study's runs, or the folder of one run."""
    study = folder / "study.json"
    if not study.is_file():
        return [folder]
    return [Path(row["run"]) for row in json.loads(study.read_text())["runs"]]


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy.name=fedavgm"],
        ["strategy.name=fedadam", "strategy.server_learning_rate=0.01"],
        ["aggregation.ring_bits=64", "aggregation.clip=30"],
        ["aggregation.aggregators=5"],
    ],
)
def test_other_strategies_rings_and_numbers_of_aggregators(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    sizes = [*SMOKE, *SMALLER["ten-equal-hospitals"], "training.rounds=2"]
    scenario = Scenario.load(SCENARIOS / "ten-equal-hospitals", [*sizes, *overrides])

    result = fedsec.run_scenario(scenario, runs=tmp_path)

    assert [report.included for report in result.rounds] == [3, 3]
    assert len(result.seen) == scenario.aggregation.aggregators
    for report in result.rounds:
        assert report.difference is not None
        assert report.error_bound is not None
        assert report.difference <= report.error_bound


def test_other_hospitals_drop_in_every_round(tmp_path: Path) -> None:
    from fedsec.federation.grid import DropEachRound  # noqa: PLC0415 - loads Flower

    scenario = Scenario.load(SCENARIOS / "three-of-ten-drop")
    drop = DropEachRound(scenario.hospitals.dropped_each_round, scenario.hospitals.count, scenario.seed)
    missing = [{hospital for hospital in range(10) if drop(number, hospital)} for number in range(1, 9)]
    assert all(len(hospitals) == 3 for hospitals in missing)
    assert len({frozenset(hospitals) for hospitals in missing}) > 4


def test_the_command_line_refuses_what_does_not_fit_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["run", str(SCENARIOS / "many-hospitals"), "--set", "hospitals.cout=100"]
    assert main(command) == 2
    expected = "fedsec: --set: unknown key 'hospitals.cout'; did you mean 'hospitals.count'?\n"
    assert capsys.readouterr() == ("", expected)
    assert list(tmp_path.iterdir()) == []
