"""Mod and wrapper together, over TLS to three aggregators in threads, against plain Flower."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import logging
import socket
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import fixedclipping_mod
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedYogi,
    Result,
    Strategy,
)

from fedsec.aggregation.service import AggregatorService
from fedsec.aggregation.trust import TrustFile, TrustLimits
from fedsec.cluster.keys import LocalKeys, make_local_keys, write_trust_files
from fedsec.errors import PeerLostError, TrustError, UsageError
from fedsec.federation.grid import Dropout, InProcessGrid, node_configs
from fedsec.federation.mod import SecureAggregationMod
from fedsec.federation.observer import SimulationObserver, largest_difference, plain_mean
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
_seeds = itertools.count(1)


@dataclass
class Site:
    """Three aggregators at work, and where everyone's keys are."""

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
    limits = TrustLimits(metrics={**PLAN.train_metrics, **PLAN.evaluate_metrics})
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
    return Site(keys, cluster, services, servers, trust)


@pytest.fixture(scope="module")
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
    """Keeps every reply that the ServerApp sees."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.replies: list[Message] = []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        replies = list(super().send_and_receive(messages, timeout=timeout))
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
) -> Run:
    grid = SpyGrid(app, node_configs(HOSPITALS, trust), dropout=dropout)
    start = {"kernel": Array(np.full((4, 3), 0.25, np.float32)), "bias": Array(np.zeros(3, np.float32))}
    config = ConfigRecord({"seed": seed})
    result = strategy.start(grid, ArrayRecord(start), num_rounds=rounds, train_config=config)
    return Run(result, grid, [])


def secured(site: Site, mod: SecureAggregationMod, inner: Strategy, *mods: Any, **options: Any) -> Run:
    rounds: list[SecureRound] = []
    plan, change = options.pop("plan", PLAN), options.pop("change", None)
    strategy = SecureAggregation(
        inner, site.cluster, site.keys.identity("server"), plan=plan, on_round=rounds.append
    )
    try:
        done = run(numpy_app(mod, *mods, change=change), strategy, site.trust, **options)
    finally:
        strategy.close()
    return dataclasses.replace(done, rounds=rounds)


def one_dead(exchange: int, partition: int) -> bool:
    return exchange == 2 and partition == 3


STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "FedAvg": lambda: FedAvg(fraction_evaluate=0.0),
    "FedProx": lambda: FedProx(fraction_evaluate=0.0, proximal_mu=0.1),
    "FedAvgM": lambda: FedAvgM(fraction_evaluate=0.0, server_learning_rate=0.5, server_momentum=0.9),
    "FedAdam": lambda: FedAdam(fraction_evaluate=0.0, eta=0.05),
    "FedAdagrad": lambda: FedAdagrad(fraction_evaluate=0.0, eta=0.05),
    "FedYogi": lambda: FedYogi(fraction_evaluate=0.0, eta=0.05),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_as_plain_flower_with_one_hospital_dead(site: Site, mod: SecureAggregationMod, name: str) -> None:
    seed = next(_seeds)
    plain = run(numpy_app(), STRATEGIES[name](), seed=seed, dropout=one_dead)
    secure = secured(site, mod, STRATEGIES[name](), seed=seed, dropout=one_dead)

    # The adaptive strategies divide a difference by at least tau = 1e-3 and multiply it by eta = 0.05.
    gain = 50 if name in {"FedAdam", "FedAdagrad", "FedYogi"} else 1
    bound = sum(one.result.error_bound for one in secure.rounds if one.result)
    for key, array in plain.result.arrays.items():
        np.testing.assert_allclose(
            secure.result.arrays[key].numpy(), array.numpy(), rtol=0, atol=gain * bound + 2e-6
        )
    assert [len(one.result.included) for one in secure.rounds if one.result] == [5, 4, 5]
    assert [one.statuses for one in secure.rounds] == [
        {"stored": 5},
        {"stored": 4, "no_answer": 1},
        {"stored": 5},
    ]
    for number, metrics in plain.result.train_metrics_clientapp.items():
        assert secure.result.train_metrics_clientapp[number]["loss"] == pytest.approx(
            metrics["loss"], abs=1e-6
        )


def test_the_serverapp_sees_statuses_and_averages_only(site: Site, mod: SecureAggregationMod) -> None:
    handed: list[list[Message]] = []

    class Spy(FedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            handed.append(list(replies))
            return super().aggregate_train(server_round, handed[-1])

    done = secured(site, mod, Spy(fraction_evaluate=0.0), seed=next(_seeds), rounds=2)

    assert len(done.grid.replies) == 2 * HOSPITALS
    for reply in done.grid.replies:
        assert {name: sorted(record) for name, record in reply.content.items()} == {
            "arrays": [],
            "fedsec": ["status", "upload-id"],
        }
    assert [len(replies) for replies in handed] == [1, 1]
    metrics = handed[0][0].content.metric_records["metrics"]
    assert dict(metrics) == {"num-examples": sum(WEIGHTS), "loss": pytest.approx(metrics["loss"])}


def test_threat_25_every_upload_of_a_run_gets_its_receipt(
    site: Site, mod: SecureAggregationMod, caplog: pytest.LogCaptureFixture
) -> None:
    before = receipts(site)
    secured(site, mod, FedAvg(), seed=next(_seeds), rounds=2)
    mod.close()
    assert "no receipt" not in caplog.text
    assert [after - old for after, old in zip(receipts(site), before, strict=True)] == [4] * HOSPITALS


def receipts(site: Site) -> list[int]:
    """How many receipts each hospital has checked so far."""
    counts = []
    for trust in site.trust:
        path = TrustFile.load(trust).state / "hospital.sqlite"
        if not path.exists():
            counts.append(0)
            continue
        with contextlib.closing(sqlite3.connect(path)) as state:
            counts += [one for (one,) in state.execute("SELECT coalesce(sum(receipt), 0) FROM uploads")]
    return counts


def test_the_observer_and_the_opened_average_agree(site: Site, mod: SecureAggregationMod) -> None:
    observer = SimulationObserver()
    done = secured(site, mod, FedAvg(fraction_evaluate=0.0), observer, seed=next(_seeds), rounds=1)
    opened = done.rounds[0].result
    assert opened is not None
    updates = [one for i, one in observer.take().items() if f"hospital-{i:02}" in opened.included]
    assert len(updates) == HOSPITALS
    assert 0 < largest_difference(opened.arrays, plain_mean(updates)) <= opened.error_bound < 1e-6


def test_evaluation_opens_mean_metrics_only(site: Site, mod: SecureAggregationMod) -> None:
    seed = next(_seeds)
    plain = run(numpy_app(), FedAvg(), seed=seed, rounds=2)
    secure = secured(site, mod, FedAvg(), seed=seed, rounds=2)
    assert [one.phase for one in secure.rounds] == ["train", "evaluate"] * 2
    for number in (1, 2):
        metrics = secure.result.evaluate_metrics_clientapp[number]
        assert dict(metrics) == {
            "accuracy": pytest.approx(plain.result.evaluate_metrics_clientapp[number]["accuracy"], abs=1e-6)
        }


def test_threat_22_below_the_minimum_cohort_the_model_stays(site: Site, mod: SecureAggregationMod) -> None:
    def two_left(exchange: int, partition: int) -> bool:
        return exchange == 1 and partition > 1

    seed = next(_seeds)
    # The round that fails first must not keep the next one from succeeding.
    secure = secured(site, mod, FedAvg(fraction_evaluate=0.0), seed=seed, rounds=2, dropout=two_left)
    assert secure.rounds[0].result is None
    assert secure.rounds[0].aborted
    assert secure.rounds[0].statuses == {"stored": 2, "no_answer": 3}
    assert secure.rounds[1].result is not None
    assert list(secure.result.train_metrics_clientapp) == [2]
    only = secured(site, mod, FedAvg(fraction_evaluate=0.0), seed=next(_seeds), rounds=1, dropout=two_left)
    assert len(only.result.arrays) == 0


@pytest.mark.parametrize("fault", ["nan", "infinity", "weight"])
def test_threat_14_and_16_bad_values_cost_their_hospital_only(
    site: Site, mod: SecureAggregationMod, fault: str
) -> None:
    def change(hospital: int, arrays: dict[str, np.ndarray], metrics: dict[str, Any]) -> None:
        if hospital == 2:
            arrays["kernel"][1, 1] = {"nan": np.nan, "infinity": np.inf}.get(fault, arrays["kernel"][1, 1])
            metrics["num-examples"] = 0 if fault == "weight" else metrics["num-examples"]

    done = secured(site, mod, FedAvg(fraction_evaluate=0.0), seed=next(_seeds), rounds=1, change=change)
    assert done.rounds[0].statuses == {"stored": 4, "failed": 1}
    result = done.rounds[0].result
    assert result is not None
    assert "hospital-02" not in result.included
    assert len(result.included) == 4


@pytest.mark.parametrize("fault", ["huge", "weight", "metric"])
def test_threat_14_and_16_presence_says_nothing_about_a_value_out_of_range(
    site: Site, mod: SecureAggregationMod, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    """The server announces the ranges: a hospital that stayed away would tell where its value lies."""
    bias = {}

    def change(hospital: int, arrays: dict[str, np.ndarray], metrics: dict[str, Any]) -> None:
        if hospital == 2:
            arrays["bias"][1] = {"huge": 1e9}.get(fault, arrays["bias"][1])
            metrics["num-examples"] = 10**9 if fault == "weight" else metrics["num-examples"]
            metrics["loss"] = -1.0 if fault == "metric" else metrics["loss"]
        bias[hospital] = np.clip(arrays["bias"], -2.0, 2.0)

    done = secured(site, mod, FedAvg(fraction_evaluate=0.0), seed=next(_seeds), rounds=1, change=change)
    assert done.rounds[0].statuses == {"stored": HOSPITALS}
    result = done.rounds[0].result
    assert result is not None
    weights = [1000 if (fault, i) == ("weight", 2) else WEIGHTS[i] for i in range(HOSPITALS)]
    losses = [0.0 if (fault, i) == ("metric", 2) else 0.25 * i + 0.125 for i in range(HOSPITALS)]
    assert result.total_weight == sum(weights)
    assert result.metrics["loss"] == pytest.approx(np.average(losses, weights=weights), abs=1e-5)
    plain = np.average([bias[i] for i in range(HOSPITALS)], axis=0, weights=weights)
    np.testing.assert_allclose(done.result.arrays["bias"].numpy(), plain, rtol=0, atol=1e-5)
    assert "1 of 17 values were out of the announced ranges" in caplog.text


def test_threat_43_a_hospital_that_never_answers_does_not_outlast_the_uploads(site: Site) -> None:
    plan = dataclasses.replace(PLAN, upload_seconds=7.0)
    strategy = SecureAggregation(
        FedAvg(fraction_evaluate=0.0), site.cluster, site.keys.identity("server"), plan=plan
    )
    asked: list[tuple[float | None, float]] = []

    class Silent(InProcessGrid):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            asked.extend((timeout, one.metadata.ttl) for one in messages)
            return []

    start = ArrayRecord({"w": Array(np.zeros(3, np.float32))})
    strategy.start(Silent(numpy_app(), node_configs(HOSPITALS)), start, num_rounds=1)
    strategy.close()
    assert asked == [(7.0, 7.0)] * HOSPITALS


def test_client_side_clipping_inside_the_mod(site: Site, mod: SecureAggregationMod) -> None:
    observer = SimulationObserver()
    strategy = DifferentialPrivacyClientSideFixedClipping(FedAvg(fraction_evaluate=0.0), 0.0, 0.5, HOSPITALS)
    done = secured(site, mod, strategy, observer, fixedclipping_mod, seed=next(_seeds), rounds=1)
    assert done.rounds[0].statuses == {"stored": HOSPITALS}
    for one in observer.take().values():
        assert np.sqrt(sum(np.sum(a**2) for a in one.update)) <= 0.5 + 1e-6


def test_the_same_strategy_object_can_start_again(site: Site, mod: SecureAggregationMod) -> None:
    strategy = SecureAggregation(
        FedAvg(fraction_evaluate=0.0), site.cluster, site.keys.identity("server"), plan=PLAN
    )
    for _ in range(2):
        done = run(numpy_app(mod), strategy, site.trust, seed=next(_seeds), rounds=1)
        assert len(done.result.arrays) == 2
    strategy.close()
    assert strategy.meter.received_bytes > 0
    assert len(mod.meters()) == HOSPITALS
    assert all(meter.sent_bytes > 0 for meter in mod.meters().values())


def test_a_float64_model_after_an_adaptive_strategy_is_the_same_model(
    site: Site, mod: SecureAggregationMod
) -> None:
    done = secured(site, mod, FedAdam(fraction_evaluate=0.0), seed=next(_seeds), rounds=2)
    assert done.result.arrays["kernel"].dtype == "float64"
    assert [one.statuses for one in done.rounds] == [{"stored": HOSPITALS}] * 2


def test_threat_18_a_message_that_comes_twice_is_one_upload(site: Site, mod: SecureAggregationMod) -> None:
    class Twice(FedAvg):
        def configure_train(self, *args: Any) -> Iterable[Message]:
            messages = list(super().configure_train(*args))
            return messages + messages

    seen: list[float] = []

    def change(hospital: int, arrays: dict[str, np.ndarray], metrics: dict[str, Any]) -> None:
        # Trained again it would be another update; the first one stands.
        arrays["bias"] += np.float32(len(seen) * 1e-3)
        seen.append(float(arrays["bias"][0]) * WEIGHTS[hospital])

    done = secured(site, mod, Twice(fraction_evaluate=0.0), seed=next(_seeds), rounds=1, change=change)
    assert done.rounds[0].statuses == {"stored": 2 * HOSPITALS}
    ids = [reply.content.config_records["fedsec"]["upload-id"] for reply in done.grid.replies]
    assert len(set(ids)) == HOSPITALS
    assert done.result.arrays["bias"].numpy()[0] == pytest.approx(sum(seen[::2]) / sum(WEIGHTS), abs=1e-6)


def test_an_evaluation_without_metrics_says_so(
    site: Site, mod: SecureAggregationMod, caplog: pytest.LogCaptureFixture
) -> None:
    plan = dataclasses.replace(PLAN, evaluate_metrics={})
    done = secured(site, mod, FedAvg(), seed=next(_seeds), rounds=1, plan=plan)
    assert dict(done.result.evaluate_metrics_clientapp[1]) == {}
    assert "opens no metric" in caplog.text


# What the wrapper refuses.


def test_another_server_identity_is_refused_at_once(site: Site) -> None:
    with pytest.raises(UsageError, match="pins another server key"):
        SecureAggregation(FedAvg(), site.cluster, site.keys.identity("hospital-00"))


def test_threat_39_a_foreign_server_is_refused_by_the_aggregators(site: Site, tmp_path: Path) -> None:
    other = make_local_keys(tmp_path, parties=3, hospitals=HOSPITALS)
    identity = Identity.load(other.identity("server"))
    cluster = dataclasses.replace(site.cluster, server=identity.public_key)
    strategy = SecureAggregation(FedAvg(fraction_evaluate=0.0), cluster, identity, plan=PLAN)
    with pytest.raises((TrustError, PeerLostError)):
        run(numpy_app(), strategy, site.trust, seed=next(_seeds), rounds=1)
    strategy.close()


def test_different_contents_for_hospitals_are_refused(site: Site) -> None:
    class Unequal(FedAvg):
        def configure_train(self, *args: Any) -> Iterable[Message]:
            messages = list(super().configure_train(*args))
            arrays = messages[0].content["arrays"]
            messages[0].content = RecordDict({"arrays": arrays, "config": ConfigRecord({"seed": 0})})
            return messages

    strategy = SecureAggregation(
        Unequal(fraction_evaluate=0.0), site.cluster, site.keys.identity("server"), plan=PLAN
    )
    with pytest.raises(UsageError, match="every hospital must get the same"):
        run(numpy_app(), strategy, seed=next(_seeds), rounds=1)
    strategy.close()


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (dataclasses.replace(PLAN, clip={"kernel": 1.0}), "no clip for array 'bias'"),
        (dataclasses.replace(PLAN, largest_weight=2**40), "can wrap"),
    ],
)
def test_plans_that_do_not_fit(site: Site, plan: RoundPlan, text: str) -> None:
    strategy = SecureAggregation(
        FedAvg(fraction_evaluate=0.0), site.cluster, site.keys.identity("server"), plan=plan
    )
    with pytest.raises(UsageError, match=text):
        run(numpy_app(), strategy, seed=next(_seeds), rounds=1)
    strategy.close()


def test_clips_by_array(site: Site, mod: SecureAggregationMod) -> None:
    plan = dataclasses.replace(PLAN, clip={"kernel": 2.0, "bias": 1.0})
    done = secured(site, mod, FedAvg(fraction_evaluate=0.0), seed=next(_seeds), rounds=1, plan=plan)
    assert done.rounds[0].statuses == {"stored": HOSPITALS}


def test_integer_parameters_are_refused(site: Site) -> None:
    strategy = SecureAggregation(
        FedAvg(fraction_evaluate=0.0), site.cluster, site.keys.identity("server"), plan=PLAN
    )
    grid = InProcessGrid(numpy_app(), node_configs(HOSPITALS))
    with pytest.raises(UsageError, match="only floating-point"):
        strategy.start(grid, ArrayRecord({"steps": Array(np.zeros(2, np.int64))}), num_rounds=1)
    strategy.close()


def test_threat_43_a_dead_aggregator_is_named(
    tmp_path: Path, mod: SecureAggregationMod, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    site = open_site(tmp_path)
    try:

        def change(hospital: int, arrays: dict[str, np.ndarray], metrics: dict[str, Any]) -> None:
            if hospital == 1:
                site.stop(1)

        with pytest.raises(PeerLostError, match="party-1"):
            secured(site, mod, FedAvg(fraction_evaluate=0.0), seed=next(_seeds), rounds=1, change=change)
    finally:
        site.stop(0)
        site.stop(2)
