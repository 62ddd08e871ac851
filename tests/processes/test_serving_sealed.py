"""``fedsec serve`` of a run whose model nobody has: real parties, killed ones, and what is on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fedsec.cluster.cluster import Cluster
from fedsec.errors import FedsecError, ProtocolError, UsageError
from fedsec.lab.rundir import RunFolder
from fedsec.lab.sealed import digest_of_run, finish_run, load_sealed
from fedsec.lab.share import plan_of, share
from fedsec.nn import plaintext
from fedsec.nn.planner import plan_network
from fedsec.serving.client import Client

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from sealed_model import NUMBER, SESSION, Sealed, network

ROOT = Path(__file__).resolve().parents[2]
PARTIES = ("party-0", "party-1", "party-2")
WAIT_S = 90.0
SEALED = Sealed.of(network())


def images(count: int) -> np.ndarray:
    return np.random.default_rng(5).uniform(size=(count, 6, 6, 1))


def expected(count: int) -> np.ndarray:
    return plaintext.predict(*plan_network(SEALED.real), images(count))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """What a training with ``reveal_to = "nobody"`` leaves: a plan, where the states are, and the states."""
    made = RunFolder.create(tmp_path, "sealed")
    SEALED.model.plan.save(made.plan)
    words = {"words": SEALED.model.words, "fraction_bits": SEALED.model.fraction_bits}
    sources = [[source.start, source.factor, source.shift] for source in SEALED.model.sources]
    made.sealed.write_text(str({**words, "sources": sources}).replace("'", '"').replace("None", "null"))
    finish_run(made, SESSION, NUMBER)
    for party, name in enumerate(PARTIES):
        state = made.path / "parties" / name / "state"
        state.mkdir(parents=True, mode=0o700)
        SEALED.store({party: state})
    return made


@pytest.fixture
def served(folder: RunFolder) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "fedsec", "serve", str(folder.path), "--num-requests", "4"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.terminate()


def pid_of(folder: RunFolder, party: str) -> int:
    config = str(folder.path / "parties" / party / "party.toml").encode()
    entries = (entry for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return next(int(e.name) for e in entries if config in (e / "cmdline").read_bytes().split(b"\0"))


def ask(folder: RunFolder) -> bool:
    try:
        with Client.connect(*map(str, folder.credentials("user"))) as user:
            np.testing.assert_allclose(user.predict(images(1)), expected(1), atol=1e-2)
    except FedsecError:
        return False
    return True


def test_a_sealed_run_is_served_and_goes_on_after_a_party_was_killed(
    folder: RunFolder, served: subprocess.Popen[str]
) -> None:
    assert not folder.model.exists()
    assert not folder.weights.exists()
    until(lambda: folder.cluster.is_file() and ask(folder))
    os.kill(pid_of(folder, "party-1"), signal.SIGKILL)
    for _ in range(3):
        until(lambda: ask(folder))
    assert served.stdout is not None
    printed = served.stdout.read()
    assert "party-1" in printed
    assert "answered 4 image(s); the service has ended" in printed
    assert served.wait(WAIT_S) == 0


@pytest.mark.slow
def test_a_party_that_has_lost_its_state_is_named(folder: RunFolder) -> None:
    for state in (folder.path / "parties" / "party-2" / "state").rglob("*.state"):
        state.unlink()
    with Cluster.local(folder.path) as cluster, pytest.raises(ProtocolError, match="party-2: there is no"):
        share(folder.path, cluster)


def test_a_run_that_did_not_finish_and_one_without_parameters_say_so(folder: RunFolder) -> None:
    assert digest_of_run(folder) == SEALED.states[0].serves
    assert load_sealed(folder) == SEALED.model
    with pytest.raises(UsageError, match='reveal_to = "nobody"'):
        plan_of(folder.path)
    finish_run(folder, b"", 0)
    with pytest.raises(UsageError, match="did not finish"):
        load_sealed(folder)
    folder.sealed.write_text("{}")
    with pytest.raises(UsageError, match=r"sealed\.json, which says where a sealed model lies"):
        load_sealed(folder)
