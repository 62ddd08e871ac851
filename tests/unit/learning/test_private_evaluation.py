"""Metrics of records that are set apart: how much noise they have, and what they cost."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from fedsec.errors import InputError, UsageError
from fedsec.learning.backend import keras
from fedsec.learning.private import evaluation
from fedsec.learning.private.evaluation import LARGEST_LOSS, evaluate_privately
from fedsec.learning.private.trainer import HospitalPrivacy
from fedsec.privacy.accounting import SampledGaussian, epsilon_of
from fedsec.privacy.ledger import MemoryLedger

WANTED = HospitalPrivacy(target_epsilon=3.0, delta=1e-4, l2_norm_clip=1.0, rounds=4)
RANDOM = np.random.default_rng(8)
X = RANDOM.normal(size=(50, 3)).astype(np.float32)
Y = RANDOM.integers(0, 3, 50)


class Noise:
    """Stands in for the noise: gives what a test says, and keeps the deviations it was asked for."""

    def __init__(self) -> None:
        self.values, self.deviations = np.zeros(2), list[float]()

    def __call__(self, size: int) -> Noise:
        assert size == 2
        return self

    def draw(self, deviation: float) -> npt.NDArray[np.float64]:
        self.deviations.append(deviation)
        return self.values


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> Noise:
    found = Noise()
    monkeypatch.setattr(evaluation, "GaussianNoise", found)
    return found


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, use_bias=False)])


def measured(
    model: keras.Model,
    factor: float,
    images: npt.NDArray[np.float32] = X,
    labels: npt.NDArray[np.integer] = Y,
) -> tuple[float, float]:
    """Metrics of the logits ``factor * x``."""
    weights = [np.float32(factor) * np.eye(3, dtype=np.float32)]
    return evaluate_privately(model, weights, images, labels, privacy=WANTED, ledger=MemoryLedger())


@pytest.mark.parametrize("factor", [1.0, 30.0])
def test_without_the_noise_it_is_the_mean_of_bounded_losses_and_right_answers(
    model: keras.Model, noise: Noise, factor: float
) -> None:
    logits = factor * X.astype(np.float64)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(50), Y]
    loss, accuracy = measured(model, factor)
    assert loss == pytest.approx(np.minimum(losses, LARGEST_LOSS).mean(), rel=1e-5)
    assert accuracy == pytest.approx(np.mean(X.argmax(axis=1) == Y))
    assert (losses.max() > LARGEST_LOSS) == (factor == 30)


def test_noise_is_on_the_sums_and_what_comes_out_is_in_range(model: keras.Model, noise: Noise) -> None:
    loss, accuracy = measured(model, 1.0)
    noise.values = np.array([0.5, -2.0])
    assert measured(model, 1.0) == pytest.approx((loss + 0.5 * LARGEST_LOSS / 50, accuracy - 2 / 50))
    noise.values = np.array([1e9, 1e9])
    assert measured(model, 1.0) == (LARGEST_LOSS, 1.0)
    assert measured(model, math.nan, X, Y)[0] == LARGEST_LOSS


def test_one_record_moves_the_sums_by_no_more_than_the_noise_is_made_for(
    model: keras.Model, noise: Noise
) -> None:
    for factor in (0.1, 3.0, 1e4):
        whole = np.array(measured(model, factor)) * 50 / [LARGEST_LOSS, 1.0]
        for place in range(10):
            kept = np.arange(50) != place
            rest = np.array(measured(model, factor, X[kept], Y[kept])) * 49 / [LARGEST_LOSS, 1.0]
            assert np.linalg.norm(whole - rest) <= math.sqrt(2) + 1e-6


def test_all_evaluations_together_stay_within_the_target(model: keras.Model, noise: Noise) -> None:
    ledger = MemoryLedger()
    for _ in range(4):
        evaluate_privately(model, [np.eye(3)], X, Y, privacy=WANTED, ledger=ledger)
    (kind,) = set(ledger._spent)
    assert (kind.sampling_rate, kind.steps) == (1.0, 1)
    assert 2.9 < epsilon_of([SampledGaussian(kind.noise_multiplier, 1, 4)], 1e-4).value <= 3.0
    assert noise.deviations == [math.sqrt(2) * kind.noise_multiplier] * 4
    with pytest.raises(UsageError, match="budget is spent"):
        evaluate_privately(model, [np.eye(3)], X, Y, privacy=WANTED, ledger=ledger)
    assert len(noise.deviations) == len(ledger._spent) == 4


def test_the_noise_is_real_and_new_each_time(model: keras.Model) -> None:
    """A draw that ends at the range's lower end has probability 0.02: twelve of twelve 1e-20."""
    assert len({measured(model, 1.0)[0] for _ in range(12)}) > 1


def test_what_does_not_fit_costs_nothing(model: keras.Model) -> None:
    ledger = MemoryLedger()
    for images, labels in ((X[:0], Y[:0]), (X, Y[:3])):
        with pytest.raises(InputError):
            evaluate_privately(model, [np.eye(3)], images, labels, privacy=WANTED, ledger=ledger)
    assert ledger._spent == ()
