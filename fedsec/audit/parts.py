"""The parts of an audit: what each attacks, and what it adds to ``audit.json``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsec.audit.answers import stand_in
from fedsec.audit.canaries import Planting, exposures
from fedsec.audit.curve import FEWEST, Spread
from fedsec.audit.fairness import change, fairness
from fedsec.audit.figures import run_privacy
from fedsec.audit.inversion import Noise, Recovered, invert
from fedsec.audit.lira import SHADOWS, lira
from fedsec.audit.mechanism import audit_mechanism
from fedsec.audit.membership import membership
from fedsec.audit.model_inversion import ATTACKS, invert_classes
from fedsec.audit.pictures import draw_inversion, draw_model_inversion
from fedsec.audit.subject import Examples, Subject
from fedsec.errors import UnsupportedModelError, UsageError
from fedsec.lab.progress import Reporter
from fedsec.lab.rundir import RunFolder
from fedsec.learning import models
from fedsec.learning.private.model import make_private
from fedsec.privacy.accounting import noise_for
from fedsec.scenario import Scenario

DEFAULT_EPSILON = 8.0
"""Of the differential privacy to compare with, where no audited run has one."""

_MECHANISM_NOISE = 2.5
"""Small enough that the claim is worth refuting, large enough that a broken one is found."""

_CANARY_RECORDS, _CANARY_EPOCHS = 500, 50
"""At most so many, which keeps it to a minute."""


@dataclass(frozen=True, slots=True)
class Audited:
    """What the parts work on.

    Attributes:
        subjects: The runs, at least one.
        folder: Where pictures go.
        reporter: Hears how far a part is.
    """

    subjects: Sequence[Subject]
    folder: RunFolder
    reporter: Reporter

    def one_by_one(self) -> Iterator[Subject]:
        """Give each run, and report it when it is done."""
        for subject in self.subjects:
            yield subject
            self.reporter.step(subject.folder.name)


@dataclass(frozen=True, slots=True)
class Part:
    """One part.

    Attributes:
        title: What is done, for people who wait.
        attack: Returns what ``audit.json`` gets.
        of_each_run: Whether that is a list, one entry a run, which goes to the runs.
        steps: What is counted on the way, where it is not the runs.
    """

    title: str
    attack: Callable[[Audited], Any]
    of_each_run: bool = False
    steps: int = 1


def _membership(audited: Audited) -> list[dict[str, Any]]:
    return [{**asdict(membership(one)), "others_are": one.origin} for one in audited.one_by_one()]


def _lira(audited: Audited) -> list[dict[str, Any]]:
    return [
        {**asdict(lira(one)), "shadows": SHADOWS, "others_are": one.origin} for one in audited.one_by_one()
    ]


def _fairness(audited: Audited) -> list[dict[str, Any]]:
    """Measure every run, and what the others change for the groups of the first."""
    found = [fairness(subject) for subject in audited.one_by_one()]
    changes = [None, *(change(found[0], one) for one in found[1:])]
    return [
        {
            **asdict(one),
            "worst_class": one.worst_class.name,
            "worst_hospital": one.worst_hospital.name,
            "change": None if changed is None else asdict(changed),
        }
        for one, changed in zip(found, changes, strict=True)
    ]


def _model_inversion(audited: Audited) -> list[dict[str, Any]]:
    """Attack the answers that a service of each run's model would give."""
    found: list[dict[str, Any]] = []
    drawn: list[tuple[str, npt.NDArray[np.float64]]] = []
    labels: list[int] = []
    first = audited.subjects[0]
    for subject in audited.one_by_one():
        try:
            ask = stand_in(subject.model, subject.scenario.serving.fraction_bits)
            results = {name: invert_classes(ask, name, subject.members(), subject.others) for name in ATTACKS}
        except (UnsupportedModelError, UsageError) as error:
            found.append({"refused": str(error)})
            continue
        found.append({name: asdict(inverted) for name, (inverted, _) in results.items()})
        own = [one.label for one in results["labels"][0].classes]
        if not drawn:
            first, labels = subject, own
        # A column is a class: a run with other classes has its numbers only.
        if own == labels:
            title = run_privacy(subject.described())
            drawn += [(f"{name}, {title}", pictures) for name, (_, pictures) in results.items()]
    if drawn:
        draw_model_inversion(first.members(), labels, drawn, audited.folder.model_inversion_figure)
    return found


def _inversion(audited: Audited) -> dict[str, Any]:
    """Attack the first hospital's first images, each as if it had been its first step of the first round."""
    first = audited.subjects[0]
    held, name = first.hospitals[0], first.scenario.training.model
    if len(held.labels) < FEWEST:
        return {"refused": f"the first hospital has {len(held.labels)} images, an interval needs {FEWEST}"}
    examples = Examples(held.images[:FEWEST], held.labels[:FEWEST])
    noise = _noise_of(_private_one(audited.subjects), len(held.labels))
    model = models.by_name(name, seed=first.scenario.seed)
    found = invert(model, examples, noise, on_image=lambda: audited.reporter.step("three attacks"))
    draw_inversion(examples.images, found, audited.folder.inversion_figure)
    views = [_view(recovered) for recovered in zip(*found, strict=True)]
    return {"model": name, "images": len(found), "noise": asdict(noise), "views": views}


def _view(recovered: Sequence[Recovered]) -> dict[str, Any]:
    return {
        "name": recovered[0].name,
        "correlation": asdict(Spread.of([one.correlation for one in recovered])),
        "psnr": asdict(Spread.of([one.psnr for one in recovered])),
    }


def _canaries(audited: Audited) -> dict[str, Any]:
    """Plant canaries among the first hospital's images; it then trains alone for as long as in the run."""
    first, privacy = audited.subjects[0], _private_one(audited.subjects).privacy
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


def _mechanism(_: Audited) -> dict[str, Any]:
    found = audit_mechanism(lambda model: make_private(model, noise_multiplier=_MECHANISM_NOISE))
    return {**asdict(found), "broken": found.broken, "noise_multiplier": _MECHANISM_NOISE}


def _private_one(subjects: Sequence[Subject]) -> Scenario:
    """Return the scenario of the first run with differential privacy; without one, the first with some."""
    for subject in subjects:
        if subject.scenario.record_level:
            return subject.scenario
    return subjects[0].scenario.override("privacy.level=record", f"privacy.target_epsilon={DEFAULT_EPSILON}")


def _noise_of(scenario: Scenario, records: int) -> Noise:
    """Return the noise of a hospital with so many records."""
    training, privacy = scenario.training, scenario.privacy
    expected = min(training.batch_size, records)
    steps = training.local_epochs * math.ceil(records / expected) * training.rounds
    multiplier = noise_for(privacy.target_epsilon, privacy.delta, expected / records, steps)
    return Noise(privacy.target_epsilon, multiplier, privacy.l2_norm_clip)


PARTS: Mapping[str, Part] = {
    "membership": Part("losses of members and others", _membership, of_each_run=True),
    "lira": Part("shadow models", _lira, of_each_run=True),
    "fairness": Part("accuracy by class and by hospital", _fairness, of_each_run=True),
    "model_inversion": Part("from answers back to pictures", _model_inversion, of_each_run=True),
    "inversion": Part("from updates back to images", _inversion, steps=FEWEST),
    "canaries": Part("two trainings with canaries", _canaries),
    "mechanism": Part("DP-SGD against its own claim", _mechanism),
}
"""What an audit has, in order."""
