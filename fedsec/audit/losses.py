"""How surprised a model is by examples: what most attacks look at."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedsec.learning.backend import keras
from fedsec.learning.evaluation import gives_probabilities, predict

Losses = npt.NDArray[np.float64]


def losses_of(model: keras.Model, images: npt.NDArray[np.float32], labels: npt.NDArray[np.integer]) -> Losses:
    """Return the cross-entropy of each example, shape [N].

    A confident model's probability of the label is 1 in float32 for half of all examples. What is left for
    the other labels is not rounded away, so the loss is computed from that: an attacker who compares losses
    does not see them tied.

    Args:
        model: A classifier that gives probabilities or logits.
        images: Shape [N, *input shape].
        labels: Shape [N], classes as integers.
    """
    answers = predict(model, images).astype(np.float64)
    rows = np.arange(len(labels))
    if gives_probabilities(model):
        smallest = float(np.finfo(np.float32).tiny)
        own = np.maximum(answers[rows, labels], smallest)
        answers[rows, labels] = 0
        rest: Losses = answers.sum(axis=1) / own
        return np.log1p(rest)
    above = answers - answers[rows, labels][:, np.newaxis]
    above[rows, labels] = -np.inf
    losses: Losses = np.logaddexp(0.0, np.logaddexp.reduce(above, axis=1))
    return losses
