"""Mod and wrapper together, over TLS to three aggregators in threads, against plain Flower."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flower_site import (
    HOSPITALS,
    PLAN,
    START,
    WEIGHTS,
    Site,
    numpy_app,
    open_site,
    run,
    secured,
)
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp.mod import fixedclipping_mod
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedYogi,
    Strategy,
)

from fedsec.aggregation.trust import TrustFile
from fedsec.cluster.keys import make_local_keys
from fedsec.errors import PeerLostError, TrustError, UsageError
from fedsec.federation.grid import InProcessGrid, node_configs
from fedsec.federation.mod import SecureAggregationMod
from fedsec.federation.observer import SimulationObserver, largest_difference, plain_mean
from fedsec.federation.plan import RoundPlan
from fedsec.federation.strategy import SecureAggregation
from fedsec.transport import Identity

_seeds = itertools.count(1)


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


def test_the_mean_of_the_updates_that_a_clipping_mod_clipped(site: Site, mod: SecureAggregationMod) -> None:
    """The mod stands between: the norm is bounded in the hospital, and nobody sees the norm."""
    norm, seed = 0.3, next(_seeds)
    unclipped = SimulationObserver()
    strategy = DifferentialPrivacyClientSideFixedClipping(FedAvg(fraction_evaluate=0.0), 0.0, norm, HOSPITALS)

    done = secured(site, mod, strategy, fixedclipping_mod, unclipped, seed=seed, rounds=1)

    assert done.rounds[0].statuses == {"stored": HOSPITALS}
    seen = unclipped.take()
    clipped = {i: _scaled_to(norm, one.update) for i, one in seen.items()}
    for place, (name, before) in enumerate(START.items()):
        mean = np.average([clipped[i][place] for i in range(HOSPITALS)], axis=0, weights=WEIGHTS)
        np.testing.assert_allclose(
            done.result.arrays[name].numpy(), before + mean, rtol=0, atol=1e-6, err_msg=name
        )
    assert all(np.sqrt(sum(np.sum(a**2) for a in one.update)) > 1.5 * norm for one in seen.values())


def _scaled_to(norm: float, update: Sequence[np.ndarray]) -> list[np.ndarray]:
    length = np.sqrt(sum(np.sum(array**2) for array in update))
    return [array * min(1.0, norm / length) for array in update]


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
