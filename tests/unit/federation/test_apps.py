"""Our Keras apps over the in-process grid, with plain Flower: they are ordinary Flower apps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from aggregation_world import FakeIdentity
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp.strategy import FedAvg, FedProx

from fedsec.aggregation import TrustFile, TrustLimits
from fedsec.errors import UsageError
from fedsec.federation.apps import PARAMETERS, Examples, TrainingConfig, client_app, server_app
from fedsec.federation.grid import InProcessGrid, node_configs, run_server_app
from fedsec.federation.observer import SimulationObserver, plain_mean
from fedsec.federation.plan import TRAIN_METRICS
from fedsec.federation.spending import ContextLedger, ledger_of
from fedsec.learning.backend import keras
from fedsec.learning.private.trainer import HospitalPrivacy
from fedsec.privacy.accounting import SampledGaussian, epsilon_of
from fedsec.privacy.ledger import DurableLedger, together
from fedsec.transport import Endpoint, Role

HOSPITALS = 3
SPENT = SampledGaussian(9.0, 1.0, 1)
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


def evaluated(model: keras.Model, grid: InProcessGrid) -> list[Message]:
    content = RecordDict({"arrays": ArrayRecord(model.get_weights()), "config": ConfigRecord()})
    messages = [Message(content, dst_node_id=n, message_type="evaluate") for n in grid.get_node_ids()]
    return list(grid.send_and_receive(messages))


def test_local_evaluation(model: keras.Model) -> None:
    replies = evaluated(model, InProcessGrid(client_app(model, examples), node_configs(HOSPITALS)))
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


WANTED = HospitalPrivacy(target_epsilon=3.0, delta=1e-3, l2_norm_clip=1.0, rounds=2)


@pytest.fixture
def trust(tmp_path: Path) -> list[Path]:
    """The trust files of all hospitals, each with a state folder of its own."""
    server = FakeIdentity("server", Role.SERVER)
    parties = [FakeIdentity(f"agg-{number}", Role.PARTY) for number in range(3)]
    hospitals = [FakeIdentity(f"h{number}", Role.HOSPITAL) for number in range(HOSPITALS)]
    paths = []
    for one in hospitals:
        paths.append(tmp_path / one.name / "trust.toml")
        paths[-1].parent.mkdir()
        TrustFile(
            identity=tmp_path / one.name / "identity.pem",
            state=tmp_path / one.name / "state",
            server=server.public_key,
            aggregators=tuple(Endpoint(party.name, "127.0.0.1", 1, party.public_key) for party in parties),
            roster={hospital.name: hospital.public_key for hospital in hospitals},
            limits=TrustLimits(minimum_cohort=2),
        ).save(paths[-1])
    return paths


def train_privately(
    model: keras.Model, rounds: int, trust: Sequence[Path] | None = None
) -> dict[int, list[tuple[SampledGaussian, ...]]]:
    """Run all rounds of one Flower run and return what each hospital has spent after each that it trained."""
    accounts: dict[int, list[tuple[SampledGaussian, ...]]] = {}

    def watch(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        ledger = ledger_of(context)
        assert isinstance(ledger, ContextLedger | DurableLedger)
        accounts.setdefault(int(context.node_config["partition-id"]), []).append(together(ledger.spent()))
        return reply

    app = client_app(model, examples, privacy=WANTED, mods=[watch])
    training = TrainingConfig(learning_rate=0.05, batch_size=60, local_epochs=1)
    server = server_app(FedAvg(fraction_evaluate=0.0), model, None, rounds=rounds, training=training)
    run_server_app(server, InProcessGrid(app, node_configs(HOSPITALS, trust)))
    return accounts


def test_what_a_hospital_spent_outlives_the_run_of_a_server(model: keras.Model, trust: list[Path]) -> None:
    """A server that begins a new run after each round does not get more than one that goes on."""
    first, second, third = (train_privately(model, 1, trust) for _ in range(3))
    for partition in range(HOSPITALS):
        assert [[one.steps for one in spent] for spent in first[partition]] == [[1]]
        assert [[one.steps for one in spent] for spent in second[partition]] == [[2]]
        assert 2.8 < epsilon_of(second[partition][0], WANTED.delta).value <= 3.0
    assert third == {}, "every hospital refused before it trained"


def test_without_a_trust_file_what_was_spent_is_kept_for_one_run(model: keras.Model) -> None:
    accounts = train_privately(model, 3)
    counts = {partition: len(each) for partition, each in accounts.items()}
    assert counts == dict.fromkeys(range(HOSPITALS), 2)
    assert [[one.steps for one in spent] for spent in accounts[0]] == [[1], [2]]


def test_a_private_hospital_does_not_evaluate_its_training_records(model: keras.Model) -> None:
    configs = node_configs(HOSPITALS)
    replies = evaluated(model, InProcessGrid(client_app(model, examples, privacy=WANTED), configs))
    assert all(reply.has_error() for reply in replies)


def test_records_set_apart_are_evaluated_with_noise_and_have_an_account_of_their_own(
    model: keras.Model, trust: list[Path]
) -> None:
    """With a trust file the account outlives runs; without one it is in the node's state, by another name."""
    apart = client_app(model, examples, privacy=WANTED, evaluation=lambda number: examples(50 + number, 2000))
    for replies in (
        evaluated(model, InProcessGrid(apart, node_configs(HOSPITALS))),
        evaluated(model, InProcessGrid(apart, node_configs(HOSPITALS, trust))),
    ):
        assert not any(reply.has_error() for reply in replies)
    images, labels = examples(51, 2000)
    accuracy = float(replies[1].content.metric_records["metrics"]["accuracy"])
    exact = np.mean(np.asarray(model(images)).argmax(axis=-1) == labels)
    state = trust[1].parent / "state"
    (evaluations,) = set(DurableLedger(state / "evaluation").charge(lambda _: SPENT)[:-1])
    deviation = math.sqrt(2) * evaluations.noise_multiplier / 2000
    # Seven deviations: by chance once in 4e11 runs.
    assert abs(accuracy - exact) < 7 * deviation
    assert DurableLedger(state).charge(lambda _: SPENT) == (SPENT,), "nothing is spent of the training's"
