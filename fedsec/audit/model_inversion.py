"""From answers back to pictures: what a service lets its users find out about the images of a class.

The attacker may ask the service, and knows images of the other classes from somewhere else: that is how
strokes look, and nothing of the class. Two attacks: with the probabilities of all classes, and with labels
only.

Sources: Fredrikson et al. 2015, Model inversion attacks that exploit confidence information and basic
countermeasures (descent on the confidence, with numeric gradients where there is a service only); Kahla et
al. 2022, Label-only model inversion attacks via boundary repulsion (the setting: labels, and what is known
from other classes).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import linalg

from fedsec.audit.answers import Ask, Asked, Images
from fedsec.audit.curve import FEWEST, Rate, Spread
from fedsec.audit.subject import Examples
from fedsec.errors import UsageError
from fedsec.privacy.sampling import GaussianNoise
from fedsec.ring.streams import KeyedStream, fresh_stream

STARTS = 6
"""Pictures of a class: the fewest whose smallest and largest are a 95 % interval of the median."""
DIRECTIONS = 40
"""Of strokes that the attacker combines; more need more queries, fewer cannot draw a digit."""
_MOST_KNOWN = 4000
_STEPS, _PROBES = 30, 16
_WIDTH, _RATE, _PRIOR = 0.3, 0.5, 0.4
_SMALLEST = 2.0**-16
_WALKERS, _WALK, _SETTLING, _STRIDE = 16, 40, 8, 0.5
_DRAWS, _MOST_DRAWS = 128, 20

Floats = npt.NDArray[np.float64]
Draw = Callable[..., Floats]
"""Standard normal values of a shape."""


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What the attacker knows: images of other classes, as a mean and directions around it.

    Attributes:
        mean: Shape [pixels].
        directions: Shape [DIRECTIONS, pixels]; a combination with standard normal factors looks like them.
        shape: Of one image.
    """

    mean: Floats
    directions: Floats
    shape: tuple[int, ...]

    @classmethod
    def of(cls, images: Images) -> Known:
        """Return the principal components of images."""
        flat = images[:_MOST_KNOWN].reshape(min(len(images), _MOST_KNOWN), -1).astype(np.float64)
        mean = flat.mean(axis=0)
        pixels = flat.shape[1]
        values, vectors = linalg.eigh(
            np.cov(flat, rowvar=False), subset_by_index=(pixels - DIRECTIONS, pixels - 1)
        )
        return cls(mean, (vectors * np.sqrt(np.maximum(values, 0))).T, images.shape[1:])

    def drawn(self, factors: Floats) -> Floats:
        """Return pictures, shape [N, *shape], values in [0, 1], from factors of shape [N, DIRECTIONS]."""
        pictures: Floats = np.clip(self.mean + factors @ self.directions, 0, 1)
        return pictures.reshape(-1, *self.shape)


@dataclass(frozen=True, slots=True)
class ClassInverted:
    """One class; correlations, as medians over all starts.

    Attributes:
        label: The class.
        mean: With the mean of its training images.
        member: With the training image of it that is most alike.
        other: With the most alike of as many images of it that nobody trained on.
    """

    label: int
    mean: Spread
    member: Spread
    other: Spread


@dataclass(frozen=True, slots=True)
class Inverted:
    """What came of one attack on all classes; medians over classes, with 95 % intervals.

    Attributes:
        mean: Correlation of a picture with the mean of the class's training images.
        before: The same of what the attacker would have drawn without asking.
        member: Correlation with the training image of the class that is most alike.
        other: With the most alike of as many images that nobody trained on.
        nearer: How much nearer members are, class by class. With 0 inside the interval the pictures show the
            class and nobody in particular.
        recognised: How many pictures are most like the mean of their own class; guessing gives a tenth.
        queries: Images asked about for one picture, on average.
        starts: Pictures of each class.
        classes: One row a class.
    """

    mean: Spread
    before: Spread
    member: Spread
    other: Spread
    nearer: Spread
    recognised: Rate
    queries: float
    starts: int
    classes: tuple[ClassInverted, ...]


def by_probabilities(asked: Asked, label: int, known: Known, draw: Draw, starts: int) -> Floats:
    """Climb to where the service is sure of a class and strokes are still likely: shape [starts, *image].

    The logarithm of the class's probability, less what unlikely strokes cost, rises along gradients that
    are estimated from pairs of queries on either side.
    """
    factors = draw(starts, DIRECTIONS)
    first, second = np.zeros_like(factors), np.zeros_like(factors)
    for step in range(_STEPS):
        sides = draw(starts, _PROBES, DIRECTIONS)
        both = factors[:, np.newaxis] + _WIDTH * np.concatenate([sides, -sides], axis=1)
        pictures = known.drawn(both.reshape(-1, DIRECTIONS))
        sure = np.log(np.maximum(asked.probabilities(pictures)[:, label], _SMALLEST))
        rises = sure.reshape(starts, 2, _PROBES)
        slope = ((rises[:, 0] - rises[:, 1])[..., np.newaxis] * sides).mean(axis=1) / (2 * _WIDTH)
        slope -= _PRIOR * factors
        # Adam (Kingma and Ba 2015), with steps that get smaller.
        first, second = 0.9 * first + 0.1 * slope, 0.99 * second + 0.01 * slope**2
        scale = np.sqrt(second / (1 - 0.99 ** (step + 1))) + 1e-8
        factors += _RATE * (1 - step / _STEPS) * first / (1 - 0.9 ** (step + 1)) / scale
    return known.drawn(factors)


def by_labels(asked: Asked, label: int, known: Known, draw: Draw, starts: int) -> Floats:
    """Walk about within what the service gives a label, and draw the mean of the way: shape [starts, *image].

    Steps keep to strokes that are likely (Cotter et al. 2013, MCMC methods for functions, the preconditioned
    Crank-Nicolson proposal) and are taken when the label stays. A class that no drawing hits is left as
    the mean of what was known.
    """
    return np.concatenate([_walked(asked, label, known, draw) for _ in range(starts)])


def _walked(asked: Asked, label: int, known: Known, draw: Draw) -> Floats:
    hits: Floats = np.zeros((0, DIRECTIONS))
    for _ in range(_MOST_DRAWS):
        drawn = draw(_DRAWS, DIRECTIONS)
        hits = np.concatenate([hits, drawn[asked.labels(known.drawn(drawn)) == label]])
        if len(hits) >= _WALKERS:
            break
    if not len(hits):
        return known.drawn(np.zeros((1, DIRECTIONS)))
    walkers = np.resize(hits, (_WALKERS, DIRECTIONS))
    total = np.zeros(known.shape)
    for step in range(_WALK):
        moved = np.sqrt(1 - _STRIDE**2) * walkers + _STRIDE * draw(*walkers.shape)
        stays = asked.labels(known.drawn(moved)) == label
        walkers[stays] = moved[stays]
        if step >= _SETTLING:
            total += known.drawn(walkers).mean(axis=0)
    return total[np.newaxis] / (_WALK - _SETTLING)


ATTACKS = {"probabilities": by_probabilities, "labels": by_labels}
"""By what the service reveals."""


def invert_classes(
    ask: Ask,
    attack: str,
    members: Examples,
    others: Examples,
    *,
    starts: int = STARTS,
    stream: KeyedStream | None = None,
) -> tuple[Inverted, Floats]:
    """Attack every class of which there are training images and others.

    Args:
        ask: The service.
        attack: One of ``ATTACKS``.
        members: All that was trained on; for judging only.
        others: Images that nobody trained on: those of other classes are what the attacker knows, those of
            the class are for judging.
        starts: Pictures of each class, at least 6.
        stream: Of the attacker's choices; a fresh one by default.

    Returns:
        What was reached, and the first picture of each class, shape [classes, *image].

    Raises:
        UsageError: There are fewer than six such classes, or starts: no interval can be given.
    """
    draw, asked = _normal(stream or fresh_stream()), Asked(ask)
    labels = np.intersect1d(members.labels, others.labels)
    if len(labels) < FEWEST:
        raise UsageError(f"expected images of at least {FEWEST} classes, got {len(labels)}: no intervals")
    guessed, pictures = [], []
    for label in labels:
        known = Known.of(others.images[others.labels != label])
        guessed.append(known.drawn(draw(starts, DIRECTIONS)))
        pictures.append(ATTACKS[attack](asked, int(label), known, draw, starts))
    means = np.stack([members.images[members.labels == label].mean(axis=0) for label in labels])
    alike = [correlations(own, means) for own in pictures]
    before = [correlations(own, means)[:, place] for place, own in enumerate(guessed)]
    own_class = [row.argmax() == place for place, rows in enumerate(alike) for row in rows]
    classes = [_judged(int(label), own, members, others) for label, own in zip(labels, pictures, strict=True)]
    inverted = Inverted(
        mean=Spread.of([one.mean.value for one in classes]),
        before=Spread.of([float(np.median(one)) for one in before]),
        member=Spread.of([one.member.value for one in classes]),
        other=Spread.of([one.other.value for one in classes]),
        nearer=Spread.of([one.member.value - one.other.value for one in classes]),
        recognised=Rate.of(int(np.sum(own_class)), len(own_class)),
        queries=asked.queries / len(own_class),
        starts=starts,
        classes=tuple(classes),
    )
    return inverted, np.stack([own[0] for own in pictures])


def _normal(stream: KeyedStream) -> Draw:
    return lambda *shape: GaussianNoise(math.prod(shape), stream).draw(1.0).reshape(shape)


def _judged(label: int, pictures: Floats, members: Examples, others: Examples) -> ClassInverted:
    own, unseen = (one.images[one.labels == label] for one in (members, others))
    # Among more images there is a nearer one: as many of either.
    count = min(len(own), len(unseen))
    alike = [correlations(pictures, some[:count]).max(axis=1) for some in (own, unseen)]
    mean = correlations(pictures, own.mean(axis=0, keepdims=True))[:, 0]
    return ClassInverted(label, *(Spread.of(values) for values in (mean, *alike)))


def correlations(pictures: Images, others: Images) -> Floats:
    """Return the correlation of each picture with each of others, shape [pictures, others]."""
    first, second = (_centred(some) for some in (pictures, others))
    products: Floats = first @ second.T
    return products


def _centred(images: Images) -> Floats:
    flat = images.reshape(len(images), -1).astype(np.float64)
    flat = flat - flat.mean(axis=1, keepdims=True)
    # An image of one grey has no correlation with anything.
    scaled: Floats = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    return scaled
