"""For whom a model works less well: accuracy by class and by hospital, the worst of each by name.

Noise and clipping cost small groups most (Bagdasaryan and Shmatikov 2019, Differential privacy has disparate
impact on model accuracy), and a mean over everybody does not show it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from fedsec.audit.curve import CONFIDENCE, Rate
from fedsec.audit.subject import Subject
from fedsec.cluster.keys import numbered
from fedsec.learning.evaluation import predict


@dataclass(frozen=True, slots=True)
class Group:
    """One class or one hospital.

    Attributes:
        name: Of the group.
        accuracy: Share of right answers, with its 95 % interval.
        trained: Training images of it.
    """

    name: str
    accuracy: Rate
    trained: int


@dataclass(frozen=True, slots=True)
class Fairness:
    """Accuracy on the test images, by group.

    Attributes:
        accuracy: On all of them.
        classes: One group a digit.
        hospitals: One a hospital: the test images weighted so that digits are as frequent as in its own
            records. What a patient of that hospital can expect.
    """

    accuracy: Rate
    classes: tuple[Group, ...]
    hospitals: tuple[Group, ...]

    @property
    def worst_class(self) -> Group:
        """The digit with the lowest accuracy."""
        return min(self.classes, key=lambda group: group.accuracy.value)

    @property
    def worst_hospital(self) -> Group:
        """The hospital with the lowest accuracy."""
        return min(self.hospitals, key=lambda group: group.accuracy.value)


@dataclass(frozen=True, slots=True)
class Change:
    """What another training changes for the same groups, in shares of right answers.

    Attributes:
        accuracy: On all test images.
        classes: By digit.
        hospitals: By name.
        worst_class: The digit that loses most.
        worst_hospital: The hospital that loses most.
    """

    accuracy: Rate
    classes: dict[str, Rate]
    hospitals: dict[str, Rate]
    worst_class: str
    worst_hospital: str


def change(before: Fairness, after: Fairness) -> Change | None:
    """Return the differences group by group, after less before; None when the groups are not the same."""
    classes, hospitals = (
        _differences(*groups)
        for groups in ((before.classes, after.classes), (before.hospitals, after.hospitals))
    )
    if classes is None or hospitals is None:
        return None
    return Change(
        difference(before.accuracy, after.accuracy),
        classes,
        hospitals,
        min(classes, key=lambda name: classes[name].value),
        min(hospitals, key=lambda name: hospitals[name].value),
    )


def _differences(before: tuple[Group, ...], after: tuple[Group, ...]) -> dict[str, Rate] | None:
    if [group.name for group in before] != [group.name for group in after]:
        return None
    return {
        one.name: difference(one.accuracy, other.accuracy) for one, other in zip(before, after, strict=True)
    }


def difference(before: Rate, after: Rate) -> Rate:
    """Return after less before, with a 95 % interval made of both.

    Source: Newcombe 1998, Interval estimation for the difference between independent proportions, method 10,
    here with the intervals at hand. Both are measured on the same images, whose mistakes have much in common:
    the interval is rather too wide.
    """
    value = after.value - before.value
    down = np.hypot(after.value - after.low, before.high - before.value)
    up = np.hypot(after.high - after.value, before.value - before.low)
    return Rate(value, value - float(down), value + float(up))


def fairness(subject: Subject) -> Fairness:
    """Measure the run's model on MNIST's test images."""
    right = predict(subject.model, subject.test.images).argmax(axis=-1) == subject.test.labels
    names = numbered("hospital", len(subject.hospitals))
    return by_group(
        right, subject.test.labels, {n: h.labels for n, h in zip(names, subject.hospitals, strict=True)}
    )


def by_group(
    right: npt.NDArray[np.bool_],
    labels: npt.NDArray[np.integer],
    hospitals: dict[str, npt.NDArray[np.integer]],
) -> Fairness:
    """Return accuracies by class and hospital.

    Args:
        right: Whether each test image was answered rightly, shape [N].
        labels: Of the test images, shape [N]; each class that a hospital has is among them.
        hospitals: By name, the labels of its training images.
    """
    classes = int(labels.max()) + 1
    tested, answered = np.bincount(labels, minlength=classes), np.bincount(labels[right], minlength=classes)
    held = {name: np.bincount(own, minlength=classes) for name, own in hospitals.items()}
    trained = np.sum(list(held.values()), axis=0)
    return Fairness(
        Rate.of(int(right.sum()), len(right)),
        tuple(
            Group(str(c), Rate.of(int(answered[c]), int(tested[c])), int(trained[c]))
            for c in range(classes)
            if tested[c]
        ),
        tuple(Group(name, _weighted(answered, tested, own), int(own.sum())) for name, own in held.items()),
    )


def _weighted(
    answered: npt.NDArray[np.integer], tested: npt.NDArray[np.integer], held: npt.NDArray[np.integer]
) -> Rate:
    """Return the accuracy with classes as frequent as in ``held``, with a stratified interval."""
    shares = held / held.sum()
    # A class of which nothing was right, or everything, still varies: one more answer of each kind.
    smoothed = (answered + 1) / (tested + 2)
    deviation = float(np.sqrt(np.sum(shares**2 * smoothed * (1 - smoothed) / np.maximum(tested, 1))))
    value = float(np.sum(shares * answered / np.maximum(tested, 1)))
    half = float(stats.norm.ppf(0.5 + CONFIDENCE / 2)) * deviation
    return Rate(value, max(0.0, value - half), min(1.0, value + half))
