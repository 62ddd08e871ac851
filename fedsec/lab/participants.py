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


def strategy_of(settings: StrategySettings) -> Strategy:
    """Return Flower's strategy; there is no evaluation at the hospitals, the test images are the server's."""
    if settings.name == "fedavgm":
        return FedAvgM(fraction_evaluate=0.0, server_learning_rate=settings.server_learning_rate)
    if settings.name == "fedadam":
        return FedAdam(fraction_evaluate=0.0, eta=settings.server_learning_rate)
    return FedAvg(fraction_evaluate=0.0)


def hospital_app(scenario: Scenario, mnist: Mnist, model: keras.Model, mods: Sequence[Mod] = ()) -> ClientApp:
    """Return the ClientApp of a scenario's hospitals: each trains ``model`` on its part of the images."""
    return client_app(model, examples_of(scenario, mnist), mods=mods)


def secured(
    scenario: Scenario,
    aggregators: Path,
    identity: Path,
    on_round: Callable[[SecureRound], None] | None = None,
) -> SecureAggregation:
    """Return a scenario's strategy, which sees averages only.

    Args:
        scenario: Names Flower's strategy and the constants of the rounds.
        aggregators: The cluster file.
        identity: The Flower server's identity.
        on_round: Called after each secured exchange.
    """
    return SecureAggregation(
        strategy_of(scenario.strategy), aggregators, identity, plan=round_plan(scenario), on_round=on_round
    )


def central_app(
    scenario: Scenario,
    mnist: Mnist,
    model: keras.Model,
    strategy: Strategy,
    on_round: Callable[[int, float, float], None] | None = None,
) -> ServerApp:
    """Return a scenario's ServerApp, which tests the averaged model on the first of the test images."""
    settings = scenario.training
    count = settings.test_examples
    return server_app(
        strategy,
        model,
        (pixels(mnist.test_images[:count]), mnist.test_labels[:count]),
        rounds=settings.rounds,
        training=TrainingConfig(
            learning_rate=settings.learning_rate,
            batch_size=settings.batch_size,
            local_epochs=settings.local_epochs,
            seed=scenario.seed,
        ),
        on_round=on_round,
    )
