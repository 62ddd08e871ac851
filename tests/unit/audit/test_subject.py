"""What is read from a run's folder: who was in the training, and who was not."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fedsec.audit.figures import run_privacy
from fedsec.audit.subject import Subject
from fedsec.errors import StateError, UsageError
from fedsec.lab.rundir import RunFolder
from fedsec.learning.data import Mnist, pixels
from fedsec.scenario import Scenario


@pytest.fixture
def copy(folder: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(folder.path, tmp_path / "copy")))


def test_members_are_the_hospitals_images_and_others_are_not(subject: Subject, mnist: Mnist) -> None:
    members = subject.members()
    assert [len(one.labels) for one in subject.hospitals] == [50, 50, 50]
    assert sorted(members.images.sum((1, 2, 3))) == sorted(pixels(mnist.train_images[:150]).sum((1, 2, 3)))
    assert np.array_equal(subject.others.images, pixels(mnist.train_images[150:]))
    assert subject.origin == "training images left out"
    assert subject.epsilon is None


def test_without_images_left_out_the_test_images_are_the_others(folder: RunFolder, mnist: Mnist) -> None:
    few = dataclasses.replace(
        mnist, train_images=mnist.train_images[:1149], train_labels=mnist.train_labels[:1149]
    )
    subject = Subject.of(folder, few)
    assert np.array_equal(subject.others.images, pixels(mnist.test_images))
    assert "test images" in subject.origin


def test_the_largest_epsilon_of_a_hospital_counts(copy: RunFolder, mnist: Mnist) -> None:
    copy.summary.write_text(json.dumps({"privacy": [{"epsilon": 1.5}, {"epsilon": 2.5}]}))
    assert Subject.of(copy, mnist).epsilon == 2.5


def test_the_epsilon_of_whole_hospitals_is_called_so(copy: RunFolder, mnist: Mnist) -> None:
    scenario = Scenario.load(copy.scenario).override("privacy.level=hospital", "privacy.target_epsilon=8")
    copy.scenario.write_text(scenario.to_toml())
    copy.summary.write_text(json.dumps({"whole_hospital": {"epsilon": 7.25}}))
    subject = Subject.of(copy, mnist)
    assert subject.epsilon == 7.25
    assert run_privacy(subject.described()) == "epsilon 7.25 of a whole hospital"


@pytest.mark.parametrize("missing", ["scenario", "model"])
def test_what_an_audit_needs_is_named(copy: RunFolder, mnist: Mnist, missing: str) -> None:
    path: Path = getattr(copy, missing)
    path.unlink()
    with pytest.raises(UsageError, match=path.name):
        Subject.of(copy, mnist)


def test_of_a_study_one_of_its_runs_is_asked_for(copy: RunFolder, mnist: Mnist) -> None:
    copy.model.unlink()
    (copy.path / "runs").mkdir()
    with pytest.raises(UsageError, match=f"folder of a study: take one of its runs, in {copy.path}/runs"):
        Subject.of(copy, mnist)


@pytest.mark.parametrize("text", [None, "{", '{"privacy": [{}]}', '{"whole_hospital": []}', "[]"])
def test_a_damaged_summary_is_refused(copy: RunFolder, mnist: Mnist, text: str | None) -> None:
    if text is None:
        copy.summary.unlink()
    else:
        copy.summary.write_text(text)
    with pytest.raises(StateError, match=r"summary\.json"):
        Subject.of(copy, mnist)
