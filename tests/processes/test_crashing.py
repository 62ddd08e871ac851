"""Answers given never exceed what was allowed: many users at once, and parties killed at every step."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsec.cluster.certificates import Authority
from fedsec.cluster.cluster import Cluster
from fedsec.errors import FedsecError, PeerLostError, ServiceEndedError, TrustError
from fedsec.lab.keeping import keep
from fedsec.lab.rundir import RunFolder
from fedsec.lab.share import SharedModel, share
from fedsec.nn import Network, Plan, Weights, plaintext, plan_network, save_weights
from fedsec.nn.network import DenseLayer, FlattenLayer
from fedsec.serving import client as client_module
from fedsec.serving import messages
from fedsec.serving.client import Client
from fedsec.serving.owner import Owner
from fedsec.transport import ClusterFile, Identity, Role
from tests.helpers.crashing_party import STEPS

HELPER = Path(__file__).resolve().parents[1] / "helpers" / "crashing_party.py"
PARTIES = ("party-0", "party-1", "party-2")
USERS = ("anna", "ben", "cleo", "dora")
CLIENTS_EACH = 8
WAIT_S = 120.0


def small_network() -> tuple[Plan, Weights]:
    rng = np.random.default_rng(13)
    layers = (FlattenLayer("flat"), DenseLayer("dense", rng.normal(size=(16, 3)) / 4, rng.normal(size=3)))
    return plan_network(Network("small", (4, 4, 1), layers))


PLAN, WEIGHTS = small_network()
IMAGE = np.random.default_rng(5).uniform(size=(1, 4, 4, 1))


@dataclass
class Crowd:
    """32 clients of four users that ask, and ask again whatever happens, until they are refused for good."""

    cluster: Cluster
    answers: Counter[str] = field(default_factory=Counter)
    requests: set[bytes] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        keys = self.cluster.folder / "keys"
        authority = Authority.load(keys / "authority")
        for user in USERS:
            identity = authority.issue(keys / f"{user}.pem", user, Role.USER)
            self.threads += [
                threading.Thread(target=self._ask, args=(user, identity)) for _ in range(CLIENTS_EACH)
            ]
        for thread in self.threads:
            thread.start()

    def _ask(self, user: str, identity: Path) -> None:
        client: Client | None = None
        while True:
            try:
                client = client or Client.connect(self.cluster.file, identity)
                answer = client.predict(IMAGE)
            except TrustError as refused:
                if "more images" not in str(refused):
                    self.wrong.append(str(refused))
                break
            except (PeerLostError, ServiceEndedError) as lost:
                if "answers 0 more images" in str(lost) or "has answered its" in str(lost):
                    break
                if client is not None:
                    client.close()
                client = None
                time.sleep(0.05 * random.random())
                continue
            except FedsecError as error:
                self.wrong.append(f"{type(error).__name__}: {error}")
                break
            if not np.allclose(answer, plaintext.predict(PLAN, WEIGHTS, IMAGE), atol=1e-2):
                self.wrong.append("a wrong answer")
            self.answers[user] += 1
            self.requests.add(ASKED.request)
        if client is not None:
            client.close()

    def join(self) -> None:
        for thread in self.threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()
        assert self.wrong == []


@dataclass
class Kept:
    """A service that is kept going in a thread, as ``fedsec serve`` does it."""

    cluster: Cluster
    shared: SharedModel
    lines: list[str] = field(default_factory=list)
    ended: list[object] = field(default_factory=list)

    def keep(self) -> None:
        try:
            self.ended.append(keep(self.shared, self.lines.append, self.cluster))
        except FedsecError as error:
            self.ended.append(error)

    def resumptions(self) -> int:
        return sum("the service goes on" in line for line in self.lines)

    def crash(self, victim: str, step: int) -> None:
        """Let a party die at a step of one of the next batches, and wait until the service goes on."""
        before, file = self.resumptions(), self.cluster.folder / "parties" / victim / "crash"
        file.write_text(str(step))
        self.wait(lambda: not file.exists() and self.resumptions() > before)

    def wait(self, condition: Callable[[], bool]) -> None:
        until(lambda: condition() or bool(self.ended))
        assert condition(), "\n".join([*self.lines, *map(str, self.ended)])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster.local(tmp_path / "cluster", command=(sys.executable, str(HELPER))) as started:
        yield started


@contextlib.contextmanager
def kept(cluster: Cluster, quota: int | None = None, num_requests: int | None = None) -> Iterator[Kept]:
    run = RunFolder.create(cluster.folder, "run")
    PLAN.save(run.plan)
    save_weights(run.weights, WEIGHTS)
    with share(run.path, cluster) as shared:
        shared.serve(num_requests, quota=quota)
        service = Kept(cluster, shared)
        keeper = threading.Thread(target=service.keep)
        keeper.start()
        yield service
        if not service.ended:
            file, identity = ClusterFile.load(cluster.file), Identity.load(cluster.identity("owner"))
            with Owner(file.computing, identity) as owner:
                owner.stop()
        keeper.join(WAIT_S)
        assert not keeper.is_alive()


class Asked(threading.local):
    """The id of the request that this thread has sent last."""

    request = b""

    def query(self, **fields: Any) -> messages.Query:
        self.request = fields["request"]
        return messages.Query(**fields)


ASKED = Asked()


@pytest.fixture(autouse=True)
def listening(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients draw a request's id and keep it to themselves."""
    monkeypatch.setattr(client_module, "Query", ASKED.query)


def charges(cluster: Cluster, party: str) -> tuple[Counter[str], set[bytes]]:
    """Images charged to each user at a party, and the requests, by its own ledger."""
    path = cluster.folder / "parties" / party / "state" / "serving.sqlite"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        repeated = "SELECT COUNT(*) FROM charge GROUP BY model, fingerprint, request HAVING COUNT(*) > 1"
        assert db.execute(repeated).fetchall() == []
        users = Counter(dict(db.execute("SELECT name, SUM(images) FROM charge GROUP BY name")))
        return users, {request for (request,) in db.execute("SELECT request FROM charge")}


def test_threat_33_42_quotas_hold_with_32_clients_and_kill_9_at_every_step(cluster: Cluster) -> None:
    quota, crowd = 120, Crowd(cluster)
    with kept(cluster, quota=quota) as service:
        crowd.start()
        for number, step in enumerate(STEPS, start=1):
            service.crash(PARTIES[number % 3], step)
        crowd.join()
    ledgers = [charges(cluster, party) for party in PARTIES]
    # No answer was given that is not charged, durably, at all three.
    assert all(crowd.requests <= requests for _, requests in ledgers)
    for user in USERS:
        charged = [users[user] for users, _ in ledgers]
        # Everyone was refused in the end, so somewhere the quota is used up; nowhere is it exceeded.
        assert max(charged) == quota
        assert crowd.answers[user] <= min(charged)
        # A charge without an answer is of a request that was under way at a crash.
        assert quota - crowd.answers[user] <= len(STEPS) * CLIENTS_EACH


@pytest.mark.slow  # as many kills as it takes to hit what nobody thought of
def test_threat_33_42_the_number_of_answers_holds_with_kill_9_at_random_times(cluster: Cluster) -> None:
    most, kills, crowd = 600, 4, Crowd(cluster)
    with kept(cluster, num_requests=most) as service:
        crowd.start()
        for number in range(1, kills + 1):
            time.sleep(0.2 + secrets.randbelow(200) / 1000)
            if service.ended:
                break
            os.kill(service.cluster.pids()[secrets.choice(PARTIES)], signal.SIGKILL)
            service.wait(lambda number=number: service.resumptions() == number)  # type: ignore[misc]
        crowd.join()
        until(lambda: bool(service.ended))
    assert service.ended == [most]
    assert all(crowd.requests <= charges(cluster, party)[1] for party in PARTIES)
    answered = sum(crowd.answers.values())
    assert most - kills * len(USERS) * CLIENTS_EACH <= answered <= most
