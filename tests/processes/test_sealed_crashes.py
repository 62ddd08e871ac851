"""A party of a sealed round is killed at every step: one update is lost, the model never half changed."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest

from fedsec.aggregation import Collector, HospitalClient, TrustFile, TrustLimits
from fedsec.cluster.cluster import Cluster
from fedsec.errors import PeerLostError
from fedsec.transport import ClusterFile, Identity

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from crashing_sealed_party import STEPS
from sealed_site import SealedRoundsOf, initial_model

HELPER = Path(__file__).resolve().parents[1] / "helpers" / "crashing_sealed_party.py"


class Site(SealedRoundsOf):
    """Three party processes that die on command; hospitals and server are in the test."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        limits = TrustLimits(minimum_cohort=2, metrics={"loss": (0.0, 10.0)}, reveal_to=("hospitals",))
        command = (sys.executable, str(HELPER))
        self.local = Cluster.local(
            folder, hospitals=3, minimum_cohort=2, limits=limits, command=command
        ).start()
        stack.callback(self.local.stop)
        self.cluster = ClusterFile.load(self.local.file)
        self.server = Identity.load(self.local.identity("server"))
        self.collector = stack.enter_context(Collector(self.cluster.parties, self.server))
        self.clients = [
            stack.enter_context(HospitalClient(TrustFile.load(self.local.trust_file(name))))
            for name in sorted(self.cluster.hospitals)
        ]
        self.session = secrets.token_bytes(16)
        self.model = initial_model()

    def crash(self, party: str, step: int) -> None:
        (self.local.folder / "parties" / party / "crash").write_text(str(step))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(tmp_path_factory.mktemp("crashes"), stack)


@pytest.mark.parametrize(
    ("step", "victim"),
    [
        pytest.param(step, victim, marks=() if (step, victim) in {(2, 1), (5, 2)} else pytest.mark.slow)
        for step in STEPS
        for victim in range(3)
    ],
)
def test_a_killed_party_costs_one_update_and_nothing_else(site: Site, step: int, victim: int) -> None:
    site.session = secrets.token_bytes(16)
    party = f"party-{victim}"
    assert site.round(1, 0).state == 1
    before = site.clients[0].last_model(site.announcement(1, 0), site.model)

    site.crash(party, step)
    announcement = site.announcement(2, 1)
    site.take_part(announcement, site.open(announcement))
    survived = False
    # Before the metrics are collected, too: then the server hears that a party is lost, and nothing else.
    with suppress(PeerLostError):
        result = site.collect(announcement)
        # What is stored at all three when the server asks counts, also if its party dies right after.
        survived = step == 5 and result.state == 2
        assert survived or (result.state is None and result.not_sealed)
    # After its last step a party has answered before it dies.
    give_up, revived = time.monotonic() + 60, site.local.revive()
    while not revived and time.monotonic() < give_up:
        time.sleep(0.05)
        revived = site.local.revive()
    assert revived == [party]
    assert site.round(3, 2 if survived else 1).state == 3
    number, model = site.clients[1].last_model(site.announcement(3, 1), site.model)
    assert number == 3
    for index, (got, base) in enumerate(zip(model, before[1], strict=True)):
        expected = base + site.mean_update(3)[index] + (site.mean_update(2)[index] if survived else 0)
        assert np.abs(got - expected).max() < 2**-15
