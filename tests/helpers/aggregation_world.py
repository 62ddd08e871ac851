"""All roles in one process: identities without certificates, a clock that tests move, and a round."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedsec.aggregation import (
    Aggregator,
    Announcement,
    ArraySpec,
    Collector,
    HospitalClient,
    Member,
    MemoryNetwork,
    MetricSpec,
    Policy,
    RoundResult,
    Signed,
    TrustFile,
    TrustLimits,
    encode_config,
    plan_encoding,
)
from fedsec.aggregation.announcement import ANNOUNCEMENT_VERSION, array_digest, members, sign_announcement
from fedsec.aggregation.messages import CloseUploads
from fedsec.transport import Deadline, Endpoint, Peer, Role


class FakeIdentity:
    """An Ed25519 key with a name, as :class:`fedsec.transport.Identity` has, without files."""

    def __init__(self, name: str, role: Role) -> None:
        self._key = Ed25519PrivateKey.generate()
        self.name = name
        self.public_key = self._key.public_key().public_bytes_raw()
        self.peer = Peer(name, role, self.public_key, "00" * 32)

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


@dataclass
class World:
    """A server, n aggregators and hospitals; ``clock`` is the aggregators' time."""

    folder: Path
    aggregator_count: int = 3
    hospital_count: int = 4
    cohort: int = 2
    now: float = 1000.0
    session: bytes = field(default_factory=lambda: secrets.token_bytes(16))

    def __post_init__(self) -> None:
        self.server = FakeIdentity("server", Role.SERVER)
        self.parties = [FakeIdentity(f"agg-{i}", Role.PARTY) for i in range(self.aggregator_count)]
        self.hospitals = [FakeIdentity(f"h{i:02}", Role.HOSPITAL) for i in range(self.hospital_count)]
        self.roster = {one.name: one.public_key for one in self.hospitals}
        self.policy = Policy(
            server=self.server.public_key,
            aggregators={one.name: one.public_key for one in self.parties},
            hospitals=self.roster,
            minimum_cohort=self.cohort,
        )
        self.network = MemoryNetwork(
            [self.start(one) for one in self.parties], [one.peer for one in self.parties]
        )
        self.network.pump()  # they greet each other; before that no round begins
        self.collector = Collector([], self.server, links=self.network.links(self.server.peer))
        self.clients: dict[str, HospitalClient] = {}

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self.clients.values():
            client.close()
        for aggregator in self.network.aggregators.values():
            aggregator.close()

    def start(self, party: FakeIdentity, policy: Policy | None = None) -> Aggregator:
        return Aggregator(party, policy or self.policy, self.state_of(party.name), clock=lambda: self.now)

    def state_of(self, name: str) -> Path:
        return self.folder / "parties" / name

    def restart(self, name: str) -> Aggregator:
        self.network.aggregators[name].close()
        (party,) = (one for one in self.parties if one.name == name)
        self.network.aggregators[name] = self.start(party)
        return self.network.aggregators[name]

    def trust(self, hospital: FakeIdentity, **limits: Any) -> TrustFile:
        return TrustFile(
            identity=self.folder / f"{hospital.name}.pem",
            state=self.folder / "hospitals" / hospital.name,
            server=self.server.public_key,
            aggregators=tuple(Endpoint(p.name, "127.0.0.1", 1, p.public_key) for p in self.parties),
            roster=self.roster,
            limits=TrustLimits(
                **{
                    "minimum_cohort": self.cohort,
                    "weights": ("examples", "bucketed", "equal"),
                    "metrics": {"accuracy": (0.0, 1.0), "loss": (0.0, 20.0)},
                    **limits,
                }
            ),
        )

    def client(self, hospital: FakeIdentity) -> HospitalClient:
        if hospital.name not in self.clients:
            self.clients[hospital.name] = HospitalClient(
                self.trust(hospital), identity=hospital, links=self.network.links(hospital.peer)
            )
        return self.clients[hospital.name]

    def restart_client(self, hospital: FakeIdentity) -> HospitalClient:
        self.clients.pop(hospital.name).close()
        return self.client(hospital)

    def announcement(
        self,
        arrays: Sequence[np.ndarray] = (np.zeros((2, 3), np.float32), np.zeros(4, np.float32)),
        *,
        config: Mapping[str, Any] | None = None,
        clips: Sequence[float] = (1.0, 0.5),
        largest_weight: int = 1000,
        ring_bits: int = 32,
        weights: str = "examples",
        **fields: Any,
    ) -> Announcement:
        metrics = (MetricSpec("accuracy", 0.0, 1.0), MetricSpec("loss", 0.0, 20.0))
        values = {
            "version": ANNOUNCEMENT_VERSION,
            "session": self.session,
            "round": 1,
            "phase": "train",
            "roster": members(self.roster),
            "aggregators": members({one.name: one.public_key for one in self.parties}),
            "vector_rule": "rotate",
            "reveal_to": "server",
            "recipient": Member(self.server.name, self.server.public_key),
            "arrays": tuple(
                ArraySpec(f"array-{i}", array.dtype.name, array.shape, clip)
                for i, (array, clip) in enumerate(zip(arrays, clips, strict=True))
            ),
            "array_digests": tuple(array_digest(array) for array in arrays),
            "config": encode_config({"lr": 0.01, "epochs": 1} if config is None else config),
            "metrics": metrics,
            "encoding": plan_encoding(
                self.hospital_count,
                max(clips),
                largest_weight,
                1.0 if weights == "equal" else 10.0,
                ring_bits,
                weights=weights,
            ),
            "minimum_cohort": self.cohort,
            "upload_seconds": 60.0,
        }
        return Announcement(**{**values, **fields})

    def sign(self, announcement: Announcement) -> Signed:
        return Signed(announcement.encode(), sign_announcement(announcement, self.server))

    def open(self, announcement: Announcement) -> Signed:
        return self.collector.announce(announcement, soon())

    def submit(
        self,
        hospital: FakeIdentity,
        announcement: Announcement,
        signed: Signed,
        contribution: Contribution,
        arrays: Sequence[np.ndarray] = (np.zeros((2, 3), np.float32), np.zeros(4, np.float32)),
        *,
        config: Mapping[str, Any] | None = None,
    ) -> bytes:
        client = self.client(hospital)
        config = {"lr": 0.01, "epochs": 1} if config is None else config
        accepted = client.accept(signed.payload, signed.signature, arrays, config)
        update = contribution.update if announcement.phase == "train" else []
        return client.submit(accepted, update, contribution.num_examples, contribution.metrics)

    def close_uploads(self, announcement: Announcement) -> None:
        for name in self.network.aggregators:
            self.network.ask(self.server.peer, name, CloseUploads(announcement.id))
        self.network.pump()

    def collect(self, announcement: Announcement) -> RoundResult:
        return self.collector.collect(announcement, soon())


@dataclass(frozen=True)
class Contribution:
    """What one hospital submits."""

    update: list[np.ndarray]
    num_examples: int
    metrics: dict[str, float]


def contribution(
    seed: int, shapes: Sequence[tuple[tuple[int, ...], float]] = (((2, 3), 1.0), ((4,), 0.5))
) -> Contribution:
    generator = np.random.default_rng(seed)
    update = [generator.uniform(-clip, clip, shape).astype(np.float32) for shape, clip in shapes]
    metrics = {"accuracy": float(generator.uniform()), "loss": float(generator.uniform(0, 20))}
    return Contribution(update, int(generator.integers(1, 1000)), metrics)


def soon() -> Deadline:
    return Deadline.after(10.0)


def replaced(message: msgspec.Struct, **fields: Any) -> Any:
    return msgspec.structs.replace(message, **fields)
