"""Our Keras apps over the in-process grid, with plain Flower: they are ordinary Flower apps."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import FedAvg, FedProx

from fedsec.errors import UsageError
from fedsec.federation.apps import PARAMETERS, Examples, TrainingConfig, client_app, server_app
from fedsec.federation.grid import InProcessGrid, node_configs, run_server_app
from fedsec.federation.observer import SimulationObserver, plain_mean
from fedsec.federation.plan import TRAIN_METRICS
from fedsec.learning.backend import keras

HOSPITALS = 3
_generator = np.random.default_rng(5)
_CENTRES = _generator.normal(size=(10, 12))


def examples(seed: int, count: int = 60) -> Examples:
    """Ten clouds of points that a small network tells apart."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, count)
    return (_CENTRES[labels] + 0.1 * generator.normal(size=(count, 12))).astype(np.float32), labels


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(3)
    return keras.Sequential([keras.Input((12,)), keras.layers.Dense(10, activation="softmax")])


@pytest.fixture(autouse=True)
def same_start(model: keras.Model) -> None:
    keras.utils.set_random_seed(4)
    model.set_weights([0.1 * np.random.default_rng(4).normal(size=w.shape) for w in model.weights])


def federate(
    model: keras.Model, *mods: SimulationObserver, strategy: FedAvg | None = None
) -> tuple[Context, list[float]]:
    accuracies: list[float] = []
    grid = InProcessGrid(client_app(model, examples, mods=mods), node_configs(HOSPITALS))
    app = server_app(
        strategy or FedAvg(fraction_evaluate=0.0),
        model,
        examples(99, 200),
        rounds=3,
        training=TrainingConfig(learning_rate=0.05, batch_size=16, local_epochs=2),
        on_round=lambda number, loss, accuracy: accuracies.append(accuracy),
    )
    return run_server_app(app, grid), accuracies


def test_it_learns_and_leaves_the_average(model: keras.Model) -> None:
    observer = SimulationObserver()
    before = [np.array(w) for w in model.get_weights()]
    context, accuracies = federate(model, observer)
    assert len(accuracies) == 4
    assert accuracies[-1] > 0.9 > accuracies[0]
    final = context.state.array_records[PARAMETERS].to_numpy_ndarrays()
    assert not np.allclose(final[0], before[0])
    seen = observer.take()
    assert sorted(seen) == [0, 1, 2]
    assert len(plain_mean(seen.values())) == len(final)
    assert all(set(one.metrics) == set(TRAIN_METRICS) for one in seen.values())
    assert {one.num_examples for one in seen.values()} == {60}


def test_the_same_seed_gives_the_same_model(model: keras.Model, same_start: None) -> None:
    start = model.get_weights()
    first, _ = federate(model)
    model.set_weights(start)
    second, _ = federate(model)
    for a, b in zip(
        *(one.state.array_records[PARAMETERS].to_numpy_ndarrays() for one in (first, second)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_local_evaluation(model: keras.Model) -> None:
    grid = InProcessGrid(client_app(model, examples), node_configs(HOSPITALS))
    content = RecordDict({"arrays": ArrayRecord(model.get_weights()), "config": ConfigRecord()})
    messages = [Message(content, dst_node_id=n, message_type="evaluate") for n in grid.get_node_ids()]
    replies = list(grid.send_and_receive(messages))
    assert not any(reply.has_error() for reply in replies)
    images, labels = examples(1)
    metrics = replies[1].content.metric_records["metrics"]
    answers = np.asarray(model(images)).argmax(axis=-1)
    assert metrics["accuracy"] == pytest.approx(np.mean(answers == labels))
    assert metrics["num-examples"] == 60


def test_a_proximal_term_is_refused_and_not_ignored(model: keras.Model) -> None:
    record = TrainingConfig().record()
    assert TrainingConfig.read(record) == TrainingConfig()
    record["proximal-mu"] = 0.1
    with pytest.raises(UsageError, match="proximal"):
        TrainingConfig.read(record)
    context, accuracies = federate(model, strategy=FedProx(fraction_evaluate=0.0, proximal_mu=0.1))
    assert len(set(accuracies)) == 1, "every hospital refused, so the model stayed"
    final = context.state.array_records[PARAMETERS].to_numpy_ndarrays()
    np.testing.assert_array_equal(final[0], model.get_weights()[0])


def test_a_missing_config_key_is_named() -> None:
    with pytest.raises(UsageError, match="batch-size"):
        TrainingConfig.read(ConfigRecord({"learning-rate": 0.1}))
