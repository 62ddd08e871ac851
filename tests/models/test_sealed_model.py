"""A trained network that lies sealed at three parties answers as Keras does, under a plan made before that.

The test itself knows the model: it seals what it has trained. The plan follows from the initial parameters,
ten rounds and the clip of scenarios, so that its bounds are far above what any value reaches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest

from fedsec.aggregation.sealed.terms import SEALED_FRACTION_BITS, encode_model
from fedsec.errors import UnsupportedModelError
from fedsec.learning import data, models
from fedsec.learning.evaluation import predict
from fedsec.learning.export.sealed import Reach, SealedPlan, plan_sealed
from fedsec.learning.training import LocalTrainer
from fedsec.mpc import Party, simulate
from fedsec.nn import Reveal, encode_input
from fedsec.nn.engine import MODES, Mode, make_engine
from fedsec.nn.sealed import gather, rescale
from fedsec.ring import RingArray, decode, fresh_stream
from fedsec.scenario import Scenario
from fedsec.sharing import replicated

ROUNDS = 10
BATCH = 50
STATED_ERRORS = {True: 0.02, False: 0.06}
"""Largest error of a logit of short-conv that is stated for ten rounds with the clip of scenarios, with and
without a largest activation."""


@dataclass(frozen=True)
class Trained:
    """What was planned before training, the words after it, and what Keras answers."""

    planned: SealedPlan
    cut: bool
    words: RingArray
    model: Any

    def answers(self, images: np.ndarray, mode: Mode, reveal: Reveal = "logits") -> np.ndarray:
        """Seal the words, run the three parties batch by batch, join their answers."""
        plan, sources = self.planned.plan, self.planned.sources
        states = replicated.share(self.words, fresh_stream(), SEALED_FRACTION_BITS)
        batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        inputs = [
            replicated.share(encode_input(plan, batch), fresh_stream(), plan.fraction_bits)
            for batch in batches
        ]

        def program(party: Party) -> RingArray:
            weights = rescale(party, plan, sources, gather(plan, sources, states[party.id]))
            engine = make_engine(mode, party, plan, weights)
            return np.concatenate([engine.predict(shares[party.id], reveal) for shares in inputs])

        first, second, third = simulate(program).results
        return decode(first + second + third, plan.with_head(reveal).output_fraction_bits)


TrainAs = Callable[[int, int, bool], Trained]


@pytest.fixture(scope="module")
def train(mnist: data.Mnist) -> TrainAs:
    """Train on so many images for so many epochs; plan with or without a largest activation."""

    @cache
    def trained(count: int, epochs: int, cut: bool) -> Trained:
        model = models.by_name("short-conv-logits", seed=2)
        clips = [Scenario().aggregation.clip] * len(model.get_weights())
        planned = plan_sealed(
            model,
            Reach(clips=clips, rounds=ROUNDS, fraction_bits=SEALED_FRACTION_BITS),
            largest_activation=Scenario().serving.largest_activation if cut else None,
        )
        images, labels = data.pixels(mnist.train_images[:count]), mnist.train_labels[:count]
        parameters, _ = LocalTrainer(model, epochs=epochs).fit(model.get_weights(), images, labels, seed=0)
        model.set_weights(parameters)
        return Trained(planned, cut, encode_model(parameters, SEALED_FRACTION_BITS), model)

    return trained


def compare(mnist: data.Mnist, trained: Trained, mode: Mode, count: int, most_differences: int = 1) -> None:
    images = data.pixels(mnist.test_images[:count])
    expected = predict(trained.model, images)

    logits = trained.answers(images, mode)

    error = float(np.abs(logits - expected).max())
    differs = logits.argmax(axis=1) != expected.argmax(axis=1)
    accuracy = [
        float(np.mean(found.argmax(axis=1) == mnist.test_labels[:count])) for found in (expected, logits)
    ]
    print(
        f"sealed short-conv{', cut' * trained.cut}, {mode}, {count} images: {int(differs.sum())} label"
        f" differences, largest logit error {error:.5f}, accuracy {accuracy[0]:.4f} in Keras and"
        f" {accuracy[1]:.4f} sealed"
    )
    assert error <= STATED_ERRORS[trained.cut]
    assert accuracy[0] > 0.85
    assert int(differs.sum()) <= most_differences


@pytest.mark.parametrize("cut", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["cut", "not cut"])
def test_a_sealed_network_answers_as_keras_does(mnist: data.Mnist, train: TrainAs, cut: bool) -> None:
    trained = train(6_000, 1, cut)
    compare(mnist, trained, "dealt", 500)
    compare(mnist, trained, "plain", 20)


@pytest.mark.parametrize("mode", MODES)
def test_labels_of_a_sealed_network_are_keras(mnist: data.Mnist, train: TrainAs, mode: Mode) -> None:
    trained = train(6_000, 1, True)
    images = data.pixels(mnist.test_images[:50])
    expected = predict(trained.model, images)

    labels = trained.answers(images, mode, "label")[:, 0].astype(int)
    top3 = trained.answers(images[:20], mode, "top3").astype(int)
    probabilities = trained.answers(images[:20], mode, "probabilities")

    chosen = np.take_along_axis(expected, labels[:, None], axis=1)[:, 0]
    assert (expected.max(axis=1) - chosen).max() <= 2 * STATED_ERRORS[True]
    np.testing.assert_allclose(
        np.take_along_axis(expected[:20], top3, axis=1), -np.sort(-expected[:20], axis=1)[:, :3],
        atol=2 * STATED_ERRORS[True],
    )  # fmt: skip
    exponentials = np.exp(expected[:20] - expected[:20].max(axis=1, keepdims=True))
    np.testing.assert_allclose(
        probabilities, exponentials / exponentials.sum(axis=1, keepdims=True), atol=0.05
    )


def test_without_a_largest_activation_labels_are_refused_with_the_reason(train: TrainAs) -> None:
    with pytest.raises(UnsupportedModelError, match=r"logits can be as large as 4\.\d+e\+12"):
        train(100, 1, False).planned.plan.with_head("label")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "count", "cut"), [("dealt", 10_000, True), ("plain", 2_000, True), ("dealt", 10_000, False)]
)
def test_many_images_of_a_well_trained_sealed_network(
    mnist: data.Mnist, train: TrainAs, mode: Mode, count: int, cut: bool
) -> None:
    compare(mnist, train(60_000, 2, cut), mode, count, 10)
