"""A trained network that lies sealed at three parties answers as Keras does, under a plan made before that.

The test itself knows the model: it seals what it has trained. The plan follows from the initial parameters,
ten rounds and the clip of scenarios, so that its bounds are far above what any value reaches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from fedsec.aggregation.sealed import SEALED_FRACTION_BITS, encode_model
from fedsec.learning import data, models
from fedsec.learning.evaluation import predict
from fedsec.learning.export.sealed import Reach, SealedPlan, plan_sealed
from fedsec.learning.training import LocalTrainer
from fedsec.mpc import Party, simulate
from fedsec.nn import encode_input
from fedsec.nn.engine import Mode, make_engine
from fedsec.nn.sealed import gather, rescale
from fedsec.ring import RingArray, decode, fresh_stream
from fedsec.scenario import Scenario
from fedsec.sharing import replicated

ROUNDS = 10
BATCH = 50
STATED_ERROR = 0.06
"""Largest error of a logit of short-conv that is stated for ten rounds with the clip of scenarios."""


@dataclass(frozen=True)
class Trained:
    """What was planned before training, the words after it, and what Keras answers."""

    planned: SealedPlan
    words: RingArray
    model: Any

    def answers(self, images: np.ndarray, mode: Mode) -> np.ndarray:
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
            return np.concatenate([engine.predict(shares[party.id], "logits") for shares in inputs])

        first, second, third = simulate(program).results
        return decode(first + second + third, plan.output_fraction_bits)


TrainAs = Callable[[int, int], Trained]


@pytest.fixture(scope="module")
def train(mnist: data.Mnist) -> TrainAs:
    """Train on so many images for so many epochs."""

    def trained(count: int, epochs: int) -> Trained:
        model = models.by_name("short-conv-logits", seed=2)
        clips = [Scenario().aggregation.clip] * len(model.get_weights())
        planned = plan_sealed(model, Reach(clips=clips, rounds=ROUNDS, fraction_bits=SEALED_FRACTION_BITS))
        images, labels = data.pixels(mnist.train_images[:count]), mnist.train_labels[:count]
        parameters, _ = LocalTrainer(model, epochs=epochs).fit(model.get_weights(), images, labels, seed=0)
        model.set_weights(parameters)
        return Trained(planned, encode_model(parameters, SEALED_FRACTION_BITS), model)

    return trained


def compare(mnist: data.Mnist, trained: Trained, mode: Mode, count: int, most_differences: int) -> None:
    images = data.pixels(mnist.test_images[:count])
    expected = predict(trained.model, images)

    logits = trained.answers(images, mode)

    error = float(np.abs(logits - expected).max())
    differs = logits.argmax(axis=1) != expected.argmax(axis=1)
    accuracy = [
        float(np.mean(found.argmax(axis=1) == mnist.test_labels[:count])) for found in (expected, logits)
    ]
    print(
        f"sealed short-conv, {mode}, {count} images: {int(differs.sum())} label differences, largest logit"
        f" error {error:.5f}, accuracy {accuracy[0]:.4f} in Keras and {accuracy[1]:.4f} sealed"
    )
    assert error <= STATED_ERROR
    assert accuracy[0] > 0.85
    assert int(differs.sum()) <= most_differences


def test_a_sealed_network_answers_as_keras_does(mnist: data.Mnist, train: TrainAs) -> None:
    trained = train(6_000, 1)
    compare(mnist, trained, "dealt", 500, 1)
    compare(mnist, trained, "plain", 50, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "count"), [("dealt", 10_000), ("plain", 2_000)])
def test_many_images_of_a_well_trained_sealed_network(
    mnist: data.Mnist, train: TrainAs, mode: Mode, count: int
) -> None:
    compare(mnist, train(60_000, 2), mode, count, 10)
