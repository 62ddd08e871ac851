"""Run a scenario: train over its hospitals, with the updates summed in shares."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedsec.aggregation.client import HospitalClient
from fedsec.aggregation.sealed.terms import SealedAt
from fedsec.aggregation.trust import TrustFile
from fedsec.errors import RoundAbortedError
from fedsec.federation.receipts import fetch_receipts
from fedsec.lab.accounts import cost_before, spent_by_hospitals, spent_on_records
from fedsec.lab.engines import Engine, check_engine, train_with_flower
from fedsec.lab.experiment import Experiment, log_to, running
from fedsec.lab.progress import Reporter
from fedsec.lab.result import RoundReport, RunResult
from fedsec.lab.rundir import RunFolder
from fedsec.lab.sealed import finish_run, plan_run
from fedsec.learning.data import load_mnist
from fedsec.nn import save_weights
from fedsec.scenario import Scenario

if TYPE_CHECKING:
    import keras
    import numpy.typing as npt

    from fedsec.cluster.cluster import Cluster


def run_scenario(
    scenario: Scenario,
    *,
    runs: Path | str = "runs",
    reporter: Reporter | None = None,
    engine: Engine = "in-process",
) -> RunResult:
    """Run a scenario on this machine: parties as processes, hospitals as real Flower ClientApps.

    Args:
        scenario: What to run; ``Scenario.load`` reads one.
        runs: Folder in which the run gets a folder of its own.
        reporter: Hears how far it is; nobody by default.
        engine: Where hospitals and server run: ``in-process``, here one after the other; ``ray``, Flower's
            simulation engine; ``deployment``, Flower's SuperLink and a SuperNode for each hospital.

    Returns:
        What was measured; the averaged model is in ``result.folder.model``.

    Raises:
        UsageError: The engine cannot run here.
        DataError: MNIST could not be had.
        RoundAbortedError: No round ended with an average.
        PeerLostError: A party died; the text names it. Whatever happens, no process is left behind.
    """
    check_engine(engine, scenario)
    with running(scenario, Path(runs), reporter or Reporter()) as experiment:
        train_and_export(experiment, engine)
        return experiment.finish()


def train_and_export(experiment: Experiment, engine: Engine = "in-process") -> None:
    """Run all rounds of an experiment on an engine and store the model, its plan and its parameters.

    A model for ``hospitals`` is stored by one of them. Of a model for ``nobody`` there is only the plan, and
    where the parties keep its shares.
    """
    scenario, folder, reporter = experiment.scenario, experiment.folder, experiment.reporter
    reporter.begin("MNIST")
    mnist = load_mnist()
    reporter.step("70,000 images, digests as published")
    reporter.begin("TensorFlow and Flower")
    # Loading them takes seconds, which wrong options and --help should not have to wait for.
    from fedsec.lab.figures import draw_accuracy  # noqa: PLC0415 - as said above
    from fedsec.lab.training import Sites, train  # noqa: PLC0415 - as said above
    from fedsec.learning import export, models  # noqa: PLC0415 - as said above
    from fedsec.learning.evaluation import set_parameters  # noqa: PLC0415 - as said above

    model = models.by_name(scenario.training.model, seed=scenario.seed)
    cluster = experiment.cluster
    trust = {name: cluster.trust_file(name) for name in cluster.keys.hospitals}
    if scenario.hospital_level:
        reporter.say(cost_before(scenario, model.count_params()))
    for_nobody = scenario.aggregation.reveal_to == "nobody"

    def on_round(report: RoundReport) -> None:
        experiment.rounds.append(report)
        folder.append("round", asdict(report))
        cluster.watch()
        reporter.say(_told(report))

    serves = plan_run(folder, scenario, model) if for_nobody else b""
    sealed: SealedAt | None = None
    with log_to(folder.own_log, "flwr"):
        if engine == "in-process":
            reporter.begin("training", scenario.training.rounds * scenario.hospitals.count)
            sites = Sites(cluster=cluster.file, server=cluster.identity("server"), trust=trust)
            trained = train(
                scenario, mnist, model, sites, reporter=reporter, on_round=on_round, serves=serves
            )
            experiment.count(trained.traffic)
            sealed = trained.sealed
        else:
            last = train_with_flower(experiment, engine, on_round)
            fetch_receipts(trust.values())
            if isinstance(last, SealedAt):
                sealed = last
            if not for_nobody:
                set_parameters(model, _fetched(cluster, last, model) if isinstance(last, SealedAt) else last)
    if scenario.record_level:
        experiment.privacy = spent_on_records(scenario, trust)
    if scenario.hospital_level:
        experiment.whole_hospital = spent_by_hospitals(scenario, trust)
    if for_nobody:
        _keep_closed(folder, sealed)
    draw_accuracy(experiment.rounds, folder.accuracy_figure)
    if for_nobody:
        return
    reporter.begin("model and plan")
    model.save(folder.model)
    plan, parameters = export.export(model, scenario.serving.fraction_bits)
    plan.save(folder.plan)
    save_weights(folder.weights, parameters)


def _fetched(cluster: Cluster, sealed: SealedAt, model: keras.Model) -> list[npt.NDArray[np.float32]]:
    """Return a model that stays in shares as the first hospital puts it together: it has its own keys here.

    Args:
        cluster: The parties, with the hospital's trust file.
        sealed: Which session.
        model: The network with its initial parameters.
    """
    with HospitalClient(TrustFile.load(cluster.trust_file(cluster.keys.hospitals[0]))) as hospital:
        announcement = hospital.last_training(sealed.session)
        _, arrays = hospital.last_model(announcement, model.get_weights())
    return [array.astype(np.float32) for array in arrays]


def _keep_closed(folder: RunFolder, sealed: SealedAt | None) -> None:
    """Note where the closed model is.

    Raises:
        RoundAbortedError: The last round made no state, so what there is was opened to hospitals.
    """
    if sealed is None or not sealed.closed:
        raise RoundAbortedError(
            "the last round made no state that is closed to everybody: what there is was seen by hospitals"
        )
    finish_run(folder, sealed.session, sealed.number)


def _told(report: RoundReport) -> str:
    if not report.included:
        return f"round {report.round}: no average, the model stays: {report.aborted}"
    if report.accuracy is None:
        return (
            f"round {report.round}: {report.included} of {report.hospitals} hospitals in the sum; nobody has"
            " the model, so nobody can test it"
        )
    return (
        f"round {report.round}: {report.accuracy:.2%} on the test images,"
        f" {report.included} of {report.hospitals} hospitals in the sum"
    )
