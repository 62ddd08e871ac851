"""A federation on paper: keys, trust files and announcements, without connections or certificates."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fedsec.aggregation.announcement import Announcement, Member, RoundId, sign_announcement
from fedsec.aggregation.trust import TrustFile, TrustLimits
from fedsec.federation import mod as mod_module
from fedsec.federation.grid import RUN_ID, InProcessGrid
from fedsec.federation.mod import SecureAggregationMod
from fedsec.federation.plan import RoundPlan, announce_round
from fedsec.federation.records import array_names, config_items
from fedsec.transport import ClusterFile, Deadline, Endpoint, Identity, Meter, Peer, Role

# Test modules are no package here, so what several of them share is found by path.
sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))

from flower_site import Site, open_site

HOSPITALS = 4


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    one = open_site(tmp_path_factory.mktemp("site"))
    yield one
    for index in range(3):
        one.stop(index)


@pytest.fixture
def mod() -> Iterator[SecureAggregationMod]:
    one = SecureAggregationMod()
    yield one
    one.close()


def identity(name: str, role: Role) -> Identity:
    key = Ed25519PrivateKey.generate()
    peer = Peer(name, role, key.public_key().public_bytes_raw(), "00" * 32)
    return Identity(Path("/nowhere"), key, peer, "")


@dataclass
class PaperClient:
    """Stands in for the aggregation's client: checks like it, and keeps what it would share."""

    trust: TrustFile
    submitted: list[tuple[Announcement, list[Any], int, dict[str, float]]] = field(default_factory=list)
    paid: list[Announcement] = field(default_factory=list)
    receipts: list[Announcement] = field(default_factory=list)
    failure: Exception | None = None
    refusal: Exception | None = None
    closed: bool = False
    name: str = "hospital-00"
    meter: Meter = field(default_factory=Meter)

    def accept(
        self, payload: bytes, signature: bytes, arrays: list[Any], config: Mapping[str, Any]
    ) -> Announcement:
        return self.trust.check(payload, signature, arrays, config)

    def pay(self, announcement: Announcement) -> None:
        self.paid.append(announcement)

    def submit(
        self,
        announcement: Announcement,
        update: list[Any],
        num_examples: int,
        metrics: dict[str, float],
        *,
        base: list[Any] | None = None,
        saturate: bool = False,
    ) -> bytes:
        assert self.paid[-1:] == [announcement], "the mod trains before it has paid"
        assert saturate, "the mod lets a private value decide whether the hospital is there"
        if base is not None:
            pairs = zip(update, base, strict=True)
            update = [new.astype(np.float64) - old.astype(np.float64) for new, old in pairs]
        if self.failure is not None:
            raise self.failure
        self.submitted.append((announcement, update, num_examples, metrics))
        return b"upload-id-16byte"

    def unconfirmed(self) -> list[Announcement]:
        uploaded = {one[0].digest: one[0] for one in self.submitted}
        asked = {one.digest for one in self.receipts}
        return [one for digest, one in uploaded.items() if digest not in asked]

    def receipt(self, announcement: Announcement, deadline: Deadline) -> None:
        assert deadline.seconds <= 5
        self.receipts.append(announcement)
        if self.refusal is not None:
            raise self.refusal

    def close(self) -> None:
        self.closed = True


@dataclass
class Paper:
    """One hospital's desk: what the server may send it, and the mod that answers."""

    folder: Path
    server: Identity
    cluster: ClusterFile
    mod: SecureAggregationMod
    clients: list[PaperClient]
    plan: RoundPlan

    @property
    def trust(self) -> Path:
        return self.folder / "trust.toml"

    identity = staticmethod(identity)

    def context(self, run_config: dict[str, Any] | None = None) -> Context:
        node_config: dict[str, Any] = {"fedsec-trust": str(self.trust), "partition-id": 0}
        return Context(RUN_ID, 1000, node_config, RecordDict(), run_config or {})

    def content(self, **config: Any) -> RecordDict:
        arrays = ArrayRecord(
            {"w": Array(np.full((2, 3), 0.5, np.float32)), "b": Array(np.zeros(3, np.float32))}
        )
        return RecordDict(
            {"arrays": arrays, "config": ConfigRecord({"lr": 0.5, "server-round": 1, **config})}
        )

    def announce(
        self,
        content: RecordDict,
        *,
        phase: Any = "train",
        plan: RoundPlan | None = None,
        cluster: ClusterFile | None = None,
        recipient: Identity | None = None,
        run_config: dict[str, Any] | None = None,
    ) -> Announcement:
        name, record = next(iter(content.array_records.items()))
        arrays: dict[str, npt.NDArray[Any]] = {
            key: array.numpy() for key, array in zip(array_names(name, record), record.values(), strict=True)
        }
        who = recipient or self.server
        return announce_round(
            plan or self.plan,
            RoundId(os.urandom(16), 1, phase),
            cluster=cluster or self.cluster,
            recipient=Member(who.name, who.public_key),
            arrays=arrays,
            config=config_items(content.config_records, run_config or {}, "num-examples"),
        )

    def message(
        self,
        content: RecordDict,
        announcement: Announcement | None,
        *,
        signer: Identity | None = None,
        kind: str = "train",
    ) -> Message:
        records = dict(content)
        if announcement is not None:
            records["fedsec"] = ConfigRecord(
                {
                    "announcement": announcement.encode(),
                    "signature": sign_announcement(announcement, signer or self.server),
                    "weighted-by": "num-examples",
                }
            )
        return Message(RecordDict(records), dst_node_id=1000, message_type=kind)


@pytest.fixture
def paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paper:
    server = identity("server", Role.SERVER)
    hospitals = {f"hospital-{i:02}": identity(f"hospital-{i:02}", Role.HOSPITAL) for i in range(HOSPITALS)}
    roster = {name: one.public_key for name, one in hospitals.items()}
    parties = tuple(
        Endpoint(f"party-{i}", "127.0.0.1", 4000 + i, identity(f"party-{i}", Role.PARTY).public_key)
        for i in range(3)
    )
    trust = TrustFile(
        identity=tmp_path / "hospital-00.pem",
        state=tmp_path / "state",
        server=server.public_key,
        aggregators=parties,
        roster=roster,
        limits=TrustLimits(largest_weight=1000, largest_clip=4.0, metrics={"loss": (0.0, 10.0)}),
    )
    trust.save(tmp_path / "trust.toml")
    clients: list[PaperClient] = []

    def connect(trust: TrustFile, *, meter: Meter) -> PaperClient:
        clients.append(PaperClient(trust, meter=meter))
        return clients[-1]

    monkeypatch.setattr(mod_module, "HospitalClient", connect)
    monkeypatch.delenv("FEDSEC_TRUST", raising=False)
    # Messages need a task identity, which the grid sets.
    make: Callable[..., Any] = InProcessGrid
    make(lambda _message, _context: None, [{"partition-id": 0}])
    cluster = ClusterFile(authority="", parties=parties, server=server.public_key, hospitals=roster)
    plan = RoundPlan(largest_weight=1000, train_metrics={"loss": (0.0, 10.0)})
    return Paper(tmp_path, server, cluster, SecureAggregationMod(), clients, plan)
