"""An audit of one finished run, or of two side by side."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedsec.audit.canaries import Planting, exposures
from fedsec.audit.fairness import fairness
from fedsec.audit.figures import draw_audit, draw_inversion
from fedsec.audit.inversion import Noise, invert
from fedsec.audit.lira import SHADOWS, lira
from fedsec.audit.mechanism import audit_mechanism
from fedsec.audit.membership import membership
from fedsec.audit.subject import Examples, Subject
from fedsec.errors import StateError, UnsupportedModelError, UsageError
from fedsec.lab.progress import Reporter
from fedsec.lab.rundir import RunFolder
from fedsec.learning import models
from fedsec.learning.data import load_mnist
from fedsec.learning.private.model import make_private
from fedsec.privacy.accounting import noise_for
from fedsec.scenario import Scenario

DEFAULT_EPSILON = 8.0
"""Of the differential privacy to compare with, where no audited run has one."""

_MECHANISM_NOISE = 2.5
"""Small enough that the claim is worth refuting, large enough that a broken one is found."""


_CANARY_RECORDS, _CANARY_EPOCHS = 500, 50
"""At most so many, which keeps it to a minute."""


def audit_run(
    path: Path | str,
    against: Path | str | None = None,
    *,
    parts: Sequence[str] | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Attack a finished run's model, its updates and the mechanism that is to protect them.

    Args:
        path: The run's folder, which gets ``audit.json`` and pictures.
        against: Another run's, to stand beside it: with differential privacy and without.
        parts: Some of ``PARTS``; all by default.
        reporter: Hears how far it is.

    Returns:
        What ``audit.json`` holds.

    Raises:
        UsageError: A folder is not that of a run with a model, or a part is unknown.
        DataError: MNIST could not be had.
        StateError: The folder cannot be written.
    """
    reporter, started = reporter or Reporter(), time.monotonic()
    wanted = PARTS if parts is None else tuple(parts)
    if unknown := [part for part in wanted if part not in PARTS]:
        raise UsageError(f"an audit has the parts {', '.join(PARTS)}; got {unknown[0]!r}")
    folders = [RunFolder.open(one) for one in (path, against) if one is not None]
    reporter.begin("MNIST")
    mnist = load_mnist()
    subjects = [Subject.of(folder, mnist) for folder in folders]
    found: dict[str, Any] = {"runs": [_of_a_run(subject, wanted, reporter) for subject in subjects]}
    for part, (title, attack) in _OF_BOTH.items():
        if part in wanted:
            reporter.begin(title)
            found[part] = attack(subjects)
    found["seconds"] = time.monotonic() - started
    _keep(found, folders[0])
    return found


def _of_a_run(subject: Subject, wanted: Sequence[str], reporter: Reporter) -> dict[str, Any]:
    found: dict[str, Any] = {
        "run": str(subject.folder.path),
        "scenario": subject.scenario.name,
        "epsilon": subject.epsilon,
    }
    for part, (title, attack) in _OF_A_RUN.items():
        if part in wanted:
            reporter.begin(f"{subject.folder.name}: {title}")
            found[part] = attack(subject)
    return found


def _keep(found: Mapping[str, Any], folder: RunFolder) -> None:
    try:
        folder.audit.write_text(json.dumps(found) + "\n", encoding="utf-8")
        draw_audit(found, folder.audit_figure)
    except OSError as error:
        raise StateError(f"cannot write into {folder.path}: {error.strerror}") from error


def _membership(subject: Subject) -> dict[str, Any]:
    return {**asdict(membership(subject)), "others_are": subject.origin}


def _lira(subject: Subject) -> dict[str, Any]:
    return {**asdict(lira(subject)), "shadows": SHADOWS, "others_are": subject.origin}


def _fairness(subject: Subject) -> dict[str, Any]:
    found = fairness(subject)
    return {
        **asdict(found),
        "worst_class": found.worst_class.name,
        "worst_hospital": found.worst_hospital.name,
    }


def _inversion(subjects: Sequence[Subject]) -> dict[str, Any]:
    """Attack the first hospital's first image in the first round."""
    first = subjects[0]
    example = Examples(first.hospitals[0].images[:1], first.hospitals[0].labels[:1])
    scenario = _private_one(subjects)
    noise = _noise_of(scenario, len(first.hospitals[0].labels))
    model = models.by_name(first.scenario.training.model, seed=first.scenario.seed)
    recovered = invert(model, example, noise)
    draw_inversion(example.images[0], recovered, first.folder.inversion_figure)
    views = [{"name": r.name, "correlation": r.correlation, "psnr": r.psnr} for r in recovered]
    return {"model": first.scenario.training.model, "noise": asdict(noise), "views": views}


def _canaries(subjects: Sequence[Subject]) -> dict[str, Any]:
    """Plant canaries among the first hospital's images; it then trains alone for as long as in the run."""
    first, privacy = subjects[0], _private_one(subjects).privacy
    training = first.scenario.training
    planting = Planting(
        records=min(len(first.hospitals[0].labels), _CANARY_RECORDS),
        epochs=min(training.rounds * training.local_epochs, _CANARY_EPOCHS),
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        epsilon=privacy.target_epsilon,
        delta=privacy.delta,
        l2_norm_clip=privacy.l2_norm_clip,
    )
    model = models.by_name(first.scenario.training.model, seed=first.scenario.seed)
    try:
        plain, private = exposures(model, first.hospitals[0], planting)
    except UnsupportedModelError as error:
        return {"refused": str(error)}
    return {"planting": asdict(planting), "plain": asdict(plain), "private": asdict(private)}


def _mechanism(_: Sequence[Subject]) -> dict[str, Any]:
    found = audit_mechanism(lambda model: make_private(model, noise_multiplier=_MECHANISM_NOISE))
    return {**asdict(found), "broken": found.broken, "noise_multiplier": _MECHANISM_NOISE}


def _private_one(subjects: Sequence[Subject]) -> Scenario:
    """Return the scenario of the first run with differential privacy; without one, the first with some."""
    for subject in subjects:
        if subject.scenario.privacy.target_epsilon:
            return subject.scenario
    return subjects[0].scenario.override(f"privacy.target_epsilon={DEFAULT_EPSILON}")


def _noise_of(scenario: Scenario, records: int) -> Noise:
    """Return the noise of a hospital with so many records."""
    training, privacy = scenario.training, scenario.privacy
    expected = min(training.batch_size, records)
    steps = training.local_epochs * math.ceil(records / expected) * training.rounds
    multiplier = noise_for(privacy.target_epsilon, privacy.delta, expected / records, steps)
    return Noise(privacy.target_epsilon, multiplier, privacy.l2_norm_clip)


_OF_A_RUN: Mapping[str, tuple[str, Callable[[Subject], dict[str, Any]]]] = {
    "membership": ("losses of members and others", _membership),
    "lira": ("shadow models", _lira),
    "fairness": ("accuracy by class and by hospital", _fairness),
}
_OF_BOTH: Mapping[str, tuple[str, Callable[[Sequence[Subject]], dict[str, Any]]]] = {
    "inversion": ("from an update back to the image", _inversion),
    "canaries": ("two trainings with canaries", _canaries),
    "mechanism": ("DP-SGD against its own claim", _mechanism),
}

PARTS = (*_OF_A_RUN, *_OF_BOTH)
"""What an audit has, in order."""
