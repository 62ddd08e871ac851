"""``fedsec compare`` in smoke size: one scenario, plain and secured, as a user runs it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

import fedsec
from fedsec.cli.main import main
from fedsec.lab.compare_report import print_comparison

ROOT = Path(fedsec.__file__).parent.parent
PARAMETERS, ROUNDS, HOSPITALS = 22_158, 2, 3
SMOKE = [
    f"hospitals.count={HOSPITALS}",
    "training.examples=600",
    "training.test_examples=200",
    f"training.rounds={ROUNDS}",
]


def compared(folder: Path, *overrides: str) -> dict[str, Any]:
    options = [option for one in [*SMOKE, *overrides] for option in ("--set", one)]
    scenario = str(ROOT / "scenarios" / "ten-equal-hospitals")
    done = subprocess.run(
        [sys.executable, "-m", "fedsec", "compare", scenario, "--json", *options],
        cwd=folder, env=None, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


# Two processes with TensorFlow, one after the other.
@pytest.mark.slow
def test_both_sides_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    summary = compared(tmp_path)

    plain, secure = summary["plain"], summary["secure"]
    folder = Path(summary["run"])
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary["within_bound"] is True
    for one, other in zip(plain["rounds"], secure["rounds"], strict=True):
        assert (one["included"], other["included"]) == (HOSPITALS, HOSPITALS)
        assert 0 < other["difference"] <= other["error_bound"] < 2.0**-20 * 4
        # Both run freely: a rounding of 1e-8 in the first round moves at most an image or two of 200.
        assert abs(one["accuracy"] - other["accuracy"]) <= 0.02
    assert len(plain["rounds"]) == ROUNDS

    # Four bytes a parameter and three numbers up; both get the same model, and the config of four numbers.
    assert plain["upload_bytes"] == 4 * PARAMETERS + 3 * 8
    assert plain["upload_bytes"] < secure["upload_bytes"] < plain["upload_bytes"] + 2000
    sent, received = plain["traffic"]["hospitals"].values(), plain["traffic"]["server"].values()
    assert list(sent) == list(received)[::-1]
    assert plain["traffic"].keys() == {"hospitals", "server"}
    parties = {f"party-{i}" for i in range(3)}
    assert secure["traffic"].keys() == {"hospitals", "server", *parties}
    assert secure["memory"].keys() == {"hospitals and server", *parties}
    assert all(0 < one < 3e9 for one in [*plain["memory"].values(), *secure["memory"].values()])
    assert all(side["client_seconds"] <= side["seconds"] for side in (plain, secure))
    with Image.open(folder / "comparison.png") as picture:
        assert picture.size[0] > 800
    text = io.StringIO()
    print_comparison(summary, Console(file=text, width=100))
    for said in (
        "every opened average is within the stated bound",
        "party-2",
        f"{plain['upload_bytes']:,.0f}",
    ):
        assert said in text.getvalue()


def test_a_difference_above_the_bound_is_said_loudly() -> None:
    report = {
        "round": 1,
        "accuracy": 0.5,
        "included": 3,
        "difference": 1.0,
        "error_bound": 0.5,
        "seconds": 1.0,
    }
    side = {
        "rounds": [report],
        "traffic": {},
        "upload_bytes": 1.0,
        "seconds": 1.0,
        "client_seconds": 1.0,
        "memory": {},
        "memory_before": None,
    }
    summary = {"run": "runs/x", "within_bound": False, "plain": side, "secure": side, "seconds": 1.0}
    text = io.StringIO()
    print_comparison(summary, Console(file=text, width=100))
    assert "NOT every opened average" in text.getvalue()


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["aggregation.reveal_to=hospitals"], "never opened to the server"),
        (["privacy.level=hospital", "privacy.target_epsilon=8"], "noise of the aggregators"),
    ],
)
def test_an_average_that_nobody_opens_or_that_has_noise_cannot_be_compared(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--json", *(option for one in overrides for option in ("--set", one))]) == 2
    assert text in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
