"""What is audited: the model of a finished run, and who was in its training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsec.errors import StateError, UsageError
from fedsec.lab.participants import examples_of
from fedsec.lab.rundir import RunFolder
from fedsec.learning.backend import keras
from fedsec.learning.data import Mnist, pixels
from fedsec.learning.saved import load_keras
from fedsec.scenario import Scenario

FEWEST_OTHERS = 1000
"""With fewer a false positive rate of 0.1 % is less than one image."""


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Images and their labels.

    Attributes:
        images: Shape [N, 28, 28, 1], float32 in [0, 1].
        labels: Shape [N], digits.
    """

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A finished run, with everything an auditor needs; only a simulation has it in one place.

    Attributes:
        folder: Of the run.
        scenario: What was run.
        model: What came out.
        hospitals: What each of them trained on.
        others: Images that no hospital had.
        origin: Which images these are, in words.
        test: MNIST's 10,000 test images.
        epsilon: The largest that a hospital of the run reported, for its records or as a whole, as the
            scenario's ``privacy.level`` says; None without differential privacy.
    """

    folder: RunFolder
    scenario: Scenario
    model: keras.Model
    hospitals: tuple[Examples, ...]
    others: Examples
    origin: str
    test: Examples
    epsilon: float | None

    @classmethod
    def of(cls, folder: RunFolder, mnist: Mnist) -> Subject:
        """Read a run; its scenario and seed say which hospital had which images.

        Raises:
            UsageError: It has no scenario, nobody has its model, or it is a study; the text says which.
        """
        if not folder.scenario.is_file():
            raise UsageError(
                f"{folder.path} has no {folder.scenario.name}: who was in the training is unknown, so there"
                " is nothing to audit; take the folder of a `fedsec run`"
            )
        if not folder.model.is_file():
            folder.refuse_a_study()
            raise UsageError(
                f"{folder.path} has no {folder.model.name}: a run that did not finish, or one whose model"
                " nobody has; an audit needs the model"
            )
        scenario = Scenario.load(folder.scenario)
        held = examples_of(scenario, mnist)
        hospitals = tuple(Examples(*held(number)) for number in range(scenario.hospitals.count))
        test = Examples(pixels(mnist.test_images), mnist.test_labels)
        others, origin = _others(mnist, scenario.training.examples, test)
        return cls(
            folder, scenario, load_keras(folder.model), hospitals, others, origin, test, _epsilon(folder)
        )

    def described(self) -> dict[str, Any]:
        """Return what ``audit.json`` says of the run before any attack."""
        return {
            "run": str(self.folder.path),
            "scenario": self.scenario.name,
            "epsilon": self.epsilon,
            "level": self.scenario.privacy.level,
        }

    def members(self) -> Examples:
        """Return all that was trained on."""
        return Examples(
            np.concatenate([one.images for one in self.hospitals]),
            np.concatenate([one.labels for one in self.hospitals]),
        )


def _others(mnist: Mnist, trained: int, test: Examples) -> tuple[Examples, str]:
    """Return images that were in no training: of the same writers as the members, where there are any."""
    left = len(mnist.train_labels) - trained
    if left < FEWEST_OTHERS:
        return test, "test images, of other writers than the members"
    last = slice(trained, None)
    return Examples(pixels(mnist.train_images[last]), mnist.train_labels[last]), "training images left out"


def _epsilon(folder: RunFolder) -> float | None:
    try:
        summary = json.loads(folder.summary.read_text(encoding="utf-8"))
        if "whole_hospital" in summary:
            return float(summary["whole_hospital"]["epsilon"])
        return max((float(row["epsilon"]) for row in summary.get("privacy", [])), default=None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(
            f"{folder.summary} is missing or damaged ({type(error).__name__}): the run did not finish"
        ) from error
