"""Accuracies by group, by hand and against scikit-like counting."""

from __future__ import annotations

import numpy as np
import pytest

from fedsec.audit.curve import Rate
from fedsec.audit.fairness import by_group, change, difference, fairness
from fedsec.audit.subject import Subject
from fedsec.learning.evaluation import predict

LABELS = np.array([0] * 100 + [1] * 50)
RIGHT = np.array([True] * 90 + [False] * 10 + [True] * 20 + [False] * 30)


def test_classes_and_hospitals_by_hand() -> None:
    found = by_group(RIGHT, LABELS, {"a": np.array([0, 0, 0, 1]), "b": np.array([1, 1])})

    assert found.accuracy == Rate.of(110, 150)
    assert [group.accuracy for group in found.classes] == [Rate.of(90, 100), Rate.of(20, 50)]
    assert [group.trained for group in found.classes] == [3, 3]
    first, second = found.hospitals
    assert (first.name, first.trained) == ("a", 4)
    assert first.accuracy.value == pytest.approx(0.75 * 0.9 + 0.25 * 0.4)
    assert second.accuracy.value == pytest.approx(0.4)
    assert (found.worst_class.name, found.worst_hospital.name) == ("1", "b")


def test_a_hospitals_interval_covers_as_often_as_it_says() -> None:
    """Of 400 repetitions with known accuracies about 95 % hold the true weighted one."""
    random = np.random.default_rng(1)
    truth, inside = np.array([0.9, 0.5]), 0
    for _ in range(400):
        right = random.random(len(LABELS)) < truth[LABELS]
        rate = by_group(right, LABELS, {"a": np.array([0, 1, 1])}).hospitals[0].accuracy
        inside += rate.low <= 0.9 / 3 + 0.5 * 2 / 3 <= rate.high
    assert 0.91 < inside / 400 < 0.99


def test_a_group_without_mistakes_has_an_interval_too() -> None:
    found = by_group(np.ones(150, dtype=bool), LABELS, {"a": np.array([0])})
    assert found.hospitals[0].accuracy.value == 1
    assert 0.95 < found.hospitals[0].accuracy.low < 1


def test_a_runs_model_is_measured_on_the_test_images(subject: Subject) -> None:
    found = fairness(subject)
    answers = predict(subject.model, subject.test.images).argmax(axis=1)
    assert found.accuracy.value == pytest.approx(np.mean(answers == subject.test.labels))
    assert [group.name for group in found.hospitals] == ["hospital-00", "hospital-01", "hospital-02"]
    eights = subject.test.labels == 8
    assert found.classes[8].accuracy.value == pytest.approx(np.mean(answers[eights] == 8))


def test_what_changes_is_told_group_by_group_with_the_one_that_loses_most() -> None:
    hospitals = {"a": np.array([0, 0, 0, 1]), "b": np.array([1, 1])}
    before = by_group(RIGHT, LABELS, hospitals)
    after = by_group(np.array([True] * 80 + [False] * 20 + [True] * 5 + [False] * 45), LABELS, hospitals)
    found = change(before, after)

    assert found.accuracy.value == pytest.approx(85 / 150 - 110 / 150)
    assert found.classes["0"].value == pytest.approx(-0.1)
    assert found.classes["1"].value == pytest.approx(-0.3)
    assert found.hospitals["b"].value == pytest.approx(-0.3)
    assert (found.worst_class, found.worst_hospital) == ("1", "b")
    assert change(before, by_group(RIGHT, LABELS, {"a": np.array([0])})) is None


def test_the_interval_of_a_difference_is_newcombes() -> None:
    """Newcombe 1998, table II, example (a): 56/70 and 48/80, of Wilson's intervals: 0.0524 to 0.3339."""
    first, second = Rate(48 / 80, 0.4904, 0.7003), Rate(56 / 70, 0.6918, 0.8769)
    found = difference(first, second)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=2e-3)


def test_the_interval_of_a_difference_covers_as_often_as_it_says() -> None:
    """Of 400 pairs of independent measurements at least 93 % hold the true difference."""
    random = np.random.default_rng(1)
    inside = 0
    for _ in range(400):
        found = difference(Rate.of(random.binomial(80, 0.9), 80), Rate.of(random.binomial(80, 0.7), 80))
        inside += found.low <= -0.2 <= found.high
    assert inside >= 372
