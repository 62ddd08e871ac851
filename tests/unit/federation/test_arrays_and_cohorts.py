"""Models and cohorts of every kind: as plain Flower, or refused with a reason."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from flower_site import HOSPITALS, PLAN, START, WEIGHTS, Run, Site, numbers, numpy_app, run, secured
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy

from fedsec.errors import UsageError
from fedsec.federation.grid import InProcessGrid, node_configs
from fedsec.federation.mod import SecureAggregationMod
from fedsec.federation.strategy import SecureAggregation

_seeds = itertools.count(10_001)

MIXED: dict[str, np.ndarray] = {
    "half": np.full((2, 2), 0.5, np.float16),
    "single": np.full(3, 0.25, np.float32),
    "double": np.full((1, 2), -0.125, np.float64),
    "scalar": np.array(1.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "steps": np.array([7, 2**20], np.int64),
    "generator": np.array([2**32 - 3, 5], np.uint32),
    "byte": np.array([3, -3], np.int8),
    "frozen": np.array([True, False]),
}
CLIPS = {**dict.fromkeys(MIXED, 2.0), "steps": 1000.0, "generator": 10.0, "byte": 4.0}


def mixed_app(*mods: Any) -> ClientApp:
    """Moves floats a little, counts integers up by what differs between hospitals, and turns one boolean."""
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        i, given = int(context.node_config["partition-id"]), message.content["arrays"]
        assert isinstance(given, ArrayRecord)
        turn = message.content.config_records["config"]["server-round"]
        arrays = {name: changed(i, name, array.numpy(), turn) for name, array in given.items()}
        content = {
            "arrays": ArrayRecord({name: Array(array) for name, array in arrays.items()}),
            "metrics": MetricRecord({"num-examples": WEIGHTS[i], "loss": 0.5}),
        }
        return Message(RecordDict(dict(content)), reply_to=message)

    return app


def changed(hospital: int, name: str, array: np.ndarray, turn: object) -> np.ndarray:
    if name == "frozen":
        return np.array([hospital % 2 == 0, False])
    if array.dtype.kind in "iu":
        more = [100 * hospital if name == "steps" else hospital % 3, 1]
        return (array + np.array(more)).astype(array.dtype)
    # After a round integers are float64 averages, as in plain Flower, and training goes on from them.
    moved = array + numbers(hospital, name, turn).uniform(-0.4, 0.4, array.shape)
    return np.asarray(moved, dtype=array.dtype)


def strategy(**options: Any) -> FedAvg:
    return FedAvg(fraction_evaluate=0.0, **options)


def compared(plain: Run, secure: Run, names: Iterable[str], tolerance: float = 2e-6) -> None:
    for name in names:
        expected, got = plain.result.arrays[name].numpy(), secure.result.arrays[name].numpy()
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype), name
        # Plain Flower adds half-precision products in half precision; ours are added exactly.
        atol = 2e-3 if expected.dtype == np.float16 else tolerance
        np.testing.assert_allclose(got, expected, rtol=0, atol=atol, err_msg=name)


def refused(site: Site, start: dict[str, np.ndarray], text: str, **changes: Any) -> None:
    """A run that must end with an error that says ``text``, before any hospital was asked."""
    asked: list[Message] = []

    class Watched(InProcessGrid):
        def send_and_receive(self, messages: Iterable[Message], **options: Any) -> Iterable[Message]:
            asked.extend(messages)
            return []

    inner = changes.pop("inner", None) or strategy()
    wrapped = SecureAggregation(
        inner,
        site.cluster,
        site.keys.identity("server"),
        plan=dataclasses.replace(PLAN, **changes),
    )
    arrays = ArrayRecord({name: Array(array) for name, array in start.items()})
    grid = Watched(numpy_app(), node_configs(HOSPITALS))
    try:
        with pytest.raises(UsageError, match=text):
            wrapped.start(grid, arrays, num_rounds=1)
    finally:
        wrapped.close()
    assert asked == []


# Arrays.


def test_mixed_dtypes_empty_arrays_and_scalars_as_in_plain_flower(
    site: Site, mod: SecureAggregationMod
) -> None:
    seed, rounds = next(_seeds), 2
    plain = run(mixed_app(), strategy(), seed=seed, rounds=rounds, start=MIXED)
    plan = dataclasses.replace(PLAN, clip=CLIPS, train_metrics={})

    secure = secured(site, mod, strategy(), app=mixed_app, seed=seed, rounds=rounds, start=MIXED, plan=plan)

    assert [one.statuses for one in secure.rounds] == [{"stored": HOSPITALS}] * rounds
    compared(plain, secure, set(MIXED) - {"steps"})
    # The bound of an array grows with its clip.
    compared(plain, secure, ["steps"], tolerance=1000 * 2**-20)


def test_statistics_with_a_clip_of_their_own_come_out_whole(site: Site, mod: SecureAggregationMod) -> None:
    """Batch-norm variances move further in a round than a parameter may."""
    start = {"kernel": np.zeros(3, np.float32), "moving_variance": np.ones(4, np.float32)}
    moves = [10.0 * i for i in range(HOSPITALS)]

    def change(hospital: int, arrays: dict[str, np.ndarray], metrics: dict[str, Any]) -> None:
        arrays["moving_variance"] = np.full(4, 1.0 + moves[hospital], np.float32)

    def variance(clip: Any) -> np.ndarray:
        plan = dataclasses.replace(PLAN, clip=clip)
        done = secured(
            site, mod, strategy(), change=change, seed=next(_seeds), rounds=1, start=start, plan=plan
        )
        assert done.rounds[0].statuses == {"stored": HOSPITALS}
        return done.result.arrays["moving_variance"].numpy()

    expected = 1.0 + np.average(moves, weights=WEIGHTS)
    np.testing.assert_allclose(variance({"kernel": 2.0, "moving_variance": 50.0}), expected, atol=1e-4)
    clipped = 1.0 + np.average(np.minimum(moves, 2.0), weights=WEIGHTS)
    np.testing.assert_allclose(variance(2.0), clipped, atol=1e-5)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.zeros(2, np.int64), "is int64: how much it may change"),
        (np.zeros(2, np.uint32), "is uint32: how much it may change"),
        (np.zeros(2, np.bool_), "is bool: how much it may change"),
        (np.zeros(2, np.complex64), "is complex64; floats of up to 64 bits"),
        (np.zeros(2, "<U3"), "is str96; floats of up to 64 bits"),
        (np.zeros(2, np.longdouble), "; floats of up to 64 bits"),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, np.ndarray) else "",
)
def test_arrays_that_one_clip_does_not_fit_or_that_have_no_mean(
    site: Site, array: np.ndarray, text: str
) -> None:
    refused(site, {**START, "odd": array}, f"'arrays/odd'.*{text}")


def test_a_model_without_arrays(site: Site) -> None:
    refused(site, {}, "the model has no arrays")


class _More(FedAvg):
    """Puts another record beside the model."""

    def __init__(self, record: ArrayRecord | MetricRecord) -> None:
        super().__init__(fraction_evaluate=0.0)
        self._record = record

    def configure_train(self, *args: Any) -> Iterable[Message]:
        messages = list(super().configure_train(*args))
        for message in messages:
            message.content = RecordDict({**message.content, "more": self._record})
        return messages


@pytest.mark.parametrize(
    "record", [ArrayRecord({"x": Array(np.zeros(2, np.float32))}), MetricRecord({"x": 1.0})]
)
def test_a_second_record_of_arrays_or_one_of_metrics(site: Site, record: Any) -> None:
    text = "_More sends another content than one ArrayRecord and ConfigRecords"
    refused(site, START, text, inner=_More(record))


# Cohorts.


def included(done: Run) -> list[int]:
    return [len(one.result.included) if one.result else 0 for one in done.rounds]


def test_partial_participation_as_in_plain_flower(site: Site, mod: SecureAggregationMod) -> None:
    def partial() -> Strategy:
        return strategy(fraction_train=0.6, min_train_nodes=3)

    seed = next(_seeds)
    plain = run(numpy_app(), partial(), seed=seed)
    secure = secured(site, mod, partial(), seed=seed)

    assert [one.statuses for one in secure.rounds] == [{"stored": 3}] * 3
    assert included(secure) == [3, 3, 3]
    sets = {one.result.included for one in secure.rounds if one.result}
    assert len(sets) > 1, "the strategy sampled the same hospitals in every round"
    compared(plain, secure, START)


class Changing(FedAvg):
    """Asks all, then three, then four hospitals."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.fraction_train = [1.0, 0.6, 0.8][server_round - 1]
        return super().configure_train(server_round, arrays, config, grid)


def test_cohorts_that_change_from_round_to_round(site: Site, mod: SecureAggregationMod) -> None:
    seed = next(_seeds)
    plain = run(numpy_app(), Changing(fraction_evaluate=0.0), seed=seed)
    secure = secured(site, mod, Changing(fraction_evaluate=0.0), seed=seed)

    assert included(secure) == [5, 3, 4]
    compared(plain, secure, START)


@pytest.mark.parametrize("phase", ["train", "evaluate"])
def test_a_strategy_that_samples_fewer_than_a_sum_needs(
    site: Site, mod: SecureAggregationMod, phase: str
) -> None:
    with pytest.raises(UsageError, match=rf"asks 2 of 5 hospitals.*at least 3.*fraction_{phase}"):
        secured(site, mod, FedAvg(**{f"fraction_{phase}": 0.4}), seed=next(_seeds), rounds=1)


def test_too_few_connected_hospitals_are_not_asked_in_vain(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    trained: list[int] = []
    rounds: list[Any] = []
    app: Callable[..., Any] = lambda *_: trained.append(1)  # noqa: E731 - must never be called
    wrapped = SecureAggregation(
        strategy(), site.cluster, site.keys.identity("server"), plan=PLAN, on_round=rounds.append
    )
    arrays = ArrayRecord({name: Array(array) for name, array in START.items()})

    result = wrapped.start(InProcessGrid(app, node_configs(2)), arrays, num_rounds=1)

    wrapped.close()
    assert trained == []
    assert len(result.arrays) == 0
    assert [one.aborted for one in rounds] == [
        "2 hospitals are connected, a sum has at least 3; nobody was asked"
    ]
    assert "train round 1 has no average" in caplog.text
