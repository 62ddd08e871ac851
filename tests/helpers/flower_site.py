"""A federation in one process: three aggregators in threads over TLS, five hospitals with a NumPy app."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Result, Strategy

from fedsec.aggregation.service import AggregatorService
from fedsec.aggregation.trust import TrustLimits
from fedsec.cluster.keys import LocalKeys, make_local_keys, write_trust_files
from fedsec.federation.grid import Dropout, InProcessGrid, node_configs
from fedsec.federation.mod import SecureAggregationMod
from fedsec.federation.plan import RoundPlan
from fedsec.federation.strategy import SecureAggregation, SecureRound
from fedsec.transport import ClusterFile, Identity
from fedsec.transport.server import Server

HOSPITALS = 5
WEIGHTS = [50 + 40 * i for i in range(HOSPITALS)]
PLAN = RoundPlan(
    largest_weight=1000,
    smallest_mean_weight=50,
    train_metrics={"loss": (0.0, 10.0)},
    evaluate_metrics={"accuracy": (0.0, 1.0)},
    upload_seconds=30,
    collect_seconds=30,
)
START = {"kernel": np.full((4, 3), 0.25, np.float32), "bias": np.zeros(3, np.float32)}


@dataclass
class Site:
    """Three aggregators at work, each with a folder of its own, and where everyone's keys are."""

    folder: Path
    keys: LocalKeys
    cluster: ClusterFile
    services: list[AggregatorService]
    servers: list[Server]
    trust: list[Path]

    def stop(self, index: int) -> None:
        self.servers[index].stop()
        self.services[index].stop()


def open_site(folder: Path) -> Site:
    keys = make_local_keys(folder / "keys", parties=3, hospitals=HOSPITALS)
    listeners = {name: socket.create_server(("127.0.0.1", 0)) for name in keys.parties}
    cluster = keys.cluster_file({name: one.getsockname()[:2] for name, one in listeners.items()})
    limits = TrustLimits(
        largest_weight=2**40,
        largest_clip=2000.0,
        ring_bits=(32, 64),
        metrics={**PLAN.train_metrics, **PLAN.evaluate_metrics},
    )
    trust = list(write_trust_files(keys, cluster, limits).values())
    services, servers = [], []
    for name, listener in listeners.items():
        identity = Identity.load(keys.identity(name))
        service = AggregatorService(identity, cluster, folder / name, minimum_cohort=3)
        service.start()
        server = Server(listener, identity, service.routes(), admit=cluster.admit)
        server.start()
        services.append(service)
        servers.append(server)
    return Site(folder, keys, cluster, services, servers, trust)


def numbers(*key: object) -> np.random.Generator:
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


Change = Callable[[int, dict[str, np.ndarray], dict[str, Any]], None]


def numpy_app(*mods: Any, change: Change | None = None) -> ClientApp:
    """Moves the parameters half-way to a point that depends on hospital, round and seed."""
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        i = int(context.node_config["partition-id"])
        config, given = message.content["config"], message.content["arrays"]
        assert isinstance(config, ConfigRecord)
        assert isinstance(given, ArrayRecord)
        generator = numbers(i, config["server-round"], config["seed"])
        arrays = {
            name: (0.5 * a.numpy() + generator.uniform(-0.4, 0.4, a.shape)).astype(np.float32)
            for name, a in given.items()
        }
        metrics: dict[str, Any] = {"num-examples": WEIGHTS[i], "loss": 0.25 * i + 0.125}
        if change is not None:
            change(i, arrays, metrics)
        content = {
            "arrays": ArrayRecord({name: Array(a) for name, a in arrays.items()}),
            "metrics": MetricRecord(metrics),
        }
        return Message(RecordDict(dict(content)), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        i = int(context.node_config["partition-id"])
        metrics = MetricRecord({"num-examples": WEIGHTS[i], "accuracy": 0.5 + 0.05 * i, "patients": 7})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


class SpyGrid(InProcessGrid):
    """Keeps every message that the ServerApp sends, and every reply that it gets."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sent: list[Message] = []
        self.replies: list[Message] = []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        orders = list(messages)
        self.sent += orders
        replies = list(super().send_and_receive(orders, timeout=timeout))
        self.replies += replies
        return replies


@dataclass
class Run:
    """A finished run with what its ServerApp saw."""

    result: Result
    grid: SpyGrid
    rounds: list[SecureRound]


def run(
    app: ClientApp,
    strategy: Strategy,
    trust: list[Path] | None = None,
    *,
    seed: int,
    rounds: int = 3,
    dropout: Dropout | None = None,
    start: dict[str, np.ndarray] | None = None,
) -> Run:
    grid = SpyGrid(app, node_configs(HOSPITALS, trust), dropout=dropout)
    arrays = ArrayRecord({name: Array(array) for name, array in (start or START).items()})
    # FedAvg samples with Python's own generator; plain and secure must sample the same.
    random.seed(seed)
    config = ConfigRecord({"seed": seed})
    result = strategy.start(grid, arrays, num_rounds=rounds, train_config=config)
    return Run(result, grid, [])


def secured(site: Site, mod: SecureAggregationMod, inner: Strategy, *mods: Any, **options: Any) -> Run:
    rounds: list[SecureRound] = []
    plan, app = options.pop("plan", PLAN), options.pop("app", None)
    app = app or partial(numpy_app, change=options.pop("change", None))
    strategy = SecureAggregation(
        inner, site.cluster, site.keys.identity("server"), plan=plan, on_round=rounds.append
    )
    try:
        done = run(app(mod, *mods), strategy, site.trust, **options)
    finally:
        strategy.close()
    return dataclasses.replace(done, rounds=rounds)
