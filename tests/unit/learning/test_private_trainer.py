"""A hospital's private rounds: calibrated once for all of them, counted, and no round more."""

import numpy as np
import pytest

from fedsec.errors import InputError, UsageError
from fedsec.learning.backend import keras
from fedsec.learning.private.trainer import HospitalPrivacy, PrivateTrainer

RANDOM = np.random.default_rng(3)
X = RANDOM.normal(size=(120, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


@pytest.fixture(scope="module")
def trainer() -> PrivateTrainer:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)])
    wanted = HospitalPrivacy(target_epsilon=3.0, delta=1e-4, l2_norm_clip=1.0, rounds=4)
    return PrivateTrainer(model, 0.05, 20, 2, wanted)


def test_all_rounds_together_stay_within_the_target(trainer: PrivateTrainer) -> None:
    parameters = trainer._model.get_weights()
    spent = []
    for before in range(4):
        parameters, report = trainer.fit(parameters, X, Y, before)
        spent.append(report.epsilon.value)
        (steps,) = report.mechanisms
        assert (steps.steps, steps.sampling_rate) == (12 * (before + 1), 20 / 120)
    assert spent == sorted(spent)
    assert 2.9 < spent[-1] <= 3.0


def test_after_the_last_round_a_hospital_trains_no_more(trainer: PrivateTrainer) -> None:
    with pytest.raises(UsageError, match="budget is spent"):
        trainer.fit(trainer._model.get_weights(), X, Y, 4)


def test_a_hospital_with_fewer_records_than_a_batch(trainer: PrivateTrainer) -> None:
    _, report = trainer.fit(trainer._model.get_weights(), X[:7], Y[:7], 0)
    (steps,) = report.mechanisms
    assert (steps.steps, steps.sampling_rate) == (2, 1.0)


def test_two_trainings_from_the_same_parameters_differ_and_leave_no_trace(trainer: PrivateTrainer) -> None:
    parameters = trainer._model.get_weights()
    first, _ = trainer.fit(parameters, X, Y, 0)
    again, _ = trainer.fit(parameters, X, Y, 0)
    # Noise has no seed.
    assert any(not np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert trainer._private.optimizer.iterations.numpy() == 12


def test_examples_that_do_not_fit_are_refused(trainer: PrivateTrainer) -> None:
    for images, labels in ((X, Y[:3]), (X[:0], Y[:0])):
        with pytest.raises(InputError):
            trainer.fit(trainer._model.get_weights(), images, labels, 0)
