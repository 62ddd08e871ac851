"""What a hospital may tell of records that it has set apart: metrics with noise, and an account of their own.

They are other records than those it trains on, so nothing that is told of one group is told of the other,
and each group has the whole target to itself.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

from fedsec.learning.backend import keras
from fedsec.learning.evaluation import Parameters, each_example
from fedsec.learning.private.trainer import HospitalPrivacy, planned
from fedsec.privacy.ledger import Ledger
from fedsec.privacy.sampling import GaussianNoise

LARGEST_LOSS = 10.0
"""A record's loss counts as this much at most: without a bound no noise would be enough for the mean."""


def evaluate_privately(
    model: keras.Model,
    parameters: Parameters,
    images: npt.NDArray[np.float32],
    labels: npt.NDArray[np.integer],
    *,
    privacy: HospitalPrivacy,
    ledger: Ledger,
) -> tuple[float, float]:
    """Return the mean cross-entropy and the share of right answers, both with Gaussian noise.

    One record adds a vector of norm ``sqrt(2)`` at most to the sums of right answers and of losses in units
    of the largest one; how many records there are is public, as in training.

    Args:
        model: A classifier; its variables are set to ``parameters``.
        parameters: As ``model.get_weights`` gives them.
        images: Shape [N, *input shape], N at least 1.
        labels: Shape [N], classes as integers.
        privacy: What the hospital asks for; the noise is meant for as many evaluations as rounds.
        ledger: Holds what evaluations have spent; this one is recorded in it before anything of it is told.

    Raises:
        UsageError: Another evaluation would exceed the target.
        StateError: The ledger cannot be written.
        InputError: If images, labels or parameters do not fit the model.
    """
    losses, right = each_example(model, parameters, images, labels)
    plan = functools.partial(planned, privacy, 1.0, 1)
    deviation = math.sqrt(2) * ledger.charge(plan)[-1].noise_multiplier
    noise = GaussianNoise(2).draw(deviation)
    # Keras clips probabilities, and a loss may still be no number when parameters are none.
    bounded = np.nan_to_num(np.clip(losses, 0.0, LARGEST_LOSS), nan=LARGEST_LOSS).astype(np.float64)
    sums = np.array([float(bounded.sum()) / LARGEST_LOSS, float(np.count_nonzero(right))]) + noise
    loss, accuracy = np.clip(sums / len(labels), 0.0, 1.0)
    return float(loss) * LARGEST_LOSS, float(accuracy)
