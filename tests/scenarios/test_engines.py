"""One scenario on three engines, and what is left of an engine when it is stopped."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsec
from fedsec.cluster.guard import descendants
from fedsec.lab.handover import Handover

ROOT = Path(fedsec.__file__).parent.parent
SIZES = [
    "hospitals.count=3",
    "aggregation.minimum_cohort=2",
    "hospitals.dropped_each_round=1",
    "training.model=mlp",
    "training.examples=600",
    "training.test_examples=1000",
    "training.rounds=2",
]
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Flower's simulation engine needs the extra fedsec[ray]"
)
ON_FLOWER = [pytest.param("ray", marks=needs_ray), "deployment"]


def test_the_apps_of_the_engines_give_what_training_in_process_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ray runs them: no node configs but the partition, everything else from the environment."""
    from fedsec.federation.grid import InProcessGrid, node_configs, run_server_app  # noqa: PLC0415 - Flower
    from fedsec.federation.mod import secure_aggregation  # noqa: PLC0415
    from fedsec.lab import flower_apps  # noqa: PLC0415
    from fedsec.lab.experiment import running  # noqa: PLC0415
    from fedsec.lab.progress import Reporter  # noqa: PLC0415
    from fedsec.lab.run import run_scenario  # noqa: PLC0415
    from fedsec.learning.saved import load_keras  # noqa: PLC0415
    from fedsec.scenario import Scenario  # noqa: PLC0415

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    scenario = Scenario().override(*SIZES)
    plain = run_scenario(scenario, runs=tmp_path)
    with running(scenario, tmp_path, Reporter()) as experiment:
        run = experiment.folder.path
        monkeypatch.setenv("FEDSEC_RUN", str(run))
        monkeypatch.setenv("FEDSEC_TRUST", str(run / "keys" / "trust"))
        run_server_app(flower_apps.server, InProcessGrid(flower_apps.client, node_configs(3)))
        secure_aggregation.close()

    handover = Handover(run)
    handover.check()
    reports = handover.rounds(0)
    assert [one.names for one in reports] == [one.names for one in plain.rounds]
    assert {len(one.names) for one in reports} == {2}
    assert [one.difference for one in reports] == [None, None]
    with np.load(handover.parameters, allow_pickle=False) as arrays:
        for ours, theirs in zip(arrays.values(), load_keras(plain.folder.model).get_weights(), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert json.loads((run / "flower" / "outcome.json").read_text()) == {}


def test_the_apps_say_what_they_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedsec.errors import DeadlineError, UsageError  # noqa: PLC0415 - beside the next one
    from fedsec.federation.grid import InProcessGrid, node_configs, run_server_app  # noqa: PLC0415 - Flower
    from fedsec.lab import flower_apps  # noqa: PLC0415

    grid = InProcessGrid(flower_apps.client, node_configs(2))
    monkeypatch.delenv("FEDSEC_RUN", raising=False)
    with pytest.raises(UsageError, match=r"keys/server\.pem in the environment variable FEDSEC_RUN"):
        run_server_app(flower_apps.server, grid)
    monkeypatch.setattr(flower_apps, "HOSPITALS_S", -30)
    with pytest.raises(DeadlineError, match="2 of 3 hospitals have connected"):
        flower_apps._wait_for_hospitals(grid, 3)
    flower_apps._wait_for_hospitals(grid, 2)


def command(engine: str, sizes: Sequence[str], *more: str) -> list[str]:
    scenario = str(ROOT / "scenarios" / "ten-equal-hospitals")
    sets = [argument for size in sizes for argument in ("--set", size)]
    return [sys.executable, "-m", "fedsec", "run", scenario, "--engine", engine, *sets, *more]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def run(engine: str, folder: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    from fedsec.learning.saved import load_keras  # noqa: PLC0415 - loads TensorFlow

    done = subprocess.run(
        command(engine, SIZES, "--json", "--runs", str(folder / engine)),
        env=environment(), cwd=folder, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    summary = json.loads(done.stdout)
    return summary, load_keras(Path(summary["run"]) / "model.keras").get_weights()


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_ray
def test_one_scenario_gives_the_same_on_three_engines(tmp_path: Path) -> None:
    runs = {engine: run(engine, tmp_path) for engine in ("in-process", "ray", "deployment")}

    expected, parameters = runs["in-process"]
    for summary, found in runs.values():
        assert [one["names"] for one in summary["rounds"]] == [one["names"] for one in expected["rounds"]]
        assert [one["included"] for one in summary["rounds"]] == [2, 2]
        for one, other in zip(summary["rounds"], expected["rounds"], strict=True):
            assert abs(one["accuracy"] - other["accuracy"]) <= 0.005
            assert one["error_bound"] == other["error_bound"]
        for ours, theirs in zip(found, parameters, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
        # Every hospital sent its shares itself, and nothing of its update through Flower.
        hospitals = summary["traffic"]["hospitals"]["sent_bytes"]
        assert abs(hospitals - expected["traffic"]["hospitals"]["sent_bytes"]) < 0.02 * hospitals
    assert all(one["difference"] is not None for one in expected["rounds"])
    for engine in ("ray", "deployment"):
        assert all(one["difference"] is None for one in runs[engine][0]["rounds"])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ON_FLOWER)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_no_process_of_flowers(engine: str, number: signal.Signals, tmp_path: Path) -> None:
    with subprocess.Popen(
        command(engine, [*SIZES, "training.rounds=50"], "--runs", str(tmp_path)),
        env=environment(), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert any("round 1:" in line for line in process.stdout)
        started = descendants(process.pid)
        assert len(started) > 8
        process.send_signal(number)
        _, err = process.communicate(timeout=150)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 128 + number
        assert err == "fedsec: stopped by a signal; whatever it had started is stopped too\n"
    deadline = time.monotonic() + 90
    while left := [pid for pid in started if Path(f"/proc/{pid}").exists() and not _is_zombie(pid)]:
        assert number == signal.SIGKILL, left
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.slow
def test_a_program_of_flowers_that_dies_ends_the_run_by_its_name(tmp_path: Path) -> None:
    with subprocess.Popen(
        command("deployment", [*SIZES, "training.rounds=50"], "--runs", str(tmp_path)),
        env=environment(), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert any("round 1:" in line for line in process.stdout)
        started = descendants(process.pid)
        words = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in started}
        (victim,) = (
            pid for pid, line in words.items() if b"flower-superlink" in line and b"guard" not in line
        )
        os.kill(victim, signal.SIGKILL)
        _, err = process.communicate(timeout=150)
    assert process.returncode == 6
    assert "expected superlink to run; it ended with" in err
    assert err.count("\n") == 1
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists() and not _is_zombie(pid)]
