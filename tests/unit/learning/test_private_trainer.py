"""A hospital's private rounds: calibrated once for all of them, recorded, and none beyond the target."""

from pathlib import Path

import numpy as np
import pytest

from fedsec.errors import InputError, UsageError
from fedsec.learning.backend import keras
from fedsec.learning.private.trainer import HospitalPrivacy, PrivateTrainer
from fedsec.privacy.accounting import SampledGaussian, epsilon_of
from fedsec.privacy.ledger import DurableLedger, MemoryLedger, together

RANDOM = np.random.default_rng(3)
X = RANDOM.normal(size=(120, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)
WANTED = HospitalPrivacy(target_epsilon=3.0, delta=1e-4, l2_norm_clip=1.0, rounds=4)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)])


@pytest.fixture(scope="module")
def trainer(model: keras.Model) -> PrivateTrainer:
    return PrivateTrainer(model, 0.05, 20, 2, WANTED)


class Unlucky(MemoryLedger):
    """Remembers what it was told before it fails, as a disk that is full would."""

    def charge(self, plan):  # type: ignore[no-untyped-def]
        super().charge(plan)
        raise UsageError("not recorded")


def test_all_rounds_together_stay_within_the_target(trainer: PrivateTrainer, tmp_path: Path) -> None:
    parameters = trainer._model.get_weights()
    spent = []
    for before in range(4):
        # A ledger of its own each time: what counts is on the disk, whoever comes and goes.
        parameters, report = trainer.fit(parameters, X, Y, DurableLedger(tmp_path))
        spent.append(report.epsilon.value)
        (steps,) = report.mechanisms
        assert (steps.steps, steps.sampling_rate) == (12 * (before + 1), 20 / 120)
    assert spent == sorted(spent)
    assert 2.9 < spent[-1] <= 3.0
    with pytest.raises(UsageError, match="budget is spent"):
        trainer.fit(parameters, X, Y, DurableLedger(tmp_path))


def test_rounds_with_other_settings_are_accounted_as_they_were(
    model: keras.Model, trainer: PrivateTrainer
) -> None:
    """The server may send another batch size or more epochs in any round."""
    larger = PrivateTrainer(model, 0.05, 40, 4, WANTED)
    parameters, ledger = model.get_weights(), MemoryLedger()
    for _ in range(2):
        parameters, first = trainer.fit(parameters, X, Y, ledger)
    (small,) = first.mechanisms
    with pytest.raises(UsageError, match=r"another round, of 12 steps at sampling rate 0\.333, would make"):
        larger.fit(parameters, X, Y, ledger)
    cheaper = PrivateTrainer(model, 0.05, 40, 1, WANTED)
    parameters, second = cheaper.fit(parameters, X, Y, ledger)
    noise = small.noise_multiplier
    kinds = (SampledGaussian(noise, 20 / 120, 24), SampledGaussian(noise, 40 / 120, 3))
    assert second.mechanisms == kinds
    assert second.epsilon == epsilon_of(kinds, 1e-4)
    assert second.epsilon.value <= 3.0
    assert together(ledger._spent) == kinds


def test_nothing_is_trained_that_is_not_recorded(trainer: PrivateTrainer) -> None:
    parameters = [values + 1 for values in trainer._model.get_weights()]
    before = trainer._model.get_weights()
    with pytest.raises(UsageError, match="not recorded"):
        trainer.fit(parameters, X, Y, Unlucky())
    assert all(np.array_equal(a, b) for a, b in zip(before, trainer._model.get_weights(), strict=True))


def test_a_round_that_fails_after_it_was_recorded_has_cost_what_it_would_have(
    trainer: PrivateTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, parameters = MemoryLedger(), trainer._model.get_weights()

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patched:
        patched.setattr(trainer._private, "fit", fail)
        with pytest.raises(RuntimeError):
            trainer.fit(parameters, X, Y, ledger)
    _, report = trainer.fit(parameters, X, Y, ledger)
    assert [one.steps for one in report.mechanisms] == [24]


@pytest.mark.parametrize(("batch_size", "epochs"), [(0, 1), (-3, 1), (20, 0)])
def test_settings_that_train_nothing_are_refused(model: keras.Model, batch_size: int, epochs: int) -> None:
    private, ledger = PrivateTrainer(model, 0.05, batch_size, epochs, WANTED), MemoryLedger()
    with pytest.raises(UsageError, match="batches of 1 or more"):
        private.fit(model.get_weights(), X, Y, ledger)
    assert ledger._spent == ()


def test_a_hospital_with_fewer_records_than_a_batch(trainer: PrivateTrainer) -> None:
    _, report = trainer.fit(trainer._model.get_weights(), X[:7], Y[:7], MemoryLedger())
    (steps,) = report.mechanisms
    assert (steps.steps, steps.sampling_rate) == (2, 1.0)


def test_two_trainings_from_the_same_parameters_differ_and_leave_no_trace(trainer: PrivateTrainer) -> None:
    parameters = trainer._model.get_weights()
    first, _ = trainer.fit(parameters, X, Y, MemoryLedger())
    again, _ = trainer.fit(parameters, X, Y, MemoryLedger())
    # Noise has no seed.
    assert any(not np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert trainer._private.optimizer.iterations.numpy() == 12


def test_examples_that_do_not_fit_are_refused(trainer: PrivateTrainer) -> None:
    for images, labels in ((X, Y[:3]), (X[:0], Y[:0])):
        with pytest.raises(InputError):
            trainer.fit(trainer._model.get_weights(), images, labels, MemoryLedger())


def test_a_step_of_sgd_goes_along_the_mean_of_the_clipped_gradients(model: keras.Model) -> None:
    wanted = HospitalPrivacy(target_epsilon=300.0, delta=1e-4, l2_norm_clip=0.5, rounds=1)
    start = model.get_weights()
    trainer = PrivateTrainer(model, 2.0, len(X), 1, wanted, optimizer="sgd")
    trained, report = trainer.fit(start, X, Y, MemoryLedger())

    # By hand: the gradient of a dense layer with softmax is the outer product of input and residual.
    logits = X @ start[0] + start[1]
    residuals = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) - np.eye(2)[Y]
    inputs = np.concatenate([X, np.ones((len(X), 1))], axis=1)
    norms = np.linalg.norm(inputs, axis=1) * np.linalg.norm(residuals, axis=1)
    assert 0 < np.mean(norms > 0.5) < 1
    clipped = inputs.T @ (residuals * np.minimum(1, 0.5 / norms)[:, None])
    moved = np.concatenate([start[0] - trained[0], (start[1] - trained[1])[None]])
    noise = 2.0 * report.mechanisms[0].noise_multiplier * 0.5 / len(X)
    # 14 values beyond 7 standard deviations: less than once in 10^10 runs.
    np.testing.assert_allclose(moved, 2.0 * clipped / len(X), atol=7 * noise + 1e-5)
    # Of an Adam that starts anew all values would move by 2.
    assert 7 * noise < 0.1
