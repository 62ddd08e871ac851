"""A hospital's private training, round after round: noise calibrated once for all of them, then kept to."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedsec.errors import InputError, UsageError
from fedsec.learning.backend import keras
from fedsec.learning.evaluation import Parameters, gives_probabilities, set_parameters
from fedsec.learning.private.model import make_private
from fedsec.learning.private.network import examined
from fedsec.privacy.accounting import SampledGaussian, noise_for
from fedsec.privacy.budget import Budget, PrivacyReport, PrivacySettings


@dataclass(frozen=True, slots=True, kw_only=True)
class HospitalPrivacy:
    """What a hospital asks for its own records, over a whole federated training.

    Attributes:
        target_epsilon: Everything its updates tell about one record, over all rounds.
        delta: At which it holds.
        l2_norm_clip: Bound on the norm of one record's gradient.
        rounds: For how many rounds the noise is meant; a hospital trains in no more.
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
        learning_rate: Of Adam.
        batch_size: Expected size of a sample; that of a hospital with fewer records is their number.
        epochs: Passes in one ``fit``: N / batch_size steps each.
        privacy: What each hospital asks for.

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
    ) -> None:
        self._model = model
        self._batch_size, self._epochs, self._privacy = batch_size, epochs, privacy
        self._network = examined(model)
        # The noise is each hospital's own; this multiplier is replaced before any training.
        self._private = make_private(model, l2_norm_clip=privacy.l2_norm_clip, noise_multiplier=1.0)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not gives_probabilities(model))
        self._private.compile(keras.optimizers.Adam(learning_rate), loss)
        self._private.optimizer.build(model.trainable_variables)
        # Moments start anew in every fit: kept, they would carry one hospital's gradients to the next.
        self._fresh = [variable.numpy() for variable in self._private.optimizer.variables]

    def fit(
        self,
        parameters: Parameters,
        images: npt.NDArray[np.float32],
        labels: npt.NDArray[np.integer],
        rounds_before: int,
    ) -> tuple[list[npt.NDArray[np.float32]], PrivacyReport]:
        """Train for one round.

        Args:
            parameters: As ``model.get_weights`` gives them; not changed.
            images: Shape [N, *input shape], N at least 1.
            labels: Shape [N], classes as integers.
            rounds_before: In how many rounds this hospital has trained already.

        Returns:
            The new parameters, and what this hospital has spent with this round.

        Raises:
            UsageError: The rounds for which the noise was meant are over: the budget is spent.
            InputError: If images, labels or parameters do not fit the model.
        """
        if len(images) == 0 or len(images) != len(labels):
            raise InputError(
                f"{len(images)} images and {len(labels)} labels: expected the same number, at least one"
            )
        if rounds_before >= self._privacy.rounds:
            raise UsageError(
                f"epsilon {self._privacy.target_epsilon:g} was meant for {self._privacy.rounds} rounds, which"
                " are over: this hospital's budget is spent, it trains no more"
            )
        expected = min(self._batch_size, len(images))
        steps = self._epochs * math.ceil(len(images) / expected)
        mechanism = self._mechanism(expected / len(images), steps)
        settings = PrivacySettings(
            l2_norm_clip=self._privacy.l2_norm_clip,
            noise_multiplier=mechanism.noise_multiplier,
            delta=self._privacy.delta,
        )
        budget = Budget(settings)
        budget.spend(mechanism, steps * rounds_before)
        set_parameters(self._model, parameters)
        for variable, value in zip(self._private.optimizer.variables, self._fresh, strict=True):
            variable.assign(value)
        self._private.begin(budget, self._network)
        self._private.fit(images, labels, batch_size=expected, epochs=self._epochs, verbose=0)
        return self._model.get_weights(), budget.report()

    def _mechanism(self, rate: float, steps: int) -> SampledGaussian:
        wanted = self._privacy
        return SampledGaussian(
            _noise(wanted.target_epsilon, wanted.delta, rate, steps * wanted.rounds), rate, 1
        )


@functools.lru_cache(maxsize=1024)
def _noise(target: float, delta: float, rate: float, steps: int) -> float:
    """Return the calibrated noise; hospitals of one size share the seconds that it takes."""
    return noise_for(target, delta, rate, steps)
