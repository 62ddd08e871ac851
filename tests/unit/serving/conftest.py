"""Three parties' prediction services in this process, over real TLS, with a tiny model."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from fedsec.cluster.keys import LocalKeys, make_local_keys
from fedsec.nn import Network, Plan, Weights, plan_network
from fedsec.nn.network import AveragePoolLayer, ConvLayer, DenseLayer, FlattenLayer, ReluLayer
from fedsec.serving.limits import Limits
from fedsec.serving.owner import Owner
from fedsec.serving.prediction import PredictionService
from fedsec.transport import ClusterFile, Identity, Meter, Server

LIMITS = Limits(heartbeat_s=0.1, silence_s=20.0, part_s=30.0, setup_s=60.0)
"""Longer than anything takes here, on a busy machine, too; tests of a wait that runs out have their own."""


@dataclass
class Trio:
    """Three parties that run in threads, and everyone's keys."""

    keys: LocalKeys
    cluster: ClusterFile
    services: list[PredictionService]
    servers: list[Server]
    meters: list[Meter] = field(default_factory=list)

    def identity(self, name: str) -> Identity:
        return Identity.load(self.keys.identity(name))

    def owner(self) -> Owner:
        return Owner(self.cluster.computing, self.identity("owner"))


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> LocalKeys:
    return make_local_keys(tmp_path_factory.mktemp("keys"), 3, 1, ("user", "eve"))


@pytest.fixture(scope="session")
def model() -> tuple[Plan, Weights]:
    rng = np.random.default_rng(7)
    layers = (
        ConvLayer("conv", rng.normal(size=(2, 2, 1, 3)) / 2, rng.normal(size=3) / 4),
        AveragePoolLayer("pool", (2, 2), (2, 2)),
        ReluLayer("relu"),
        FlattenLayer("flat"),
        DenseLayer("dense", rng.normal(size=(12, 4)), rng.normal(size=4)),
    )
    return plan_network(Network("tiny", (6, 6, 1), layers))


StartTrio = Callable[..., Trio]


@pytest.fixture
def start_trio(keys: LocalKeys, tmp_path: Path) -> Iterator[StartTrio]:
    with contextlib.ExitStack() as stack:

        def start(limits: Limits = LIMITS) -> Trio:
            # The sockets first: the cluster file needs the ports.
            sockets = [stack.enter_context(_listener()) for _ in range(3)]
            addresses = {name: sock.getsockname() for name, sock in zip(keys.parties, sockets, strict=True)}
            cluster = keys.cluster_file(addresses)
            trio = Trio(keys, cluster, [], [])
            for name, sock in zip(keys.parties, sockets, strict=True):
                state, meter = tmp_path / name, Meter(logging=True)
                state.mkdir(exist_ok=True)
                identity = trio.identity(name)
                service = PredictionService(identity, cluster.computing, state, meter=meter, limits=limits)
                server = Server(sock, identity, service.routes(), meter=meter, admit=cluster.admit)
                trio.services.append(service)
                trio.servers.append(server)
                trio.meters.append(meter)
                stack.callback(server.stop)
                stack.callback(service.stop)
                server.start()
            return trio

        yield start


def _listener() -> socket.socket:

    return socket.create_server(("127.0.0.1", 0), backlog=64)
