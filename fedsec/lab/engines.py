"""Train a scenario on Flower's own engines: Ray's simulation, or SuperLink and SuperNodes as processes."""

from __future__ import annotations

import importlib.util
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedsec.aggregation.sealed.terms import SealedAt
from fedsec.aggregation.trust import TRUST_NODE_KEY, TRUST_VARIABLE
from fedsec.errors import FedsecError, UsageError
from fedsec.federation.bundle import write_app
from fedsec.federation.flower import Flower
from fedsec.lab.experiment import Experiment
from fedsec.lab.handover import RUN_NODE_KEY, RUN_VARIABLE, Handover
from fedsec.lab.plan import round_plan
from fedsec.lab.result import RoundReport
from fedsec.scenario import Scenario
from fedsec.transport import Deadline, MeterReading

Engine = Literal["in-process", "ray", "deployment"]
ENGINES: tuple[Engine, ...] = ("in-process", "ray", "deployment")

MOST_SUPERNODES = 16
"""Hospitals of a deployment on one machine: each is three processes, and all load TensorFlow at once."""
START_S = 300.0
"""Seconds until the first round begins, and twenty more for each hospital: programs have to load."""
_SLACK_S = 120.0
_APPS = "fedsec.lab.flower_apps"
_LOOK_S = 0.1


def check_engine(engine: Engine, scenario: Scenario) -> None:
    """Refuse, before anything starts, what cannot run here.

    Raises:
        UsageError: Ray is not installed, or a deployment would be too large for one machine.
    """
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise UsageError(
            "the engine `ray` needs Flower's simulation engine, which is not installed: "
            "run `pip install 'fedsec[ray]'`, or take --engine in-process"
        )
    if engine == "deployment" and scenario.hospitals.count > MOST_SUPERNODES:
        raise UsageError(
            f"a deployment on one machine has at most {MOST_SUPERNODES} hospitals, each with TensorFlow in a "
            f"process of its own; the scenario has {scenario.hospitals.count}: take --engine in-process or "
            "ray, or --set hospitals.count"
        )


def train_with_flower(
    experiment: Experiment, engine: Engine, on_round: Callable[[RoundReport], None]
) -> list[npt.NDArray[np.floating[Any]]] | SealedAt:
    """Run all federated rounds on ``ray`` or ``deployment``.

    Returns:
        The final parameters, or where the model is when it stays in shares.

    Args:
        experiment: The run; its parties are running.
        engine: Which of Flower's engines.
        on_round: Called with each round's report.

    Raises:
        RoundAbortedError: No round ended with an average.
        PeerLostError: A party, or one of Flower's programs, ended; the text names it.
        DeadlineError: The next round did not end in time.
    """
    folder, scenario, reporter = experiment.folder, experiment.scenario, experiment.reporter
    handover = Handover(folder.path)
    app = write_app(
        handover.folder / "app", "fedsec-scenario", client=f"{_APPS}:client", server=f"{_APPS}:server"
    )
    paths = {RUN_VARIABLE: str(folder.path)}
    if engine == "ray":
        paths[TRUST_VARIABLE] = str(folder.path / "keys" / "trust")
    with Flower(handover.folder, folder.logs, paths) as flower:
        if engine == "ray":
            reporter.begin("Flower's simulation engine")
            flower.start_superlink(simulation=True)
            flower.submit(app, {"num-supernodes": scenario.hospitals.count, "client-resources-num-cpus": 1})
        else:
            reporter.begin(f"Flower's SuperLink and {scenario.hospitals.count} SuperNodes")
            flower.start_superlink()
            flower.start_supernodes(_nodes(experiment))
            flower.submit(app)
        reporter.step(f"logs are in {folder.logs.name}/")
        reporter.begin("training", scenario.training.rounds)
        _follow(experiment, flower, handover, on_round)
    experiment.count(_traffic(experiment.cluster.meters()))
    if (sealed := handover.sealed()) is not None:
        return sealed
    with np.load(handover.parameters, allow_pickle=False) as arrays:
        return list(arrays.values())


def _follow(
    experiment: Experiment, flower: Flower, handover: Handover, on_round: Callable[[RoundReport], None]
) -> None:
    """Report each round; return when the server's app has ended well, raise its error when not."""
    scenario = experiment.scenario
    start = START_S + 20 * scenario.hospitals.count
    done, deadline = 0, Deadline.after(start + _round_seconds(scenario))
    ended = False
    while not ended:
        # Asked first: what is found ended has written everything before.
        gone, ended = flower.ended(), handover.ended
        for report in handover.rounds(done):
            done, deadline = done + 1, Deadline.after(_round_seconds(scenario))
            on_round(report)
            experiment.reporter.step()
        if gone and not ended:
            raise FedsecError(f"Flower's server app ended without a result. {flower.last_words()}")
        experiment.cluster.watch()
        flower.check()
        deadline.remaining(
            f"Flower's server app in round {done + 1} (its log is in {experiment.folder.logs})"
        )
        time.sleep(_LOOK_S)
    handover.check()


def _round_seconds(scenario: Scenario) -> float:
    plan = round_plan(scenario)
    # A model that stays in shares is evaluated by the hospitals, in an exchange of its own.
    exchanges = 1 if plan.reveal_to == "server" else 2
    return exchanges * (plan.upload_seconds + 2 * plan.collect_seconds) + _SLACK_S


def _nodes(experiment: Experiment) -> dict[str, dict[str, str | int]]:
    """Return what each hospital's SuperNode gives its ClientApp."""
    names = experiment.cluster.keys.hospitals
    return {
        name: {
            "partition-id": number,
            "num-partitions": len(names),
            TRUST_NODE_KEY: str(experiment.cluster.trust_file(name)),
            RUN_NODE_KEY: str(experiment.folder.path),
        }
        for number, name in enumerate(names)
    }


def _traffic(readings: Mapping[str, MeterReading]) -> dict[str, Counter[str]]:
    """Return bytes of the hospitals and the server, as the parties' own meters counted them.

    Their processes are gone; what they sent is what the parties received.
    """
    traffic = {"hospitals": Counter[str](), "server": Counter[str]()}
    for reading in readings.values():
        for peer, (_, sent, _, received) in reading.by_peer.items():
            role = "server" if peer == "server" else "hospitals" if peer.startswith("hospital-") else ""
            if role:
                traffic[role].update(sent_bytes=received, received_bytes=sent)
    return traffic
