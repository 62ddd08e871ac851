"""A hospital's private training, round after round: noise calibrated once, and never beyond the target."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedsec.errors import UsageError
from fedsec.learning import optimizers
from fedsec.learning.backend import keras
from fedsec.learning.evaluation import Parameters, check_examples, gives_probabilities, set_parameters
from fedsec.learning.private.model import make_private
from fedsec.learning.private.network import examined
from fedsec.privacy.accounting import SampledGaussian, epsilon_of, noise_for, rounded_up
from fedsec.privacy.budget import Budget, PrivacyReport, PrivacySettings
from fedsec.privacy.ledger import Ledger, together


@dataclass(frozen=True, slots=True, kw_only=True)
class HospitalPrivacy:
    """What a hospital asks for its own records, over all federated trainings.

    Attributes:
        target_epsilon: Everything its updates tell about one record, over all rounds.
        delta: At which it holds.
        l2_norm_clip: Bound on the norm of one record's gradient.
        rounds: For how many rounds like the first one the noise is meant.
    """

    target_epsilon: float
    delta: float
    l2_norm_clip: float
    rounds: int


class PrivateTrainer:
    """Trains one Keras model from given parameters with DP-SGD, for any number of hospitals in turn.

    Not thread-safe: the model's variables are the working memory.

    Args:
        model: A built classifier.
        learning_rate: Of the optimizer.
        batch_size: Expected size of a sample; that of a hospital with fewer records is their number.
        epochs: Passes in one ``fit``: N / batch_size steps each.
        privacy: What each hospital asks for.
        optimizer: Its name in ``fedsec.learning.optimizers``.

    Raises:
        UnsupportedModelError: A layer joins examples; the text says what to use instead.
    """

    def __init__(
        self,
        model: keras.Model,
        learning_rate: float,
        batch_size: int,
        epochs: int,
        privacy: HospitalPrivacy,
        *,
        optimizer: str = "adam",
    ) -> None:
        self._model = model
        self._batch_size, self._epochs, self._privacy = batch_size, epochs, privacy
        self._network = examined(model)
        # The noise is each hospital's own; this multiplier is replaced before any training.
        self._private = make_private(model, l2_norm_clip=privacy.l2_norm_clip, noise_multiplier=1.0)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not gives_probabilities(model))
        self._private.compile(optimizers.by_name(optimizer, learning_rate), loss)
        self._private.optimizer.build(model.trainable_variables)
        # Moments start anew in every fit: kept, they would carry one hospital's gradients to the next.
        self._fresh = [variable.numpy() for variable in self._private.optimizer.variables]

    def fit(
        self,
        parameters: Parameters,
        images: npt.NDArray[np.float32],
        labels: npt.NDArray[np.integer],
        ledger: Ledger,
    ) -> tuple[list[npt.NDArray[np.float32]], PrivacyReport]:
        """Train for one round.

        Args:
            parameters: As ``model.get_weights`` gives them; not changed.
            images: Shape [N, *input shape], N at least 1.
            labels: Shape [N], classes as integers.
            ledger: Holds what this hospital has spent; this round is recorded in it before it begins.

        Returns:
            The new parameters, and what this hospital has spent with this round.

        Raises:
            UsageError: A round with these settings would exceed the target: the budget is spent.
            StateError: The ledger cannot be written.
            InputError: If images, labels or parameters do not fit the model.
        """
        check_examples(images, labels)
        *before, mechanism = ledger.charge(functools.partial(self._planned, len(images)))
        settings = PrivacySettings(
            l2_norm_clip=self._privacy.l2_norm_clip,
            noise_multiplier=mechanism.noise_multiplier,
            delta=self._privacy.delta,
        )
        budget = Budget(settings)
        for one in before:
            budget.spend(one, one.steps)
        set_parameters(self._model, parameters)
        for variable, value in zip(self._private.optimizer.variables, self._fresh, strict=True):
            variable.assign(value)
        self._private.begin(budget, self._network)
        expected = min(self._batch_size, len(images))
        self._private.fit(images, labels, batch_size=expected, epochs=self._epochs, verbose=0)
        return self._model.get_weights(), budget.report()

    def _planned(self, records: int, spent: Sequence[SampledGaussian]) -> SampledGaussian:
        """Return the steps of a round to come; the server may send other settings in each round.

        Raises:
            UsageError: With what was spent before they would exceed the target.
        """
        if self._batch_size < 1 or self._epochs < 1:
            text = f"got batches of {self._batch_size} and {self._epochs} epochs"
            raise UsageError(f"a private round has batches of 1 or more and an epoch or more, {text}")
        expected = min(self._batch_size, records)
        return planned(self._privacy, expected / records, self._epochs * math.ceil(records / expected), spent)


def planned(
    wanted: HospitalPrivacy, rate: float, steps: int, spent: Sequence[SampledGaussian]
) -> SampledGaussian:
    """Return a round's steps, with noise that is calibrated for all rounds when the first one begins.

    Args:
        wanted: What the hospital asks for.
        rate: Sampling rate of the steps.
        steps: Of this round.
        spent: What was done before.

    Raises:
        UsageError: With what was spent before they would exceed the target.
    """
    if not spent:
        noise = _noise(wanted.target_epsilon, wanted.delta, rate, steps * wanted.rounds)
        return SampledGaussian(noise, rate, steps)
    one = SampledGaussian(spent[0].noise_multiplier, rate, steps)
    cost = epsilon_of(together([*spent, one]), wanted.delta).value
    if cost > wanted.target_epsilon:
        raise UsageError(
            f"another round, of {steps} steps at sampling rate {rate:.3g}, would make epsilon"
            f" {rounded_up(cost)} in all, and this hospital allows {wanted.target_epsilon:g}: its budget"
            " is spent, it takes part no more in this way"
        )
    return one


@functools.lru_cache(maxsize=1024)
def _noise(target: float, delta: float, rate: float, steps: int) -> float:
    """Return the calibrated noise; hospitals of one size share the seconds that it takes."""
    return noise_for(target, delta, rate, steps)
