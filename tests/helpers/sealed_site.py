"""Three aggregators on sockets of this process, and rounds whose model stays in shares between them."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from fedsec.aggregation import (
    AggregatorService,
    Announcement,
    ArraySpec,
    Collector,
    HospitalClient,
    Member,
    MetricSpec,
    RoundResult,
    Signed,
    TrustFile,
    TrustLimits,
    encode_config,
    plan_encoding,
)
from fedsec.aggregation.announcement import array_digest, members
from fedsec.aggregation.sealed.terms import Sealed
from fedsec.cluster.keys import make_local_keys, write_trust_files
from fedsec.transport import ClusterFile, Deadline, Identity
from fedsec.transport.server import Server

CONFIG = {"lr": 0.01}
CLIPS = (1.0, 0.25)
SHAPES = ((40, 25), (16,))
FRACTION_BITS = 24
LARGEST_WEIGHT = 1000


def initial_model() -> list[np.ndarray]:
    generator = np.random.default_rng(7)
    return [generator.normal(size=shape).astype(np.float32) for shape in SHAPES]


def weight_of(seed: int) -> int:
    return 100 + 37 * seed


class SealedRoundsOf:
    """Rounds over whatever parties a site has; the collector plays the Flower server."""

    cluster: ClusterFile
    server: Identity
    collector: Collector
    clients: list[HospitalClient]
    session: bytes
    model: list[np.ndarray]

    def announcement(self, number: int = 1, base: int = 0, **fields: Any) -> Announcement:
        roster = members(self.cluster.hospitals)
        ring_bits = fields.pop("ring_bits", 32)
        sealed = Sealed(
            tuple(party.name for party in self.cluster.parties[:3]),
            FRACTION_BITS,
            base,
            fields.pop("keep_closed", False),
        )
        values = {
            "version": 1, "session": self.session, "round": number, "phase": "train",
            "roster": roster,
            "aggregators": members({one.name: one.public_key for one in self.cluster.parties}),
            "vector_rule": "rotate", "reveal_to": "hospitals",
            "recipient": Member("server", self.server.public_key),
            "arrays": tuple(
                ArraySpec(f"a{i}", "float32", shape, clip)
                for i, (shape, clip) in enumerate(zip(SHAPES, CLIPS, strict=True))
            ),
            "array_digests": tuple(array_digest(one) for one in self.model),
            "config": encode_config(CONFIG), "metrics": (MetricSpec("loss", 0.0, 10.0),),
            "encoding": plan_encoding(2 * len(roster), max(CLIPS), LARGEST_WEIGHT, 10.0, ring_bits),
            "minimum_cohort": 2, "upload_seconds": 30.0, "sealed": sealed,
        }  # fmt: skip
        return Announcement(**{**values, **fields})

    def update(self, number: int, seed: int) -> list[np.ndarray]:
        """What one hospital's training changes in a round: within the clips, to their very ends."""
        # A hospital sends an update once, so every session has its own.
        generator = np.random.default_rng([number, seed, *self.session])
        found = [generator.uniform(-clip, clip, shape) for clip, shape in zip(CLIPS, SHAPES, strict=True)]
        found[0].flat[:2] = 1.0, -1.0
        return found

    def mean_update(self, number: int, seeds: Sequence[int] = (0, 1, 2)) -> list[np.ndarray]:
        updates = [self.update(number, seed) for seed in seeds]
        weights = [weight_of(seed) for seed in seeds]
        return [np.average([one[i] for one in updates], axis=0, weights=weights) for i in range(len(SHAPES))]

    def open(self, announcement: Announcement) -> Signed:
        return self.collector.announce(announcement, Deadline.after(20), self.model)

    def take_part(
        self, announcement: Announcement, signed: Signed, seeds: Sequence[int] | None = None
    ) -> Mapping[int, list[np.ndarray]]:
        """Let hospitals fetch the model and upload; return the model that each of them trained."""
        models = {}
        for seed in range(len(self.clients)) if seeds is None else seeds:
            client = self.clients[seed]
            accepted = client.accept(signed.payload, signed.signature, self.model, CONFIG)
            models[seed] = client.sealed_model(accepted, self.model)
            update = self.update(announcement.round, seed) if announcement.phase == "train" else []
            client.submit(accepted, update, weight_of(seed), {"loss": 1.0 + seed})
        return models

    def collect(self, announcement: Announcement) -> RoundResult:
        return self.collector.collect(announcement, Deadline.after(30))

    def round(self, number: int, base: int, **fields: Any) -> RoundResult:
        """Run a whole round with every hospital."""
        announcement = self.announcement(number, base, **fields)
        self.take_part(announcement, self.open(announcement))
        return self.collect(announcement)


class SealedSite(SealedRoundsOf):
    """Aggregators as services of this process; the collector plays the Flower server."""

    def __init__(
        self,
        folder: Path,
        stack: ExitStack,
        *,
        parties: int = 3,
        hospitals: int = 3,
        agreement_s: float = 20.0,
    ) -> None:
        self.folder, self.agreement_s = folder, agreement_s
        self.keys = make_local_keys(folder / "keys", parties=parties, hospitals=hospitals)
        sockets = {name: socket.create_server(("127.0.0.1", 0)) for name in self.keys.parties}
        self.cluster = self.keys.cluster_file({n: s.getsockname()[:2] for n, s in sockets.items()})
        limits = TrustLimits(
            minimum_cohort=2,
            metrics={"loss": (0.0, 10.0)},
            reveal_to=("server", "hospitals", "nobody"),
            ring_bits=(32, 64),
        )
        write_trust_files(self.keys, self.cluster, limits)
        self.services: dict[str, AggregatorService] = {}
        self.servers: dict[str, Server] = {}
        self._stack = stack
        for name, sock in sockets.items():
            self._start(name, sock)
        stack.callback(self._stop)
        self.server = Identity.load(self.keys.identity("server"))
        self.collector = stack.enter_context(Collector(self.cluster.parties, self.server))
        self.clients = [
            stack.enter_context(HospitalClient(TrustFile.load(self.keys.trust_file(name))))
            for name in self.keys.hospitals
        ]
        self.session = secrets.token_bytes(16)
        self.model = initial_model()

    def state(self, party: str) -> Path:
        return self.folder / party

    def _start(self, name: str, sock: socket.socket) -> None:
        identity = Identity.load(self.keys.identity(name))
        service = AggregatorService(
            identity, self.cluster, self.state(name), minimum_cohort=2, agreement_s=self.agreement_s
        )
        server = Server(sock, identity, service.routes(), admit=self.cluster.admit)
        service.start()
        server.start()
        self.services[name], self.servers[name] = service, server

    def kill(self, name: str) -> None:
        """End a party; what it has not stored is lost."""
        self.servers.pop(name).stop()
        self.services.pop(name).stop()

    def restart(self, name: str) -> None:
        endpoint = self.cluster.party(name)
        self._start(name, socket.create_server((endpoint.host, endpoint.port)))

    def _stop(self) -> None:
        for name in list(self.servers):
            self.kill(name)
