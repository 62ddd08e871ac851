"""What the hospitals and the server of a scenario run, on whichever engine: its Flower apps, taken apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, Strategy

from fedsec.federation.apps import Examples, TrainingConfig, client_app, server_app
from fedsec.federation.strategy import SecureAggregation, SecureRound
from fedsec.lab.plan import round_plan
from fedsec.learning import partition
from fedsec.learning.backend import keras
from fedsec.learning.data import Mnist, pixels
from fedsec.learning.private.trainer import HospitalPrivacy
from fedsec.scenario import Scenario, StrategySettings


def examples_of(scenario: Scenario, mnist: Mnist) -> Callable[[int], Examples]:
    """Return a function that gives each hospital, by number from 0, its images and labels."""
    images = pixels(mnist.train_images[: scenario.training.examples])
    labels = mnist.train_labels[: scenario.training.examples]
    settings = scenario.hospitals
    if settings.partition == "equal":
        parts = partition.equal(labels, settings.count, scenario.seed)
    else:
        parts = partition.dirichlet(labels, settings.count, settings.alpha, scenario.seed)
    return lambda hospital: (images[parts[hospital]], labels[parts[hospital]])


def test_examples_of(scenario: Scenario, mnist: Mnist) -> Callable[[int], Examples]:
    """Return a function that gives each hospital its part of the test images, for when hospitals evaluate."""
    count, hospitals = scenario.training.test_examples, scenario.hospitals.count
    images, labels = pixels(mnist.test_images[:count]), mnist.test_labels[:count]
    return lambda hospital: (images[hospital::hospitals], labels[hospital::hospitals])


def strategy_of(settings: StrategySettings, fraction_evaluate: float = 0.0) -> Strategy:
    """Return Flower's strategy; unless the hospitals evaluate, the test images are the server's."""
    if settings.name == "fedavgm":
        return FedAvgM(
            fraction_evaluate=fraction_evaluate,
            server_learning_rate=settings.server_learning_rate,
            server_momentum=settings.server_momentum,
        )
    if settings.name == "fedadam":
        return FedAdam(fraction_evaluate=fraction_evaluate, eta=settings.server_learning_rate)
    return FedAvg(fraction_evaluate=fraction_evaluate)


def hospital_app(
    scenario: Scenario,
    mnist: Mnist,
    model: keras.Model,
    mods: Sequence[Mod] = (),
) -> ClientApp:
    """Return the ClientApp of a scenario's hospitals: each trains ``model`` on its part of the images."""
    return client_app(
        model,
        examples_of(scenario, mnist),
        evaluation=test_examples_of(scenario, mnist),
        privacy=_privacy_of(scenario),
        mods=mods,
    )


def _privacy_of(scenario: Scenario) -> HospitalPrivacy | None:
    wanted = scenario.privacy
    if not scenario.record_level:
        return None
    return HospitalPrivacy(
        target_epsilon=wanted.target_epsilon,
        delta=wanted.delta,
        l2_norm_clip=wanted.l2_norm_clip,
        rounds=scenario.training.rounds,
    )


def secured(
    scenario: Scenario,
    aggregators: Path,
    identity: Path,
    on_round: Callable[[SecureRound], None] | None = None,
    serves: bytes = b"",
) -> SecureAggregation:
    """Return a scenario's strategy, which sees averages only, or with ``reveal_to`` not even those.

    Args:
        scenario: Names Flower's strategy and the constants of the rounds.
        aggregators: The cluster file.
        identity: The Flower server's identity.
        on_round: Called after each secured exchange.
        serves: For a model that nobody is to have, the digest of the plan under which it is served.
    """
    inner = strategy_of(scenario.strategy, 1.0 if is_sealed(scenario) else 0.0)
    plan = round_plan(scenario, serves)
    return SecureAggregation(inner, aggregators, identity, plan=plan, on_round=on_round)


def is_sealed(scenario: Scenario) -> bool:
    """Tell whether the model stays in shares, so that only hospitals can evaluate it."""
    return scenario.aggregation.reveal_to != "server"


def central_app(
    scenario: Scenario,
    mnist: Mnist,
    model: keras.Model,
    strategy: Strategy,
    on_round: Callable[[int, float, float], None] | None = None,
) -> ServerApp:
    """Return a scenario's ServerApp, which tests the averaged model, if it has it, on first test images."""
    settings = scenario.training
    count = settings.test_examples
    test = (pixels(mnist.test_images[:count]), mnist.test_labels[:count])
    return server_app(
        strategy,
        model,
        None if is_sealed(scenario) else test,
        rounds=settings.rounds,
        training=TrainingConfig(
            learning_rate=settings.learning_rate,
            batch_size=settings.batch_size,
            local_epochs=settings.local_epochs,
            optimizer=settings.optimizer,
            seed=scenario.seed,
        ),
        on_round=on_round,
    )
