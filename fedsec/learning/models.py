"""Networks that hospitals train, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsec.errors import UsageError
from fedsec.learning.backend import keras

_DIGITS = (28, 28, 1)
"""Of one MNIST image; every network here takes it and tells ten classes apart."""


def short_conv(filters: Sequence[int] = (10, 32, 64), *, softmax: bool = True) -> keras.Sequential:
    """Return the small convolutional network of the private prediction tutorials, not trained.

    For each number of filters a 3x3 convolution (valid, stride 1), average pooling 2x2 and relu; then
    one dense layer to ten classes. Input [N, 28, 28, 1] in [0, 1].

    Args:
        filters: Filters of each convolution; the tutorials use (10, 32, 64) and (16, 32, 64).
        softmax: Whether the last layer gives probabilities (True) or logits.
    """
    layers = [keras.Input(_DIGITS)]
    for count in filters:
        layers += [keras.layers.Conv2D(count, 3), keras.layers.AveragePooling2D(2), keras.layers.ReLU()]
    layers += [keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax" if softmax else None)]
    return keras.Sequential(layers, name="short-conv")


def tf_privacy() -> keras.Sequential:
    """Return the convolutional network of TensorFlow Privacy's MNIST tutorial, not trained; it gives logits.

    Large kernels with stride 2, and max pooling whose windows overlap.
    """
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input(_DIGITS),
            layers.Conv2D(16, 8, strides=2, padding="same", activation="relu"),
            layers.MaxPooling2D(2, 1),
            layers.Conv2D(32, 4, strides=2, activation="relu"),
            layers.MaxPooling2D(2, 1),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(10),
        ],
        name="tf-privacy",
    )


def gabor() -> keras.Sequential:
    """Return fixed oriented filters and one dense layer that learns, for private training; it gives logits.

    Nothing before the last layer is trained, so no noise of private training goes into it, and the last has
    5,770 parameters. Strokes and edges of each direction are counted in coarse places; a tanh keeps long ones
    from outweighing short ones, and what all directions have in common is taken out, as it tells digits apart
    least and would take up most of a clipped gradient.

    Source: Tramer & Boneh 2021, Differentially private learning needs better features (or much more data),
    for the idea; the filters are those of Gabor 1946.
    """
    layers = keras.layers
    filters = _oriented(7, directions=4, wavelength=6.0, width=2.0)
    count = filters.shape[-1]
    strokes = layers.Conv2D(count, filters.shape[:2], padding="same", activation="relu", trainable=False)
    centred = layers.Conv2D(count, 1, use_bias=False, trainable=False)
    model = keras.Sequential(
        [
            keras.Input(_DIGITS),
            strokes,
            layers.AveragePooling2D(6, 4),
            layers.Activation("tanh"),
            centred,
            layers.Flatten(),
            layers.Dense(10),
        ],
        name="gabor",
    )
    gain, threshold = 12.0, 0.2
    strokes.set_weights([gain * filters, np.full(count, -gain * threshold)])
    centred.set_weights([(np.eye(count) - 1 / count)[np.newaxis, np.newaxis] / 2])
    return model


def _oriented(size: int, *, directions: int, wavelength: float, width: float) -> npt.NDArray[np.float64]:
    """Return Gabor filters [size, size, 1, 4 * directions]: lines and edges, dark on light and light on dark.

    Each has a sum of 0 and gives at most 1 on an image in [0, 1].

    Args:
        size: Pixels of a side.
        directions: How many, evenly over half a turn.
        wavelength: Pixels of one period across the line.
        width: Standard deviation of the envelope across the line, in pixels; along it the envelope is wider.
    """
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    filters = []
    for turn in np.arange(directions) * np.pi / directions:
        across, along = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        envelope = np.exp(-(across**2 + (0.7 * along) ** 2) / (2 * width**2))
        for phase in (0, np.pi / 2):
            wave = envelope * np.cos(2 * np.pi * across / wavelength + phase)
            wave -= wave.mean()
            wave *= 2 / np.abs(wave).sum()
            filters += [wave, -wave]
    return np.stack(filters, axis=-1)[:, :, np.newaxis]


def lenet_5() -> keras.Sequential:
    """Return LeNet-5 with tanh and average pooling, not trained; it gives probabilities.

    The paper's ten radial basis functions at the end are a dense layer here, and every feature map of the
    second convolution sees all of the first, as in most reimplementations.

    Source: LeCun et al. 1998, Gradient-based learning applied to document recognition, section II.B.
    """
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input(_DIGITS),
            # The paper pads the digits to 32x32.
            layers.Conv2D(6, 5, padding="same", activation="tanh"),
            layers.AveragePooling2D(2),
            layers.Conv2D(16, 5, activation="tanh"),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dense(120, activation="tanh"),
            layers.Dense(84, activation="tanh"),
            layers.Dense(10, activation="softmax"),
        ],
        name="lenet-5",
    )


def mlp(hidden: Sequence[int] = (128, 128)) -> keras.Sequential:
    """Return dense layers with relu between, not trained; it gives probabilities.

    Args:
        hidden: Units of each layer before the last.
    """
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input(_DIGITS),
            layers.Flatten(),
            *(layers.Dense(units, activation="relu") for units in hidden),
            layers.Dense(10, activation="softmax"),
        ],
        name="mlp",
    )


def small_resnet() -> keras.Model:
    """Return a residual network with batch normalisation, not trained; it gives logits.

    A convolution with stride 2, one block that keeps the size and one that halves it, the mean over the image
    and a dense layer: 20 thousand parameters.

    Source: He et al. 2016, Deep residual learning for image recognition, the building block of figure 2 and
    the projection shortcut of section 3.3.
    """
    layers = keras.layers
    digits = keras.Input(_DIGITS)
    x = _normalised(digits, 16, strides=2)
    x = layers.ReLU()(x)
    x = _residual(x, 16, strides=1)
    x = _residual(x, 32, strides=2)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(digits, layers.Dense(10)(x), name="small-resnet")


def _normalised(x: Any, filters: int, *, strides: int, size: int = 3) -> Any:
    # The bias would be taken out again by the normalisation.
    x = keras.layers.Conv2D(filters, size, strides=strides, padding="same", use_bias=False)(x)
    # Keras' 0.99 takes a thousand steps to forget where the statistics began; a hospital takes fewer.
    return keras.layers.BatchNormalization(momentum=0.9)(x)


def _residual(x: Any, filters: int, *, strides: int) -> Any:
    y = keras.layers.ReLU()(_normalised(x, filters, strides=strides))
    y = _normalised(y, filters, strides=1)
    shortcut = x if strides == 1 else _normalised(x, filters, strides=strides, size=1)
    return keras.layers.ReLU()(keras.layers.Add()([y, shortcut]))


_BY_NAME: Mapping[str, Callable[[], keras.Model]] = {
    "gabor": gabor,
    "lenet-5": lenet_5,
    "mlp": mlp,
    "short-conv": short_conv,
    "short-conv-16": partial(short_conv, (16, 32, 64)),
    "short-conv-16-logits": partial(short_conv, (16, 32, 64), softmax=False),
    "short-conv-logits": partial(short_conv, softmax=False),
    "small-resnet": small_resnet,
    "tf-privacy": tf_privacy,
}

NAMES = tuple(sorted(_BY_NAME))
"""All that ``by_name`` knows."""


def by_name(name: str, *, seed: int | None = None) -> keras.Model:
    """Return a fresh network.

    Args:
        name: One of ``NAMES``. The endings of short-conv: ``-16`` has 16, 32 and 64 filters instead of 10, 32
            and 64, ``-logits`` has no softmax at the end.
        seed: Fixes the first parameters; by default Keras draws them.

    Raises:
        UsageError: If there is no network of that name.
    """
    if name not in _BY_NAME:
        raise UsageError(f"no model is called {name!r}; known: {', '.join(NAMES)}")
    if seed is not None:
        keras.utils.set_random_seed(seed % 2**32)
    return _BY_NAME[name]()
