"""A study without its runs: what it asks for, what it keeps, and what it shows."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from fedsec.audit import study
from fedsec.audit.curve import Rate
from fedsec.audit.study_report import print_study
from fedsec.cli.main import main
from fedsec.errors import DataError, RoundAbortedError
from fedsec.lab.result import RoundReport, RunResult, WholeHospital
from fedsec.lab.rundir import RunFolder
from fedsec.scenario import Scenario

PNG = b"\x89PNG"
ACCURACY = {0: 0.9, 8: 0.75}


class Lab:
    """Stands for the runs and the audit; remembers what was asked."""

    def __init__(self) -> None:
        self.scenarios: list[Scenario] = []
        self.audited: list[tuple[object, ...]] = []

    def run_scenario(self, scenario, *, runs, reporter, engine):
        self.scenarios.append(scenario)
        folder = RunFolder.create(Path(runs), scenario.name)
        fields = dict.fromkeys(field.name for field in dataclasses.fields(RoundReport))
        report = RoundReport(**{**fields, "round": 1, "accuracy": ACCURACY[scenario.privacy.target_epsilon]})
        return RunResult(folder=folder, scenario=scenario, rounds=(report,), traffic={}, seen={}, seconds=1.0)

    def audit_run(self, path, against, *, parts, into, reporter):
        self.audited.append((path, against, parts, into))
        return {"runs": [{"run": str(path)}], "folder": str(into), "seconds": 1.0}


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Lab:
    made = Lab()
    monkeypatch.setattr(study, "run_scenario", made.run_scenario)
    monkeypatch.setattr(study, "audit_run", made.audit_run)
    return made


def curve(**more: object) -> Scenario:
    varied = {"key": "privacy.target_epsilon", "values": [0, 8], **more}
    return Scenario.from_values({"name": "curve", "training": {"test_examples": 200}, "study": varied})


def test_each_value_is_one_run_and_all_are_attacked_together(lab: Lab, tmp_path: Path) -> None:
    found = study.run_study(curve(audits=["fairness"]), runs=tmp_path)

    assert [one.privacy.target_epsilon for one in lab.scenarios] == [0, 8]
    first, second = (result.folder.path for result in found.runs)
    assert lab.audited == [(first, [second], ("fairness",), found.folder.path)]
    # Runs lie below the study, whose folder is the newest run's.
    assert first.parent == second.parent == found.folder.path / "runs"
    assert (tmp_path / "latest").resolve() == found.folder.path
    assert Scenario.load(found.folder.scenario) == found.scenario
    stored = json.loads(found.folder.study.read_text())
    assert stored == json.loads(json.dumps(found.summary()))
    assert [row["value"] for row in stored["runs"]] == [0, 8]
    expected = Rate.of(150, 200)
    assert stored["runs"][1]["accuracy"] == {
        "value": 0.75, "low": expected.low, "high": expected.high,
    }  # fmt: skip
    assert found.folder.study_figure.read_bytes().startswith(PNG)


def test_a_study_without_a_key_is_one_run_and_its_attacks(lab: Lab, tmp_path: Path) -> None:
    found = study.run_study(Scenario().override('study.audits=["inversion"]'), runs=tmp_path)
    assert lab.scenarios == [Scenario()]
    assert lab.audited[0][1:3] == ([], ("inversion",))
    assert not found.folder.study_figure.exists()


def test_the_epsilon_of_whole_hospitals_is_no_lack_of_noise(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def of_hospitals(scenario, **asked):
        fields = dict.fromkeys(field.name for field in dataclasses.fields(WholeHospital))
        spent = WholeHospital(**{**fields, "epsilon": 5.5})
        return dataclasses.replace(lab.run_scenario(scenario, **asked), whole_hospital=spent)

    monkeypatch.setattr(study, "run_scenario", of_hospitals)
    scenario = Scenario().override("privacy.level=hospital", "privacy.target_epsilon=8")
    summary = study.run_study(scenario, runs=tmp_path).summary()
    assert summary["runs"][0]["epsilon"] == 5.5
    print_study(summary)
    shown = capsys.readouterr().out
    assert "5.500, whole hospital" in shown
    assert "no noise" not in shown


def test_without_attacks_there_is_no_audit(lab: Lab, tmp_path: Path) -> None:
    assert study.run_study(curve(), runs=tmp_path).audit is None
    assert not lab.audited


def test_the_first_run_that_fails_ends_the_study(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RoundAbortedError("no round ended with an average")

    monkeypatch.setattr(study, "run_scenario", fail)
    with pytest.raises(RoundAbortedError):
        study.run_study(curve(), runs=tmp_path)


def test_the_runs_are_kept_when_an_attack_fails(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DataError("MNIST could not be had")

    monkeypatch.setattr(study, "audit_run", fail)
    with pytest.raises(DataError):
        study.run_study(curve(audits=["fairness"]), runs=tmp_path)
    kept = RunFolder.open(tmp_path / "latest")
    stored = json.loads(kept.study.read_text())
    assert [row["accuracy"]["value"] for row in stored["runs"]] == [0.9, 0.75]
    assert stored["audit"] is None
    assert kept.study_figure.read_bytes().startswith(PNG)


def test_the_command_runs_a_study_and_prints_it(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "scenario.toml").write_text(curve().to_toml())
    assert main(["run", str(tmp_path), "--runs", str(tmp_path / "runs")]) == 0
    shown = capsys.readouterr().out
    assert "run 2 of 2: privacy.target_epsilon = 8" in shown
    assert "75.00% (68" in shown
    assert main(["run", str(tmp_path), "--runs", str(tmp_path / "runs"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["key"] == "privacy.target_epsilon"


def test_a_run_that_nobody_evaluated_has_no_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"value": None, "run": "/runs/a", "accuracy": None, "epsilon": 2.0, "level": "record"}
    print_study({"study": "/runs", "scenario": "s", "key": "", "runs": [row], "audit": None, "seconds": 1.0})
    assert "2.000" in capsys.readouterr().out
