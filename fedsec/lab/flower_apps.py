"""A scenario's Flower apps for Ray's simulation and for SuperLink and SuperNodes: in processes of their own.

Flower loads :data:`client` and :data:`server` by name. What they need they find by paths that each site
sets for itself and nobody sends: the server's process by the environment variable ``FEDSEC_RUN``, the folder
of the run; a hospital's by its node config, ``fedsec-run`` (a folder with ``scenario.toml``) and
``fedsec-trust`` (its trust file). A simulation has no node configs: ``FEDSEC_TRUST`` is a folder there.
"""

from __future__ import annotations

import functools
import os
import time

import numpy as np
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp

from fedsec.cluster.keys import SERVER, numbered
from fedsec.errors import DeadlineError, FedsecError, UsageError
from fedsec.federation.apps import PARAMETERS
from fedsec.federation.grid import DropEachRound, PromptGrid
from fedsec.federation.mod import secure_aggregation
from fedsec.lab.experiment import log_to
from fedsec.lab.handover import RUN_NODE_KEY, RUN_VARIABLE, Handover
from fedsec.lab.participants import central_app, hospital_app, secured
from fedsec.lab.plan import round_plan
from fedsec.lab.rounds import Rounds
from fedsec.lab.rundir import RunFolder
from fedsec.lab.sealed import digest_of_run
from fedsec.learning import models
from fedsec.learning.data import load_mnist
from fedsec.scenario import Scenario
from fedsec.transport import Deadline

HOSPITALS_S = 120.0
"""Seconds until all hospitals must be connected, and ten more for each of them."""
_LOOK_S = 0.5

# The hospitals' side.


def _vanish(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Be one of those that the scenario lets vanish in this round: nothing is trained or uploaded."""
    scenario = _scenario(_run_of(context))
    hospitals = scenario.hospitals
    drops = DropEachRound(hospitals.dropped_each_round, hospitals.count, scenario.seed)
    server_round = int(str(message.content.config_records["config"]["server-round"]))
    if drops(server_round, int(context.node_config["partition-id"])):
        return Message(Error(ErrorCode.NODE_UNAVAILABLE, "vanished"), reply_to=message)
    return call_next(message, context)


client = ClientApp(mods=[secure_aggregation, _vanish])
"""The hospitals' app: what the scenario says, behind the secure mod."""


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train as the scenario says."""
    return _hospital(_run_of(context))(message, context)


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate as the scenario says: only where the server has no model."""
    return _hospital(_run_of(context))(message, context)


def _run_of(context: Context) -> str:
    run = context.node_config.get(RUN_NODE_KEY) or os.environ.get(RUN_VARIABLE)
    if not run:
        raise UsageError(
            f"no run: expected the folder of a scenario in the node config as '{RUN_NODE_KEY}'; without one "
            "there is nothing to train"
        )
    return str(run)


# Ray's actors and the mods above ask again and again.
@functools.cache
def _scenario(run: str) -> Scenario:
    return Scenario.load(run)


@functools.cache
def _hospital(run: str) -> ClientApp:
    scenario = _scenario(run)
    model = models.by_name(scenario.training.model, seed=scenario.seed)
    return hospital_app(scenario, load_mnist(), model)


# The server's side.

server = ServerApp()
"""The server's app: Flower's strategy as the scenario names it, in the secure wrapper."""


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds, and leave in the run's folder what came out."""
    folder = _run_folder()
    outcome = {"error": FedsecError.__name__, "text": "the server's app failed; its log says where"}
    try:
        with log_to(folder.logs / "server.log", "fedsec"):
            _run_rounds(folder, grid, context)
        outcome = {}
    except FedsecError as error:
        outcome = {"error": type(error).__name__, "text": str(error)}
        raise
    finally:
        Handover(folder.path).end(outcome)


def _run_folder() -> RunFolder:
    """Return the folder of the run; on a server of its own somebody made it with three files in it."""
    run = os.environ.get(RUN_VARIABLE)
    if not run:
        raise UsageError(
            "no run: expected the folder with scenario.toml, cluster.toml and keys/server.pem in the"
            f" environment variable {RUN_VARIABLE} of the SuperLink"
        )
    folder = RunFolder.open(run)
    for made in (folder.logs, Handover(folder.path).folder):
        made.mkdir(exist_ok=True)
    return folder


def _run_rounds(folder: RunFolder, grid: Grid, context: Context) -> None:
    scenario = Scenario.load(folder.scenario)
    mnist = load_mnist()
    model = models.by_name(scenario.training.model, seed=scenario.seed)
    names = numbered("hospital", scenario.hospitals.count)
    _wait_for_hospitals(grid, len(names))
    handover = Handover(folder.path)
    rounds = Rounds(names, handover.add_round, round_plan(scenario))
    strategy = secured(
        scenario,
        folder.cluster,
        folder.path / "keys" / f"{SERVER}.pem",
        on_round=rounds.secured,
        serves=digest_of_run(folder) if scenario.aggregation.reveal_to == "nobody" else b"",
    )
    try:
        central_app(scenario, mnist, model, strategy, rounds.evaluated)(PromptGrid(grid), context)
        rounds.check()
        if (last := strategy.sealed) is not None:
            handover.keep_sealed(last)
            return
        arrays = context.state.array_records.pop(PARAMETERS).to_numpy_ndarrays()
        np.savez(handover.parameters, *arrays)
    finally:
        strategy.close()


def _wait_for_hospitals(grid: Grid, wanted: int) -> None:
    """Wait until as many SuperNodes are connected as the scenario has hospitals."""
    deadline = Deadline.after(HOSPITALS_S + 10 * wanted)
    while (there := len(list(grid.get_node_ids()))) < wanted:
        if deadline.passed:
            raise DeadlineError(
                f"{there} of {wanted} hospitals have connected to Flower's SuperLink in"
                f" {deadline.seconds:g} s; the logs of their SuperNodes say why"
            )
        time.sleep(_LOOK_S)
