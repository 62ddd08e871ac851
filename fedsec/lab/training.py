"""Train a scenario: real Flower apps in this process, their updates summed by the parties of a cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.clientapp import ClientApp

from fedsec.aggregation.sealed.terms import SealedAt
from fedsec.federation.apps import PARAMETERS
from fedsec.federation.grid import DropEachRound, InProcessGrid, node_configs, run_server_app
from fedsec.federation.mod import SecureAggregationMod
from fedsec.federation.observer import SimulationObserver
from fedsec.lab.participants import central_app, hospital_app, is_sealed, secured
from fedsec.lab.plan import round_plan
from fedsec.lab.progress import Reporter
from fedsec.lab.result import RoundReport
from fedsec.lab.rounds import Rounds
from fedsec.learning.backend import keras
from fedsec.learning.data import Mnist
from fedsec.learning.evaluation import set_parameters
from fedsec.scenario import Scenario
from fedsec.transport import Meter


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


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training leaves beside the model.

    Attributes:
        traffic: ``sent_bytes`` and ``received_bytes`` of ``hospitals`` (all of them) and ``server``.
        sealed: Where the model is when it stays in shares; None when it is in the clear.
    """

    traffic: dict[str, Counter[str]]
    sealed: SealedAt | None


def train(
    scenario: Scenario,
    mnist: Mnist,
    model: keras.Model,
    sites: Sites,
    *,
    reporter: Reporter,
    on_round: Callable[[RoundReport], None],
    serves: bytes = b"",
) -> Trained:
    """Run all federated rounds and leave the last average in ``model``, unless nobody is to have it.

    Args:
        scenario: What to run.
        mnist: The data set, which the scenario splits over the hospitals.
        model: A built Keras classifier; its parameters at this moment are the initial ones.
        sites: Where keys are.
        reporter: Hears of every hospital that has answered.
        on_round: Called with each round's report.
        serves: For a model that nobody is to have, the digest of the plan under which it is served.

    Raises:
        RoundAbortedError: No round ended with an average.
        PeerLostError: A party died or does not answer.
    """
    secure, observer = SecureAggregationMod(), SimulationObserver()
    sealed = is_sealed(scenario)
    rounds = Rounds(list(sites.trust), on_round, round_plan(scenario), observer)
    strategy = secured(scenario, sites.cluster, sites.server, rounds.secured, serves)
    if sealed:
        reporter.say(
            f"reveal_to = '{scenario.aggregation.reveal_to}': the model stays in shares at three parties. In"
            " this engine Flower server and hospitals share one process: it shows how, and hides nothing"
        )
    try:
        app = hospital_app(scenario, mnist, model, [secure, observer])
        grid = _grid(scenario, app, list(sites.trust.values()), reporter)
        server = central_app(scenario, mnist, model, strategy, rounds.evaluated)
        context = run_server_app(server, grid)
        rounds.check()
        if scenario.aggregation.reveal_to == "hospitals":
            # What follows is this hospital's work: the server has the initial parameters only.
            _, arrays = secure.last_sealed(next(iter(sites.trust.values())))
            set_parameters(model, [np.asarray(one, dtype=np.float32) for one in arrays.values()])
        elif not sealed:
            set_parameters(model, context.state.array_records[PARAMETERS].to_numpy_ndarrays())
        traffic = {"hospitals": _total(secure.meters().values()), "server": _total([strategy.meter])}
        return Trained(traffic, strategy.sealed)
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


def _total(meters: Iterable[Meter]) -> Counter[str]:
    total: Counter[str] = Counter()
    for meter in meters:
        total.update(sent_bytes=meter.sent_bytes, received_bytes=meter.received_bytes)
    return total
