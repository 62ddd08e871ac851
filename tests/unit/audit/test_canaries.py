"""Exposure by hand, and a training that knows its canaries by heart unless it is private."""

from __future__ import annotations

import numpy as np
import pytest

from fedsec.audit.canaries import Exposure, Planting, exposures, made
from fedsec.audit.subject import Subject
from fedsec.errors import UsageError
from fedsec.learning import models


def test_exposure_by_hand() -> None:
    """Ranks 1, 1, 2, 4, 8 and 8 of 8: log2(8) minus their logarithms."""
    references = np.arange(1.0, 8.0)
    canaries = np.array([0.5, 0.6, 1.5, 3.5, 7.5, 9.0])
    found = Exposure.of(canaries, references)
    assert found.largest == 3
    assert found.median == pytest.approx((2 + 1) / 2)
    # Six values: only the smallest and the largest hold the median with 95 %.
    assert (found.low, found.high) == (0, 3)


def test_ties_count_against_the_attacker() -> None:
    assert Exposure.of(np.zeros(6), np.zeros(63)).largest == 0


def test_without_training_exposure_is_that_of_guessing() -> None:
    random = np.random.default_rng(1)
    found = Exposure.of(random.random(300), random.random(3000))
    assert found.low < 1 < found.high
    with pytest.raises(UsageError, match="at least 6"):
        Exposure.of(np.zeros(5), np.zeros(3))


def test_canaries_are_blocks_of_fair_coins_and_fresh_each_time() -> None:
    first, second = made(400), made(400)
    assert first.images.shape == (400, 28, 28, 1)
    assert set(np.unique(first.images)) == {0, 1}
    assert np.array_equal(first.images[:, ::4, ::4], first.images[:, 3::4, 3::4])
    assert abs(first.images.mean() - 0.5) < 6 * 0.5 / np.sqrt(400 * 49)
    assert not np.array_equal(first.images, second.images)
    # Each of ten labels about 40 times.
    assert np.bincount(first.labels, minlength=10).min() > 10


def test_a_training_learns_canaries_by_heart_unless_it_is_private(subject: Subject) -> None:
    planting = Planting(records=50, canaries=20, references=300, epochs=25, batch_size=16, epsilon=1.0)
    plain, private = exposures(models.mlp((32,)), subject.hospitals[0], planting)
    assert plain.low > 2
    assert plain.attack.area.low > 0.75
    # The median of 20 guesses is above 3.3 bits (10 % of the references) once in a hundred thousand times.
    assert private.median < 3.3
    assert private.median < plain.median
