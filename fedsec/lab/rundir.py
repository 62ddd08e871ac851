"""The folder of one run: everything an experiment made, and nothing outside of it.

::

    runs/20250131-120000-demo/
        scenario.toml     resolved: every key with the value that was used
        metrics.jsonl     one JSON object a line: a round, a phase, the traffic, a prediction
        summary.json      what the final table shows
        model.keras       the averaged model, plain Keras
        plan.json         the network as the computing parties know it: public
        weights.npz       its weights as float64: the owner's secret
        sealed.json       instead of model and weights, where a model lies that nobody has: public
        model-id          under which parties hold the model and count its users' quotas
        cluster.toml      where the parties are, and the pinned keys
        keys/             of this run's local parties, hospitals, server, owner and user: mode 0700
        logs/             one file a process
        accuracy.png      test accuracy by round
        views.png         the demo's images, and what each party gets of them
        comparison.png    of `fedsec compare`: accuracy and differences, plain beside secured
        audit.json        of `fedsec audit`: what attacks reach; audit.png: the same as a picture
        inversion.png     of `fedsec audit`: images, and what updates made of them give away
        model-inversion.png  of `fedsec audit`: what answers give away of each class
        study.json        of a study: one row a run; study.png: the same as a picture; runs/: the runs
        plain/, secure/   of `fedsec compare`: what the two processes measured

All keys of all roles in one folder are right for an experiment on one machine and for nothing else.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsec.errors import StateError, UsageError
from fedsec.serving.messages import ID_BYTES

LATEST = "latest"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where the files of one run are.

    Attributes:
        path: The folder, absolute.
    """

    path: Path

    @classmethod
    def create(cls, runs: Path, name: str) -> RunFolder:
        """Make a new folder under ``runs``, called by time and ``name``.

        Raises:
            StateError: If the folder cannot be written.
        """
        try:
            folder = cls(_make_new(runs.resolve(), f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"))
            folder.logs.mkdir()
        except OSError as error:
            raise StateError(
                f"cannot make a run folder in {runs}: {error.strerror}; choose another --runs"
            ) from error
        _point_latest_at(folder.path)
        return folder

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """Return the folder of an earlier run.

        Raises:
            UsageError: If there is no run in ``path``; the text says what is missing.
        """
        folder = cls(Path(path).resolve())
        if not folder.path.is_dir():
            raise UsageError(f"expected the folder of a run, such as runs/{LATEST}; {path} is no folder")
        if not (folder.scenario.is_file() or folder.plan.is_file()):
            needed = f"neither {folder.scenario.name} nor {folder.plan.name}"
            raise UsageError(f"{path} is not the folder of a run: it has {needed}")
        return folder

    def refuse_a_study(self) -> None:
        """Say which folders to take instead, if this one is that of a study: it has runs, and is none.

        Raises:
            UsageError: It is the folder of a study.
        """
        runs = self.path / "runs"
        if self.scenario.is_file() and runs.is_dir():
            raise UsageError(f"{self.path} is the folder of a study: take one of its runs, in {runs}")

    @property
    def name(self) -> str:
        """The run's id."""
        return self.path.name

    @property
    def scenario(self) -> Path:
        """The resolved scenario; a folder made to serve a Keras file has none."""
        return self.path / "scenario.toml"

    @property
    def metrics(self) -> Path:
        """Measurements, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """The final table as one JSON object."""
        return self.path / "summary.json"

    @property
    def model(self) -> Path:
        """The averaged Keras model."""
        return self.path / "model.keras"

    @property
    def plan(self) -> Path:
        """The public plan of the network."""
        return self.path / "plan.json"

    @property
    def weights(self) -> Path:
        """The weights that belong to the plan."""
        return self.path / "weights.npz"

    @property
    def sealed(self) -> Path:
        """Where the state of a model lies that nobody has; such a run has neither model nor weights."""
        return self.path / "sealed.json"

    @property
    def accuracy_figure(self) -> Path:
        """Test accuracy by round, as a picture."""
        return self.path / "accuracy.png"

    @property
    def comparison_figure(self) -> Path:
        """A plain run beside a secured one, as a picture."""
        return self.path / "comparison.png"

    @property
    def audit(self) -> Path:
        """What attacks on the run reach."""
        return self.path / "audit.json"

    @property
    def audit_figure(self) -> Path:
        """The same as a picture."""
        return self.path / "audit.png"

    @property
    def inversion_figure(self) -> Path:
        """Images, and what updates made of them give away."""
        return self.path / "inversion.png"

    @property
    def model_inversion_figure(self) -> Path:
        """What the served answers give away of each class."""
        return self.path / "model-inversion.png"

    @property
    def study(self) -> Path:
        """Of a study: one row a run."""
        return self.path / "study.json"

    @property
    def study_figure(self) -> Path:
        """The same as a picture."""
        return self.path / "study.png"

    @property
    def views_figure(self) -> Path:
        """The images that were asked about, and what each party gets of them."""
        return self.path / "views.png"

    @property
    def cluster(self) -> Path:
        """The cluster file."""
        return self.path / "cluster.toml"

    def credentials(self, name: str) -> tuple[Path, Path]:
        """Return the cluster file and an identity of the run: who to ask, and who is asking.

        Args:
            name: Of the identity, ``user`` or ``owner``.

        Raises:
            UsageError: The run was never served: it has no cluster file or no such identity.
        """
        identity = self.path / "keys" / f"{name}.pem"
        for needed in (self.cluster, identity):
            if not needed.is_file():
                raise UsageError(f"{needed} is missing: serve the run first, with `fedsec serve {self.path}`")
        return self.cluster, identity

    def model_id(self) -> bytes:
        """Return the id under which the run's model is shared; drawn and stored when first asked for.

        Raises:
            StateError: The file cannot be written, or is none of ours.
        """
        path = self.path / "model-id"
        try:
            if not path.is_file():
                path.write_text(os.urandom(ID_BYTES).hex() + "\n")
            stored = bytes.fromhex(path.read_text().strip())
        except (OSError, ValueError) as error:
            raise StateError(f"the model's id in {path} cannot be used: {error}") from error
        if len(stored) != ID_BYTES:
            raise StateError(f"the model's id in {path} has {len(stored)} bytes, expected {ID_BYTES}")
        return stored

    @property
    def logs(self) -> Path:
        """One log file a process."""
        return self.path / "logs"

    @property
    def own_log(self) -> Path:
        """The log of the process that trains: the Flower server and the simulated hospitals."""
        return self.logs / "server-and-hospitals.log"

    def append(self, event: str, values: Mapping[str, Any]) -> None:
        """Add one line to the metrics.

        Args:
            event: What the line is about: ``round``, ``traffic``, ``prediction``, ``phase``.
            values: Plain numbers, texts, lists and mappings.

        Raises:
            StateError: If the file cannot be written.
        """
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"event": event, **values}) + "\n")
        except OSError as error:
            raise StateError(f"cannot write {self.metrics}: {error.strerror}") from error

    def read_metrics(self, event: str) -> list[dict[str, Any]]:
        """Return the metrics lines of one kind, in order."""
        lines = self.metrics.read_text(encoding="utf-8").splitlines()
        return [entry for entry in map(json.loads, lines) if entry["event"] == event]


def _make_new(runs: Path, stem: str) -> Path:
    """Make a folder that did not exist; two runs started in one second get two folders."""
    runs.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, 1000):
        path = runs / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return path
    raise StateError(f"{runs} already has 999 runs named {stem}")


def _point_latest_at(path: Path) -> None:
    """Let ``runs/latest`` lead to the newest run; where links are not possible, do without."""
    link, fresh = path.parent / LATEST, path.parent / f".{LATEST}-{os.getpid()}"
    if link.exists() and not link.is_symlink():
        return
    try:
        fresh.symlink_to(path.name)
        fresh.replace(link)
    except OSError:
        fresh.unlink(missing_ok=True)
