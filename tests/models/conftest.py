"""Networks trained on real MNIST, each at most once in a session."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsec.learning import data, models
from fedsec.learning.backend import keras
from fedsec.learning.evaluation import predict
from fedsec.learning.training import LocalTrainer

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

LONGER = {name: (20_000, 2) for name in models.NAMES if name.startswith("short-conv")}
"""Images and epochs where it is not 10,000 and one: answers need not be good, only Keras'."""


@dataclass(frozen=True)
class Trained:
    """A trained network and what Keras answers."""

    model: Any
    logits: Any
    """The same network without its final softmax."""

    def expected(self, images: np.ndarray) -> np.ndarray:
        """What Keras computes before the softmax."""
        return predict(self.logits, images)


@pytest.fixture(scope="session")
def mnist() -> data.Mnist:
    return data.load_mnist()


@pytest.fixture(scope="session")
def trained_by_name(mnist: data.Mnist) -> Callable[[str], Trained]:
    @cache
    def train(name: str) -> Trained:
        model = models.by_name(name, seed=2)
        count, epochs = LONGER.get(name, (10_000, 1))
        images, labels = data.pixels(mnist.train_images[:count]), mnist.train_labels[:count]
        parameters, _ = LocalTrainer(model, epochs=epochs).fit(model.get_weights(), images, labels, seed=0)
        model.set_weights(parameters)
        return Trained(model, without_softmax(model))

    return train


def without_softmax(model: Any) -> Any:
    """The same network with a linear last layer."""
    linear = keras.models.clone_model(model)
    linear.set_weights(model.get_weights())
    linear.layers[-1].activation = keras.activations.linear
    return linear


@pytest.fixture(scope="session")
def trained(trained_by_name: Callable[[str], Trained]) -> Any:
    """Short-conv with a final softmax, after two epochs over 20,000 images: 95 to 96 %."""
    return trained_by_name("short-conv").model


@pytest.fixture(scope="session")
def keras_logits(mnist: data.Mnist, trained_by_name: Callable[[str], Trained]) -> np.ndarray:
    """What Keras computes before the softmax, on all test images."""
    return trained_by_name("short-conv").expected(data.pixels(mnist.test_images))
