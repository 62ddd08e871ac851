"""The demo in smoke size, and everything that follows from its run folder: serve and predict as processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedsec
from fedsec.lab.images import read_test_images
from fedsec.learning.data import load_mnist
from fedsec.nn import Plan, load_weights, plaintext
from fedsec.scenario import Scenario

PARTIES = ("party-0", "party-1", "party-2")
ROOT = Path(fedsec.__file__).parent.parent


def fedsec_command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "fedsec", *map(str, arguments)]


def environment() -> dict[str, str]:
    """The checkout is found from any folder, installed or not."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def run_fedsec(*arguments: object, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        fedsec_command(*arguments),
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def children_of(pid: int) -> set[int]:
    """Process ids of a process' living children, from /proc."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.add(int(status.parent.name))
    return found


def still_running(pids: Sequence[int] | set[int]) -> list[int]:
    """Those of some processes that live, zombies not counted."""
    alive = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            alive.append(pid)
    return alive


@dataclass(frozen=True)
class Demo:
    """A finished demo in smoke size."""

    folder: Path
    summary: dict[str, Any]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    cwd = tmp_path_factory.mktemp("demo")
    done = run_fedsec("demo", "--rounds", 2, "--examples", 3000, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    summary = json.loads(done.stdout)
    return Demo(Path(summary["run"]), summary)


def test_everything_is_in_the_run_folder(demo: Demo) -> None:
    names = {path.name for path in demo.folder.iterdir()}
    expected = {"scenario.toml", "metrics.jsonl", "summary.json", "model.keras", "plan.json", "weights.npz"}
    assert expected | {"cluster.toml", "keys", "logs"} <= names
    logs = {path.stem for path in (demo.folder / "logs").iterdir()}
    assert logs == {*PARTIES, "server-and-hospitals", "user"}
    assert json.loads((demo.folder / "summary.json").read_text()) == demo.summary
    scenario = Scenario.load(demo.folder / "scenario.toml")
    assert (scenario.training.rounds, scenario.training.examples) == (2, 3000)
    events = [json.loads(line)["event"] for line in (demo.folder / "metrics.jsonl").read_text().splitlines()]
    assert events == ["round", "round", "prediction", "traffic"]


def test_the_average_is_that_of_the_same_updates_within_the_stated_bound(demo: Demo) -> None:
    for report in demo.summary["rounds"]:
        assert report["included"] == 10
        assert report["statuses"] == {"stored": 10}
        assert 0 < report["difference"] <= report["error_bound"] < 1e-5


def test_threat_25_every_hospital_of_a_run_has_the_receipt_of_every_round(demo: Demo) -> None:
    kept = [len(list(folder.glob("receipts/*.receipt"))) for folder in (demo.folder / "keys/state").iterdir()]
    assert kept == [2] * 10
    for name in ("hospital-00", "hospital-07"):
        receipts = sorted((demo.folder / "keys" / "state" / name / "receipts").glob("*.receipt"))
        trust = demo.folder / "keys" / "trust" / f"{name}.toml"
        done = run_fedsec("verify-receipt", *receipts, "--trust", trust, "--json", cwd=demo.folder)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)["receipts"]
        assert [(one["hospital"], one["phase"], one["included"]) for one in found] == [
            (name, "train", 10)
        ] * 2
        assert [one["round"] for one in found] == [1, 2]


def test_private_answers_are_those_of_the_model_in_the_clear(demo: Demo) -> None:
    prediction = demo.summary["prediction"]
    plan = Plan.load(demo.folder / "plan.json")
    logits = plaintext.predict(
        plan, load_weights(demo.folder / "weights.npz", plan), read_test_images([0, 1, 2])
    )

    assert prediction["truth"] == [7, 2, 1]
    np.testing.assert_allclose(prediction["keras_logits"], logits, atol=1e-4)
    np.testing.assert_allclose(prediction["logits"], logits, atol=0.02)
    assert prediction["labels"] == list(logits.argmax(axis=-1))
    assert max(prediction["differences"]) <= 0.02


def test_every_role_is_counted_at_its_own_meter(demo: Demo) -> None:
    traffic, seen = demo.summary["traffic"], demo.summary["seen"]

    assert set(traffic) == {*PARTIES, "hospitals", "server", "owner", "user"}
    assert all(counted["sent_bytes"] > 0 for counted in traffic.values())
    # One full vector and two seeds a hospital and round: 4 bytes a parameter, and less than a tenth more.
    parameters = sum(array.size for array in np.load(demo.folder / "weights.npz").values())
    assert 4 * parameters * 20 < traffic["hospitals"]["sent_bytes"] < 4.4 * parameters * 20
    assert {kind: sum(seen[party][kind][0] for party in PARTIES) for kind in ("upload", "query")} == {
        # A part that is seeds, or small, comes in one message with its header; the full vector in two.
        "upload": (2 + 1 + 1) * 20,
        "query": 3,
    }


@contextmanager
def serving(cwd: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """``fedsec serve`` as a process, from the moment when it can be asked."""
    with subprocess.Popen(
        fedsec_command("serve", *arguments),
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("  fedsec predict"):
                    break
            yield process
        finally:
            process.kill()


def test_serve_ends_by_itself_after_its_requests(demo: Demo, tmp_path: Path) -> None:
    digit = tmp_path / "digit.png"
    Image.fromarray(load_mnist().test_images[1]).save(digit)
    expected = demo.summary["prediction"]["labels"]

    with serving(tmp_path, demo.folder, "--num-requests", 4) as process:
        parties = children_of(process.pid)
        assert len(parties) == 3
        answered = run_fedsec("predict", demo.folder, "--test-index", 0, 1, 2, cwd=tmp_path)
        assert (answered.returncode, answered.stderr) == (0, "")
        assert answered.stdout == " ".join(map(str, expected)) + "\n"

        credentials = (
            "--cluster",
            demo.folder / "cluster.toml",
            "--identity",
            demo.folder / "keys" / "user.pem",
        )
        answered = run_fedsec("predict", *credentials, "--image", digit, "--json", cwd=tmp_path)
        assert json.loads(answered.stdout)["labels"] == expected[1:2]

        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
        assert out == "answered 4 image(s); the service has ended\n"
    assert still_running(parties) == []


def test_a_user_may_ask_before_the_service_is_ready(demo: Demo, tmp_path: Path) -> None:
    with subprocess.Popen(
        fedsec_command("predict", demo.folder, "--wait", 150),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as user:
        time.sleep(1)
        assert user.poll() is None
        with serving(tmp_path, demo.folder, "--num-requests", 3) as process:
            out, _ = user.communicate(timeout=150)
            assert process.wait(timeout=120) == 0
    assert out == " ".join(map(str, demo.summary["prediction"]["labels"])) + "\n"


def test_asking_when_nobody_serves_is_one_line_and_an_exit_code(demo: Demo, tmp_path: Path) -> None:
    asked = run_fedsec("predict", demo.folder, cwd=tmp_path)
    assert asked.returncode == 6
    assert asked.stdout == ""
    assert asked.stderr.startswith("fedsec: ")
    assert asked.stderr.count("\n") == 1
    assert "party-" in asked.stderr


def test_a_role_that_may_not_ask_is_refused(demo: Demo, tmp_path: Path) -> None:
    cluster, keys = demo.folder / "cluster.toml", demo.folder / "keys"
    with serving(tmp_path, demo.folder):
        credentials = ("--cluster", cluster, "--identity", keys / "hospital-00.pem")
        asked = run_fedsec("predict", *credentials, "--test-index", 0, cwd=tmp_path)
    assert asked.returncode == 4
    assert asked.stderr.count("\n") == 1


def test_serving_a_run_loads_neither_tensorflow_nor_flower(demo: Demo, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "import fedsec.cli.serve, fedsec.cli.predict, fedsec.cli.party\n"
        "from fedsec.lab.share import plan_of\n"
        f"plan_of({str(demo.folder)!r})\n"
        "print(sorted({'tensorflow', 'keras', 'flwr'} & set(sys.modules)))"
    )
    command = [fedsec_command()[0], "-c", script]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("moment", "number", "code"),
    [
        ("MNIST", signal.SIGINT, 130),
        ("training", signal.SIGTERM, 143),
        pytest.param("MNIST", signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param("training", signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_the_demo_and_leaves_no_process(
    number: signal.Signals, code: int, moment: str, tmp_path: Path
) -> None:
    with subprocess.Popen(
        fedsec_command("demo", "--runs", tmp_path),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert any(line.rstrip().endswith(f"] {moment}") for line in process.stdout)
        parties = children_of(process.pid)
        assert len(parties) == 3
        time.sleep(0.5)
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
    assert process.returncode == code
    assert err == "fedsec: stopped by a signal; whatever it had started is stopped too\n"
    assert still_running(parties) == []


def test_a_signal_stops_serving_and_leaves_no_process(demo: Demo, tmp_path: Path) -> None:
    with serving(tmp_path, demo.folder) as process:
        parties = children_of(process.pid)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.count("\n") == 1
    assert still_running(parties) == []


def test_a_party_that_dies_ends_the_demo_with_its_name(tmp_path: Path) -> None:
    with subprocess.Popen(
        fedsec_command("demo", "--examples", 20_000, "--runs", tmp_path),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert any(line.rstrip().endswith("] training") for line in process.stdout)
        parties = children_of(process.pid)
        victim = next(pid for pid in parties if b"party-1" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(victim, signal.SIGKILL)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 6
    assert "party-1" in err
    assert "SIGKILL" in err
    assert err.count("\n") == 1
    assert still_running(parties) == []
