"""The loss tells who was in a training that learned by heart, and nothing about who was not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fedsec.audit.losses import losses_of
from fedsec.audit.membership import membership
from fedsec.audit.subject import Examples, Subject
from fedsec.learning import models
from fedsec.learning.backend import keras


@pytest.mark.parametrize("name", ["mlp", "short-conv-logits"])
def test_losses_are_the_cross_entropy_of_keras(name: str, subject: Subject) -> None:
    model = models.by_name(name, seed=1)
    images, labels = subject.test.images[:50], subject.test.labels[:50]
    expected = keras.losses.sparse_categorical_crossentropy(
        labels, model(images), from_logits=name.endswith("logits")
    )
    assert losses_of(model, images, labels) == pytest.approx(np.asarray(expected), rel=1e-4)


def test_losses_of_sure_answers_are_not_tied() -> None:
    """The probability of class 0 is 1 in float32; the loss is still -log of it: here exp(-z)."""
    logits = np.array([[30.0, 0.0], [40.0, 0.0]], dtype=np.float32)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
    expected = np.exp(-logits[:, 0].astype(np.float64))
    assert losses_of(model, logits, np.zeros(2, np.int64)) == pytest.approx(expected, rel=1e-3)
    # And one that is wrong for sure: infinite in float32.
    assert np.isfinite(losses_of(model, np.array([[500.0, 0.0]], np.float32), np.ones(1, np.int64))).all()


def test_what_was_learned_by_heart_is_told_apart(subject: Subject) -> None:
    attack = membership(subject)
    assert (attack.members, attack.others) == (150, 1200)
    assert attack.area.low > 0.6


def test_images_that_were_in_no_training_are_not(subject: Subject) -> None:
    half = len(subject.others.labels) // 2
    parts = [
        Examples(subject.others.images[cut], subject.others.labels[cut])
        for cut in (slice(half), slice(half, None))
    ]
    attack = membership(dataclasses.replace(subject, hospitals=(parts[0],), others=parts[1]))
    assert attack.area.low - 0.03 < 0.5 < attack.area.high + 0.03
