"""Membership inference with shadow models: is this answer that of a model that knew the image, or not?

An image's loss says little by itself: some are easy for every model. So models are trained on random halves
of members and others, and an image's score under the audited model is compared with its scores under the
shadows that had seen it and under those that had not.

Source: Carlini et al. 2022, Membership inference attacks from first principles, algorithm 1, with one
variance for all images, as the paper advises for few shadows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedsec.audit.curve import Attack
from fedsec.audit.losses import losses_of
from fedsec.audit.subject import Examples, Subject
from fedsec.errors import UsageError
from fedsec.learning import models
from fedsec.learning.backend import keras
from fedsec.learning.training import LocalTrainer
from fedsec.ring.streams import fresh_stream

SHADOWS = 8
_MOST = 1500
"""Images of either kind: a shadow trains on as many, and that is what an audit waits for."""
_MOST_EPOCHS = 50
_SMALLEST_LOSS = 1e-30

Scores = npt.NDArray[np.float64]


def lira(subject: Subject, *, shadows: int = SHADOWS, epochs: int | None = None) -> Attack:
    """Return how well a likelihood ratio tells the hospitals' images from others.

    Shadows train in one place and without noise, with the run's network, batch size and learning rate.

    Args:
        subject: The audited run.
        shadows: How many models to train: an even number, at least 2.
        epochs: Of each; by default those of the run, at most 50.

    Raises:
        UsageError: The number of shadows is odd or too small.
    """
    if shadows < 2 or shadows % 2:
        raise UsageError(f"expected an even number of shadows, at least 2, got {shadows}")
    training = subject.scenario.training
    members = _some(subject.members())
    others = _some(subject.others)
    both = Examples(
        np.concatenate([members.images, others.images]), np.concatenate([members.labels, others.labels])
    )
    seen = _halves(shadows, len(both.labels))
    trainer = LocalTrainer(
        models.by_name(training.model),
        training.learning_rate,
        training.batch_size,
        epochs or min(training.rounds * training.local_epochs, _MOST_EPOCHS),
    )
    scores = np.stack([_shadow(trainer, training.model, both, own) for own in seen])
    ratio = _ratio(_scores(subject.model, both), scores, seen)
    return Attack.of(ratio[: len(members.labels)], ratio[len(members.labels) :])


def _some(examples: Examples) -> Examples:
    """Return at most so many of them, drawn at random: the first ones may all be of one hospital."""
    chosen = np.argsort(fresh_stream().words(len(examples.labels)))[:_MOST]
    return Examples(examples.images[chosen], examples.labels[chosen])


def _halves(shadows: int, count: int) -> npt.NDArray[np.bool_]:
    """Return for each shadow and image whether it is trained on: an image by a random half of them."""
    words = fresh_stream().words((shadows, count))
    seen: npt.NDArray[np.bool_] = words.argsort(axis=0).argsort(axis=0) < shadows // 2
    return seen


def _shadow(trainer: LocalTrainer, name: str, both: Examples, own: npt.NDArray[np.bool_]) -> Scores:
    """Train one shadow on its half and return its scores of all."""
    initial = models.by_name(name).get_weights()
    seed = int.from_bytes(fresh_stream().take(4))
    parameters, _ = trainer.fit(initial, both.images[own], both.labels[own], seed=seed)
    trainer.model.set_weights(parameters)
    return _scores(trainer.model, both)


def _scores(model: keras.Model, examples: Examples) -> Scores:
    """Return log(p / (1 - p)) of each label's probability p, which is close to normal over trainings."""
    losses = np.maximum(losses_of(model, examples.images, examples.labels), _SMALLEST_LOSS)
    scores: Scores = -(losses + np.log(-np.expm1(-losses)))
    return scores


def _ratio(audited: Scores, scores: Scores, seen: npt.NDArray[np.bool_]) -> Scores:
    """Return the logarithm of the likelihood ratio of each image, member to other.

    Args:
        audited: Scores under the audited model, shape [N].
        scores: Under the shadows, shape [shadows, N].
        seen: Which shadow trained on which image, same shape; half of each column.
    """
    means, variances = [], []
    for mask in (seen, ~seen):
        mean = np.mean(scores, axis=0, where=mask)
        means.append(mean)
        variances.append(float(np.mean((scores - mean) ** 2, where=mask)) + 1e-12)
    # How good the audited model is on the whole, compared with the shadows, says nothing about one image.
    level = np.median(audited) - np.median(scores)
    inside, outside = (
        -((audited - level - mean) ** 2) / (2 * variance) - 0.5 * np.log(variance)
        for mean, variance in zip(means, variances, strict=True)
    )
    ratio: Scores = inside - outside
    return ratio
