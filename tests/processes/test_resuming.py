"""A service that is interrupted: parties killed, stopped and told to end under a real ``fedsec serve``."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fedsec.cluster.cluster import Cluster
from fedsec.errors import FedsecError, PeerLostError, TrustError, UsageError
from fedsec.lab.rundir import RunFolder
from fedsec.lab.share import share
from fedsec.nn import Network, Plan, Weights, plaintext, plan_network, save_weights
from fedsec.nn.network import ConvLayer, DenseLayer, FlattenLayer, ReluLayer
from fedsec.serving.client import Client

ROOT = Path(__file__).resolve().parents[2]
PARTIES = ("party-0", "party-1", "party-2")
WAIT_S = 90.0


def small_network() -> tuple[Plan, Weights]:
    rng = np.random.default_rng(11)
    layers = (
        ConvLayer("conv", rng.normal(size=(3, 3, 1, 2)) / 3, rng.normal(size=2) / 4),
        ReluLayer("relu"),
        FlattenLayer("flat"),
        DenseLayer("dense", rng.normal(size=(32, 4)) / 6, rng.normal(size=4)),
    )
    return plan_network(Network("small", (6, 6, 1), layers))


PLAN, WEIGHTS = small_network()


def images(count: int) -> np.ndarray:
    return np.random.default_rng(5).uniform(size=(count, 6, 6, 1))


def expected(count: int) -> np.ndarray:
    return plaintext.predict(PLAN, WEIGHTS, images(count))


class Served:
    """A run that ``fedsec serve`` serves in a process of its own, and what that prints."""

    def __init__(self, folder: RunFolder, *options: str) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.errors = folder.path / "errors.txt"
        command = [sys.executable, "-m", "fedsec", "serve", str(folder.path), *options]
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as printed:
            self.lines.extend(line.rstrip("\n") for line in printed)

    def wait_for(self, text: str, count: int = 1) -> None:
        until(lambda: sum(text in line for line in self.lines) >= count or self.process.poll() is not None)
        assert sum(text in line for line in self.lines) >= count, "\n".join(self.lines)

    def pid(self, party: str) -> int:
        """Find the party's process by its command line: it changes when it is started again."""
        config = str(self.folder.path / "parties" / party / "party.toml")
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if config in (entry / "cmdline").read_bytes().decode().split("\0"):
                        return int(entry.name)
        raise AssertionError(f"{party} does not run")

    def client(self) -> Client:
        return Client.connect(*map(str, self.folder.credentials("user")))

    def answered_again(self) -> None:
        """Ask until there is an answer, as a user would who is told to wait."""

        def ask() -> bool:
            try:
                with self.client() as user:
                    np.testing.assert_allclose(user.predict(images(1)), expected(1), atol=1e-2)
            except FedsecError:
                return False
            return True

        until(ask)

    def end(self) -> tuple[int, str]:
        """End it, if it still runs; returns its exit code and what it said on standard error."""
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(WAIT_S)
        self._reader.join(5)
        return code, self.errors.read_text()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder.create(tmp_path, "small")
    PLAN.save(made.plan)
    save_weights(made.weights, WEIGHTS)
    return made


Start = Callable[..., Served]


@pytest.fixture
def serve(folder: RunFolder) -> Iterator[Start]:
    started: list[Served] = []

    def start(*options: str) -> Served:
        served = Served(folder, *options)
        started.append(served)
        served.wait_for("in Python: fedsec.Client.connect(")
        return served

    yield start
    for served in started:
        served.end()


def status(folder: RunFolder, *options: str) -> tuple[int, dict]:
    done = subprocess.run(
        [sys.executable, "-m", "fedsec", "status", str(folder.path), "--json", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    return done.returncode, json.loads(done.stdout)


def test_threat_42_52_the_service_goes_on_after_any_party_was_killed(serve: Start, folder: RunFolder) -> None:
    served = serve("--num-requests", "9", "--quota", "8")
    with served.client() as user:
        for round_, victim in enumerate(PARTIES, start=1):
            user.predict(images(1))
            os.kill(served.pid(victim), signal.SIGKILL)
            with pytest.raises(PeerLostError, match=victim):
                user.predict(images(1))
            served.wait_for("the service goes on", round_)
            # The same client finds the service again.
            np.testing.assert_allclose(user.predict(images(1)), expected(1), atol=1e-2)
            assert served.process.poll() is None
    assert [line.split()[-1] for line in served.lines if "started again" in line] == list(PARTIES)
    # Six answers so far, whoever was restarted: the numbers go on.
    code, told = status(folder, "--ledger")
    assert (code, told["state"], told["answered"], told["left"]) == (0, "serving", 6, 3)
    assert [party["answered"] for party in told["parties"]] == [6] * 3
    assert [query["name"] for query in told["ledger"]] == ["user"] * 6
    with served.client() as user:
        with pytest.raises(TrustError, match="2 more images"):
            user.predict(images(3))
        np.testing.assert_allclose(user.predict(images(2)), expected(2), atol=1e-2)
        with pytest.raises(TrustError, match="0 more images"):
            user.predict(images(1))
    assert served.end()[0] == 143
    assert status(folder)[0] == PeerLostError.exit_code


def test_the_service_goes_on_after_a_party_was_told_to_end_and_ends_at_its_number(serve: Start) -> None:
    served = serve("--num-requests", "4")
    with served.client() as user:
        user.predict(images(1))
    os.kill(served.pid("party-0"), signal.SIGTERM)
    served.wait_for("the service goes on, with 1 image(s) answered before")
    served.answered_again()
    with served.client() as user:
        user.predict(images(2))
    served.wait_for("answered 4 image(s); the service has ended")
    assert (served.process.wait(WAIT_S), served.end()) == (0, (0, ""))


@pytest.mark.slow  # the wait for a silent party is what is tested
def test_threat_43_a_party_that_hangs_is_replaced(serve: Start) -> None:
    served = serve()
    with served.client() as user:
        user.predict(images(1))
        os.kill(served.pid("party-2"), signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(PeerLostError, match="party-2"):
            user.predict(images(1))
        assert time.monotonic() - began < 15
    served.wait_for("started again: party-2")
    served.answered_again()


def test_sigterm_answers_what_was_accepted(folder: RunFolder, tmp_path: Path) -> None:
    """Eight users ask at once; everyone gets an answer or an error that says that the service ends.

    The parties are standing ones, which go on: those that ``fedsec serve`` starts itself end behind the
    service, and a user who asks later than that finds nobody who could say why.
    """
    outcomes: list[str] = []

    def ask(user: Client) -> None:
        try:
            while True:
                np.testing.assert_allclose(user.predict(images(2)), expected(2), atol=1e-2)
                outcomes.append("answered")
        except FedsecError as error:
            outcomes.append(str(error))

    with Cluster.local(tmp_path / "cluster") as cluster:
        served = Served(folder, "--cluster", str(cluster.file), "--identity", str(cluster.identity("owner")))
        try:
            served.wait_for("in Python: fedsec.Client.connect(")
            users = [Client.connect(cluster) for _ in range(8)]
            threads = [threading.Thread(target=ask, args=(user,), daemon=True) for user in users]
            for thread in threads:
                thread.start()
            until(lambda: len(outcomes) > 20)
        finally:
            code, _ = served.end()
        for thread in threads:
            thread.join(WAIT_S)
        for user in users:
            user.close()
    assert code == 143
    refused = [outcome for outcome in outcomes if outcome != "answered"]
    assert len(refused) == len(users)
    others = [
        text for text in refused if "being stopped by its owner" not in text and "was stopped by" not in text
    ]
    assert not others, others


def test_threat_33_a_run_that_is_served_again_goes_on_with_its_quotas(serve: Start) -> None:
    first = serve("--quota", "3")
    with first.client() as user:
        user.predict(images(2))
    assert first.end()[0] == 143
    again = serve("--quota", "3")
    with again.client() as user:
        with pytest.raises(TrustError, match="1 more images"):
            user.predict(images(2))
        np.testing.assert_allclose(user.predict(images(1)), expected(1), atol=1e-2)


def test_what_a_dead_owner_left_behind_can_be_replaced(folder: RunFolder, tmp_path: Path) -> None:
    with Cluster.local(tmp_path / "cluster") as cluster:
        abandoned = share(folder.path, cluster)
        abandoned.serve()
        abandoned._owner.close()
        with pytest.raises(UsageError, match="--replace"):
            share(folder.path, cluster)
        with Client.connect(cluster) as user:
            user.predict(images(1))
        with share(folder.path, cluster, replace=True) as shared:
            shared.serve(num_requests=1)
            with Client.connect(cluster) as user:
                np.testing.assert_allclose(user.predict(images(1)), expected(1), atol=1e-2)
            assert shared.wait(WAIT_S) == 1
