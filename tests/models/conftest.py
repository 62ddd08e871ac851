"""One short-conv network trained on real MNIST, shared by the tests of private prediction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsec.learning import data, models
from fedsec.learning.training import LocalTrainer


@pytest.fixture(scope="session")
def mnist() -> data.Mnist:
    return data.load_mnist()


@pytest.fixture(scope="session")
def trained(mnist: data.Mnist) -> Any:
    """A Keras model with a final softmax, after two epochs over 20,000 images (about 3 s): 97 to 98 %."""
    model = models.by_name("short-conv", seed=2)
    chosen = slice(0, 20_000)
    images, labels = data.pixels(mnist.train_images[chosen]), mnist.train_labels[chosen]
    parameters, _ = LocalTrainer(model, epochs=2).fit(model.get_weights(), images, labels, seed=0)
    model.set_weights(parameters)
    return model


@pytest.fixture(scope="session")
def keras_logits(mnist: data.Mnist, trained: Any) -> np.ndarray:
    """What Keras computes before the softmax, on all test images."""
    linear = models.short_conv(softmax=False)
    linear.set_weights(trained.get_weights())
    return linear.predict(data.pixels(mnist.test_images), batch_size=1000, verbose=0)
