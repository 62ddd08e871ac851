"""Train a scenario: real Flower apps in this process, their updates summed by the parties of a cluster."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, Strategy

from fedsec.errors import RoundAbortedError
from fedsec.federation.apps import (
    PARAMETERS,
    Examples,
    TrainingConfig,
    client_app,
    server_app,
)
from fedsec.federation.grid import DropEachRound, InProcessGrid, node_configs, run_server_app
from fedsec.federation.mod import SecureAggregationMod
from fedsec.federation.observer import SimulationObserver, largest_difference, plain_mean
from fedsec.federation.strategy import SecureAggregation, SecureRound
from fedsec.lab.plan import round_plan
from fedsec.lab.progress import Reporter
from fedsec.lab.result import RoundReport
from fedsec.learning import partition
from fedsec.learning.backend import keras
from fedsec.learning.data import Mnist, pixels
from fedsec.learning.evaluation import set_parameters
from fedsec.scenario import Scenario, StrategySettings
from fedsec.transport import Meter


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


class _Rounds:
    """Joins what the strategy, the observer and the evaluation say of a round into one report."""

    def __init__(
        self, names: Sequence[str], observer: SimulationObserver, report: Callable[[RoundReport], None]
    ) -> None:
        self._names = names
        self._observer = observer
        self._report = report
        self._last: RoundReport | None = None
        self._averages = 0
        self._secure: SecureRound | None = None
        self._started = time.monotonic()

    def secured(self, secure: SecureRound) -> None:
        """Keep what the strategy knows until the round is evaluated."""
        self._secure = secure

    def evaluated(self, number: int, loss: float, accuracy: float) -> None:
        """Report the round; the evaluation before the first one only starts the clock."""
        seconds, self._started = time.monotonic() - self._started, time.monotonic()
        secure, self._secure = self._secure, None
        if number == 0 or secure is None:
            return
        result = secure.result
        self._averages += result is not None
        self._last = RoundReport(
            round=number,
            accuracy=accuracy,
            loss=loss,
            included=len(result.included) if result else 0,
            hospitals=len(self._names),
            difference=self._difference(secure),
            error_bound=result.error_bound if result else None,
            seconds=seconds,
            statuses=secure.statuses,
            aborted=secure.aborted,
        )
        self._report(self._last)

    def check(self) -> None:
        """Raise if the whole training made no average: the model would be the initial one."""
        if self._last is not None and not self._averages:
            raise RoundAbortedError(
                f"none of {self._last.round} rounds ended with an average. In the last one"
                f" {self._last.aborted or 'nobody uploaded'}; hospitals answered {dict(self._last.statuses)}"
            )

    def _difference(self, secure: SecureRound) -> float | None:
        seen = self._observer.take()
        if secure.result is None:
            return None
        included = set(secure.result.included)
        updates = [update for hospital, update in seen.items() if self._names[hospital] in included]
        return largest_difference(secure.result.arrays, plain_mean(updates))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sites:
    """Where the participants of a run find their keys.

    Attributes:
        cluster: The cluster file of parties that are running.
        server: The Flower server's identity.
        trust: The trust file of each hospital by name, in the order of their numbers.
    """

    cluster: Path
    server: Path
    trust: Mapping[str, Path]


def train(
    scenario: Scenario,
    mnist: Mnist,
    model: keras.Model,
    sites: Sites,
    *,
    reporter: Reporter,
    on_round: Callable[[RoundReport], None],
) -> dict[str, Counter[str]]:
    """Run all federated rounds and leave the last average in ``model``.

    Args:
        scenario: What to run.
        mnist: The data set, which the scenario splits over the hospitals.
        model: A built Keras classifier; its parameters at this moment are the initial ones.
        sites: Where keys are.
        reporter: Hears of every hospital that has answered.
        on_round: Called with each round's report.

    Returns:
        ``sent_bytes`` and ``received_bytes`` of ``hospitals`` (all of them) and ``server``.

    Raises:
        RoundAbortedError: No round ended with an average.
        PeerLostError: A party died or does not answer.
    """
    secure, observer = SecureAggregationMod(), SimulationObserver()
    rounds = _Rounds(list(sites.trust), observer, on_round)
    strategy = SecureAggregation(
        strategy_of(scenario.strategy),
        sites.cluster,
        sites.server,
        plan=round_plan(scenario),
        on_round=rounds.secured,
    )
    try:
        app = client_app(model, examples_of(scenario, mnist), mods=[secure, observer])
        grid = _grid(scenario, app, list(sites.trust.values()), reporter)
        context = run_server_app(_server(scenario, mnist, model, strategy, rounds), grid)
        rounds.check()
        set_parameters(model, context.state.array_records[PARAMETERS].to_numpy_ndarrays())
        return {"hospitals": _total(secure.meters().values()), "server": _total([strategy.meter])}
    finally:
        strategy.close()
        secure.close()


def _grid(scenario: Scenario, app: ClientApp, trust: Sequence[Path], reporter: Reporter) -> InProcessGrid:
    hospitals = scenario.hospitals
    dropout = None
    if hospitals.dropped_each_round:
        dropout = DropEachRound(hospitals.dropped_each_round, hospitals.count, scenario.seed)
    return InProcessGrid(
        app,
        node_configs(hospitals.count, trust),
        dropout=dropout,
        progress=lambda exchange, answered, asked: reporter.step(),
    )


def _server(
    scenario: Scenario, mnist: Mnist, model: keras.Model, strategy: SecureAggregation, rounds: _Rounds
) -> ServerApp:
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
        on_round=rounds.evaluated,
    )


def _total(meters: Iterable[Meter]) -> Counter[str]:
    total: Counter[str] = Counter()
    for meter in meters:
        total.update(sent_bytes=meter.sent_bytes, received_bytes=meter.received_bytes)
    return total
