"""The whole path on real MNIST: train, average in shares, serve in shares, ask from another process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fedsec.errors import FedsecError, PeerLostError
from fedsec.lab.experiment import Experiment, running
from fedsec.lab.images import read_test_images
from fedsec.lab.progress import Reporter
from fedsec.lab.result import PredictionReport, RunResult
from fedsec.lab.run import train_and_export
from fedsec.lab.share import share
from fedsec.learning.data import load_mnist
from fedsec.scenario import Scenario

ASK_S = 90.0
"""Longest wait for the client process; it takes a second or two."""

_END_S = 30.0


def demo_scenario() -> Scenario:
    """Return what ``fedsec demo`` runs: ten hospitals with 6,000 images each, six rounds."""
    return Scenario(name="demo")


def run_demo(scenario: Scenario, *, runs: Path | str = "runs", reporter: Reporter | None = None) -> RunResult:
    """Train, then split the model over the same parties and let a client process ask them.

    Args:
        scenario: What to run; the demo's own is ``demo_scenario()``.
        runs: Folder in which the run gets a folder of its own.
        reporter: Hears how far it is; nobody by default.

    Returns:
        What was measured, predictions included.

    Raises:
        FedsecError: As ``run_scenario`` and ``share`` raise. No process is left behind.
    """
    with running(scenario, Path(runs), reporter or Reporter()) as experiment:
        train_and_export(experiment)
        _predict(experiment)
        return experiment.finish()


def _predict(experiment: Experiment) -> None:
    """Serve the run's model in shares, ask from another process, compare with Keras."""
    # Matplotlib takes half a second to load; after a training it is there already.
    from fedsec.lab.figures import draw_views  # noqa: PLC0415 - as said above

    reporter, cluster, folder = experiment.reporter, experiment.cluster, experiment.folder
    index = experiment.scenario.serving.test_index
    reporter.begin("private prediction", 3)
    with share(folder.path, cluster) as shared:
        reporter.step("model split into shares")
        shared.serve(num_requests=len(index))
        reporter.step("asking from another process")
        asked = ask_from_process(cluster.file, cluster.identity("user"), index, folder.logs / "user.log")
        shared.wait(_END_S)
        experiment.count(
            {
                "owner": Counter(
                    sent_bytes=shared.meter.sent_bytes, received_bytes=shared.meter.received_bytes
                ),
                "user": Counter(sent_bytes=asked["sent_bytes"], received_bytes=asked["received_bytes"]),
            }
        )
    experiment.prediction = _compared(folder.model, index, asked)
    folder.append("prediction", asdict(experiment.prediction))
    draw_views(read_test_images(index), folder.views_figure)
    reporter.step(" ".join(str(label) for label in experiment.prediction.labels))


def ask_from_process(cluster: Path, identity: Path, index: Sequence[int], log: Path) -> dict[str, Any]:
    """Run ``fedsec predict`` as a process of its own, which reads only these two files.

    Args:
        cluster: The cluster file.
        identity: The user's identity.
        index: Which MNIST test images.
        log: Gets the process' standard error.

    Returns:
        What it printed: ``labels``, ``logits``, ``seconds``, ``sent_bytes``, ``received_bytes``.

    Raises:
        PeerLostError: It did not answer in time, or its answer cannot be read.
        FedsecError: It ended with one of our exit codes; the text is the process' own.
    """
    command = [sys.executable, "-m", "fedsec", "predict", "--json"]
    command += ["--cluster", str(cluster), "--identity", str(identity), "--test-index", *map(str, index)]
    with log.open("wb") as errors:
        try:
            # Leaving ``run`` early, by a signal too, kills the process.
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                timeout=ASK_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise PeerLostError(
                f"the client process did not answer within {ASK_S:.0f} s; see {log}"
            ) from error
    if done.returncode != 0:
        said = log.read_text(encoding="utf-8", errors="replace").strip().removeprefix("fedsec: ")
        raise FedsecError(
            f"the client process ended with exit code {done.returncode}: {said or f'see {log}'}"
        )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _compared(model: Path, index: Sequence[int], asked: Mapping[str, Any]) -> PredictionReport:
    """Put the private answers beside what the saved Keras model says in the clear."""
    # Loading them takes seconds; after a training they are there already.
    from fedsec.lab.clear import keras_logits  # noqa: PLC0415 - as said above
    from fedsec.learning.saved import load_keras  # noqa: PLC0415 - as said above

    private = np.asarray(asked["logits"], dtype=np.float64)
    clear = keras_logits(load_keras(model), read_test_images(index))
    differences = np.abs(private - clear).max(axis=-1)
    truth = load_mnist().test_labels[list(index)]
    return PredictionReport(
        test_index=tuple(index),
        labels=tuple(asked["labels"]),
        truth=tuple(int(label) for label in truth),
        logits=tuple(tuple(row) for row in private.tolist()),
        keras_logits=tuple(tuple(row) for row in clear.tolist()),
        differences=tuple(differences.tolist()),
        seconds=asked["seconds"],
    )
