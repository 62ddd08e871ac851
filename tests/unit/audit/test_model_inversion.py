"""Pictures of classes from answers alone, and nothing where answers say nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fedsec.audit import model_inversion
from fedsec.audit.answers import Asked, stand_in
from fedsec.audit.model_inversion import ATTACKS, Known, correlations, invert_classes
from fedsec.audit.subject import Examples, Subject
from fedsec.errors import UsageError
from fedsec.lab.clear import keras_logits
from fedsec.nn.heads import softmax_error
from fedsec.ring.streams import KeyedStream

# Six classes, each two of four bars: the others show what a bar is, and not which two belong together.
PAIRS = np.array(list(itertools.combinations(range(4), 2)))


def hidden(images, reveal):
    """A service that looks at how light the bars are."""
    bars = np.asarray(images).reshape(-1, 4, 16).mean(axis=2)
    sure = np.exp(20 * bars[:, PAIRS].sum(axis=2))
    return sure.argmax(axis=1) if reveal == "label" else sure / sure.sum(axis=1, keepdims=True)


def examples(random: np.random.Generator, count: int = 360) -> Examples:
    labels = np.arange(count) % len(PAIRS)
    images = 0.2 * random.random((count, 4, 16))
    for bar in PAIRS.T:
        images[np.arange(count), bar[labels]] += 0.8 * random.random((count, 1))
    return Examples(images.reshape(-1, 8, 8, 1).astype(np.float32), labels)


@pytest.mark.parametrize("attack", ATTACKS)
def test_pictures_are_those_of_the_class_that_was_asked_for(attack: str) -> None:
    random = np.random.default_rng(1)
    found, pictures = invert_classes(
        hidden, attack, examples(random), examples(random), stream=KeyedStream(bytes(32))
    )
    assert found.mean.low > found.before.high
    assert found.recognised.low > 0.5
    assert found.mean.low <= found.mean.value <= found.mean.high
    assert pictures.shape == (6, 8, 8, 1)
    assert [row.label for row in found.classes] == list(range(6))
    assert found.starts == 6


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_service_that_always_says_the_same_gives_nothing_away(attack: str) -> None:
    """So what is drawn comes from the answers, and not from what the attacker knew before."""

    def silent(images, reveal):
        return np.zeros(len(images), dtype=int) if reveal == "label" else np.full((len(images), 6), 1 / 6)

    random = np.random.default_rng(1)
    found, _ = invert_classes(
        silent, attack, examples(random), examples(random), stream=KeyedStream(bytes(32))
    )
    assert found.recognised.high < 0.5


def test_an_attacker_knows_nothing_of_the_class_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    known_of = Known.of.__func__
    monkeypatch.setattr(
        Known, "of", classmethod(lambda cls, images: given.append(images) or known_of(cls, images))
    )
    random = np.random.default_rng(1)
    others = examples(random)
    invert_classes(hidden, "labels", examples(random), others, stream=KeyedStream(bytes(32)))
    assert len(given) == 6
    for label, images in enumerate(given):
        assert np.array_equal(images, others.images[others.labels != label])


def test_what_is_known_is_drawn_as_it_was() -> None:
    """With normal factors the mean and the variance of pictures are those of the images."""
    random = np.random.default_rng(1)
    flat = random.normal(size=(4000, 12)) @ random.normal(size=(12, 64)) * 0.01 + 0.5
    known = Known.of(flat.reshape(-1, 8, 8, 1))
    drawn = known.drawn(random.normal(size=(4000, len(known.directions))))
    assert drawn.mean(axis=0).ravel() == pytest.approx(flat.mean(axis=0), abs=0.01)
    assert drawn.std(axis=0).ravel() == pytest.approx(flat.std(axis=0), rel=0.1)


def test_correlations_are_numpys() -> None:
    random = np.random.default_rng(1)
    first, second = random.random((3, 4, 4, 1)), random.random((2, 4, 4, 1))
    expected = np.corrcoef(first.reshape(3, -1), second.reshape(2, -1))[:3, 3:]
    assert correlations(first, second) == pytest.approx(expected)
    assert correlations(np.ones((1, 4, 4, 1)), second) == pytest.approx(np.zeros((1, 2)))


def test_training_images_are_compared_with_as_many_others() -> None:
    """Among ten times as many images there would be a nearer one for that alone."""
    random = np.random.default_rng(1)
    members, others = examples(random, 60), examples(random, 2000)
    few = Examples(others.images[:60], others.labels[:60])
    pictures = random.random((6, 8, 8, 1))
    found = model_inversion._judged(3, pictures, members, others)
    assert found.other == model_inversion._judged(3, pictures, members, few).other


def test_fewer_classes_than_an_interval_needs_are_refused() -> None:
    random = np.random.default_rng(1)
    one = examples(random)
    some = Examples(one.images[one.labels < 5], one.labels[one.labels < 5])
    with pytest.raises(UsageError, match="at least 6 classes, got 5"):
        invert_classes(hidden, "labels", some, one)


def test_the_stand_in_answers_as_keras_and_is_rounded_as_users_get_it(subject: Subject) -> None:
    asked = Asked(stand_in(subject.model, 16))
    images = subject.test.images[:200]
    probabilities, labels = asked.probabilities(images), asked.labels(images)
    assert asked.queries == 400
    logits = keras_logits(subject.model, images)
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    assert np.abs(probabilities - expected).max() <= softmax_error(10)
    assert np.array_equal(labels, logits.argmax(axis=1))
    words = np.ldexp(probabilities, 32)
    assert np.array_equal(words, np.rint(words))
