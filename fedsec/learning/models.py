"""Networks that hospitals train, by name."""

from __future__ import annotations

from collections.abc import Sequence

from fedsec.errors import UsageError
from fedsec.learning.backend import keras


def short_conv(filters: Sequence[int] = (10, 32, 64), *, softmax: bool = True) -> keras.Sequential:
    """Return the small convolutional network of the private prediction tutorials, not trained.

    For each number of filters a 3x3 convolution (valid, stride 1), average pooling 2x2 and relu; then
    one dense layer to ten classes. Input [N, 28, 28, 1] in [0, 1].

    Args:
        filters: Filters of each convolution; the tutorials use (10, 32, 64) and (16, 32, 64).
        softmax: Whether the last layer gives probabilities (True) or logits.
    """
    layers = [keras.Input((28, 28, 1))]
    for count in filters:
        layers += [keras.layers.Conv2D(count, 3), keras.layers.AveragePooling2D(2), keras.layers.ReLU()]
    layers += [keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax" if softmax else None)]
    return keras.Sequential(layers, name="short-conv")


_BY_NAME = {"short-conv": short_conv}


def by_name(name: str, *, seed: int | None = None) -> keras.Sequential:
    """Return a fresh network.

    Args:
        name: As in a scenario's ``training.model``.
        seed: Fixes the first parameters; by default Keras draws them.

    Raises:
        UsageError: If there is no network of that name.
    """
    if name not in _BY_NAME:
        raise UsageError(f"no model is called {name!r}; known: {', '.join(sorted(_BY_NAME))}")
    if seed is not None:
        keras.utils.set_random_seed(seed % 2**32)
    return _BY_NAME[name]()
