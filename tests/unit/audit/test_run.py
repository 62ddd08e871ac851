"""``fedsec audit`` as its user sees it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fedsec.audit import run
from fedsec.cli.main import main
from fedsec.lab.rundir import RunFolder
from fedsec.learning.data import Mnist


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, mnist: Mnist) -> None:
    monkeypatch.setattr(run, "load_mnist", lambda: mnist)


def test_one_run(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(folder.path), "--only", "membership", "fairness", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)

    assert found == json.loads(folder.audit.read_text())
    (audited,) = found["runs"]
    assert audited["run"] == str(folder.path)
    assert 0.5 < audited["membership"]["area"]["value"] <= 1
    assert len(audited["fairness"]["classes"]) == 10
    assert folder.audit_figure.read_bytes().startswith(b"\x89PNG")


def test_two_runs_side_by_side(
    folder: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    private = Path(shutil.copytree(folder.path, tmp_path / "private"))
    (private / "summary.json").write_text(json.dumps({"privacy": [{"epsilon": 2.0}]}))
    arguments = ["audit", str(folder.path), "--against", str(private), "--only", "membership", "fairness"]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert "by-heart, no noise" in shown.out
    assert "by-heart, epsilon 2.00" in shown.out
    assert "worst hospital" in shown.out
    assert "+0.00" in shown.out
    # Progress does not get into what is piped on.
    assert "accuracy by class" in shown.err
    assert "losses of members" not in shown.out


def test_an_unknown_part_and_a_run_without_a_model_are_refused(
    folder: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", str(folder.path), "--only", "membrship"]) == 2
    assert "membership, fairness" in capsys.readouterr().err
    shutil.copy(folder.scenario, tmp_path)
    assert main(["audit", str(tmp_path)]) == 2
    assert "an audit needs the model" in capsys.readouterr().err
