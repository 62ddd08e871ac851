"""A small model for every kind of layer: the page of layers measures it, tests compare it with Keras."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from fedsec.learning.backend import keras

L = keras.layers
A = keras.activations
ops = keras.ops

Shape = tuple[int, ...]

IMAGE = (6, 5, 2)
LINE = (7, 2)
LIST = (6,)

_STACKS: dict[str, tuple[Shape, Callable[[], list[Any]]]] = {
    "Dense": (LIST, lambda: [L.Dense(4)]),
    "Dense, no bias": (LIST, lambda: [L.Dense(4, use_bias=False)]),
    "Dense, activation": (LIST, lambda: [L.Dense(4, activation="relu"), L.Dense(3)]),
    "Dense on lines": (LINE, lambda: [L.Dense(4)]),
    "Dense on images": (IMAGE, lambda: [L.Dense(4, activation="relu"), L.Flatten(), L.Dense(3)]),
    "Conv2D": (IMAGE, lambda: [L.Conv2D(3, 3)]),
    "Conv2D, strides": (IMAGE, lambda: [L.Conv2D(3, (3, 2), strides=(2, 1))]),
    "Conv2D, same": (IMAGE, lambda: [L.Conv2D(3, (4, 2), padding="same")]),
    "Conv2D, same, strides": (IMAGE, lambda: [L.Conv2D(3, (4, 3), strides=2, padding="same")]),
    "Conv2D, dilation": (IMAGE, lambda: [L.Conv2D(3, 2, dilation_rate=(3, 2))]),
    "Conv2D, same, dilation": (IMAGE, lambda: [L.Conv2D(3, 3, dilation_rate=2, padding="same")]),
    "Conv2D, groups": ((5, 5, 4), lambda: [L.Conv2D(6, 3, groups=2)]),
    "Conv1D": (LINE, lambda: [L.Conv1D(3, 3, strides=2)]),
    "Conv1D, same": (LINE, lambda: [L.Conv1D(3, 4, padding="same", activation="relu")]),
    "Conv1D, causal": (LINE, lambda: [L.Conv1D(3, 3, padding="causal", dilation_rate=2)]),
    "Conv1D, groups": ((7, 4), lambda: [L.Conv1D(4, 3, groups=2)]),
    "DepthwiseConv2D": (IMAGE, lambda: [L.DepthwiseConv2D(3)]),
    "DepthwiseConv2D, multiplier": (
        IMAGE, lambda: [L.DepthwiseConv2D(3, depth_multiplier=2, strides=2, padding="same")]),
    "DepthwiseConv1D": (LINE, lambda: [L.DepthwiseConv1D(3, depth_multiplier=2)]),
    "SeparableConv2D": (IMAGE, lambda: [L.SeparableConv2D(3, 3, depth_multiplier=2, padding="same")]),
    "SeparableConv1D": (LINE, lambda: [L.SeparableConv1D(3, 3, activation="relu")]),
    "AveragePooling2D": (IMAGE, lambda: [L.AveragePooling2D(2)]),
    "AveragePooling2D, overlapping": (IMAGE, lambda: [L.AveragePooling2D((3, 2), strides=(1, 2))]),
    "AveragePooling2D, same": (IMAGE, lambda: [L.AveragePooling2D(3, strides=2, padding="same")]),
    "AveragePooling2D, same, then Conv2D": (
        IMAGE, lambda: [L.AveragePooling2D(2, padding="same"), L.Conv2D(3, 2)]),
    "AveragePooling2D after Conv2D": (
        IMAGE, lambda: [L.Conv2D(3, 2, strides=(1, 2)), L.AveragePooling2D((2, 1), (2, 1)), L.ReLU()]),
    "AveragePooling2D after relu": (
        IMAGE, lambda: [L.Conv2D(3, 2, activation="relu"), L.AveragePooling2D(3), L.Flatten(), L.Dense(3)]),
    "AveragePooling1D": (LINE, lambda: [L.AveragePooling1D(3, strides=2)]),
    "AveragePooling1D, same": (LINE, lambda: [L.AveragePooling1D(2, padding="same"), L.Conv1D(2, 2)]),
    "MaxPooling2D": (IMAGE, lambda: [L.MaxPooling2D(2)]),
    "MaxPooling2D, overlapping": (IMAGE, lambda: [L.Conv2D(3, 2), L.MaxPooling2D((3, 2), strides=1)]),
    "MaxPooling2D, same": (IMAGE, lambda: [L.Conv2D(3, 2), L.MaxPooling2D(3, strides=2, padding="same")]),
    "MaxPooling1D": (LINE, lambda: [L.Conv1D(3, 2), L.MaxPooling1D(2, padding="same"), L.Conv1D(2, 2)]),
    "GlobalAveragePooling2D": (IMAGE, lambda: [L.GlobalAveragePooling2D()]),
    "GlobalAveragePooling2D, keepdims": (
        IMAGE, lambda: [L.Conv2D(3, 2), L.ReLU(), L.GlobalAveragePooling2D(keepdims=True), L.Conv2D(2, 1)]),
    "GlobalAveragePooling1D": (LINE, lambda: [L.GlobalAveragePooling1D(), L.Dense(3)]),
    "GlobalMaxPooling2D": (IMAGE, lambda: [L.Conv2D(3, 2), L.GlobalMaxPooling2D(), L.Dense(3)]),
    "GlobalMaxPooling1D": (LINE, lambda: [L.GlobalMaxPooling1D(keepdims=True)]),
    "BatchNormalization after Conv2D": (IMAGE, lambda: [L.Conv2D(3, 3), L.BatchNormalization(), L.ReLU()]),
    "BatchNormalization after Dense": (LIST, lambda: [L.Dense(4), L.BatchNormalization(scale=False)]),
    "BatchNormalization after pooling": (
        IMAGE, lambda: [L.Conv2D(3, 2), L.AveragePooling2D(2), L.BatchNormalization(), L.ReLU()]),
    "BatchNormalization after relu": (
        IMAGE,
        lambda: [L.Conv2D(3, 3, activation="relu"), L.BatchNormalization(center=False), L.Conv2D(2, 2)]),
    "BatchNormalization first": (IMAGE, lambda: [L.BatchNormalization(), L.Conv2D(3, 2, padding="same")]),
    "BatchNormalization of a list": (LIST, lambda: [L.Dense(4, activation="relu"), L.BatchNormalization()]),
    "Normalization": (IMAGE, lambda: [L.Normalization(mean=[0.3, 0.6], variance=[0.1, 0.2]), L.Conv2D(2, 2)]),
    "Normalization, one for all": (LINE, lambda: [L.Normalization(axis=None), L.Conv1D(2, 2)]),
    "Rescaling": (IMAGE, lambda: [L.Rescaling(2.0, offset=-1.0), L.Conv2D(3, 3, padding="same")]),
    "Rescaling, each channel": (
        IMAGE, lambda: [L.Rescaling([2.0, 0.5], offset=[-1.0, 0.25]), L.Conv2D(2, 2)]),
    "Rescaling inside": (LIST, lambda: [L.Dense(4, activation="relu"), L.Rescaling(0.3, 0.2), L.Dense(3)]),
    "ZeroPadding2D": (IMAGE, lambda: [L.ZeroPadding2D(((1, 0), (2, 1))), L.Conv2D(3, 3)]),
    "ZeroPadding2D after relu": (
        IMAGE, lambda: [L.Conv2D(3, 2, activation="relu"), L.ZeroPadding2D(1), L.MaxPooling2D(2)]),
    "ZeroPadding1D": (LINE, lambda: [L.ZeroPadding1D((2, 1)), L.Conv1D(3, 3)]),
    "Flatten": (IMAGE, lambda: [L.Flatten(), L.Dense(3)]),
    "Reshape": (IMAGE, lambda: [L.Reshape((-1, 6)), L.Conv1D(3, 2), L.Reshape((3, 9)), L.Flatten()]),
    "Dropout and others": (
        LIST, lambda: [L.Dropout(0.5), L.GaussianNoise(0.2), L.Dense(4), L.Identity(), L.Dropout(0.1)]),
    "Softmax at the end": (LIST, lambda: [L.Dense(4), L.Softmax()]),
    "PReLU": (IMAGE, lambda: [L.Conv2D(3, 2), L.PReLU(shared_axes=[1, 2], alpha_initializer="uniform")]),
    "ReLU": (LIST, lambda: [L.Dense(8), L.ReLU()]),
    "ReLU, max_value": (LIST, lambda: [L.Dense(8), L.ReLU(max_value=0.5)]),
    "ReLU, negative_slope": (LIST, lambda: [L.Dense(8), L.ReLU(negative_slope=0.1)]),
    "ReLU, all settings": (
        LIST, lambda: [L.Dense(8), L.ReLU(max_value=0.75, negative_slope=0.25, threshold=0.25)]),
    "LeakyReLU": (LIST, lambda: [L.Dense(8), L.LeakyReLU()]),
    "LeakyReLU as an argument": (LIST, lambda: [L.Dense(8, activation=L.LeakyReLU(0.1)), L.Dense(3)]),
    "ELU": (LIST, lambda: [L.Dense(8), L.ELU(alpha=0.7)]),
    "relu of the input": (LIST, lambda: [L.ReLU(), L.Dense(3)]),
}  # fmt: skip

_ACTIVATION = "activation "
"""Before the name of an activation that stands alone."""

_ACTIVATIONS = (
    "elu", "gelu", "hard_sigmoid", "hard_silu", "hard_tanh", "leaky_relu", "linear", "relu6", "selu",
    "sigmoid", "silu", "softplus", "tanh",
)  # fmt: skip


def _branches(x: Any) -> Any:
    """Two convolutions of one input."""
    return L.Conv2D(3, 2)(x), L.Conv2D(3, 2)(x)


def _unlike(x: Any) -> Any:
    """Two values of one shape that are held in different ways."""
    return L.Conv2D(3, 2)(x), L.Conv2D(3, 2, activation="relu")(x)


def _merged(kind: Any, x: Any) -> Any:
    return kind()(list(_branches(x)))


def _gate(x: Any) -> Any:
    """Squeeze and excitation: a product that is repeated along the image."""
    x = L.Conv2D(3, 2, activation="relu")(x)
    return L.Multiply()([x, L.Dense(3, activation="sigmoid")(L.GlobalAveragePooling2D()(x))])


def _residual(x: Any) -> Any:
    y = L.BatchNormalization()(L.Conv2D(2, 3, padding="same", use_bias=False)(x))
    return L.ReLU()(L.Add()([y, x]))


def _with_itself(x: Any) -> Any:
    y = L.Conv2D(3, 2)(x)
    return L.Add()([y, y]) - y * y


def _arithmetic(x: Any) -> Any:
    a, b = _unlike(x / 2.0 - 0.25)
    return 1.0 - (a * 0.5 + b) * a - (-b)


def _shared(x: Any) -> Any:
    twice = L.Conv2D(2, 3, padding="same", activation="relu")
    return twice(twice(x))


def _nested(x: Any) -> Any:
    inner = keras.Sequential([keras.Input(IMAGE), L.Conv2D(2, 3, padding="same"), L.ReLU()])
    around = keras.Input(IMAGE)
    middle = keras.Model(around, L.Add()([inner(around), around]))
    return L.Dense(3)(L.Flatten()(middle(middle(x))))


_GRAPHS: dict[str, Callable[[Any], Any]] = {
    "Add": partial(_merged, L.Add),
    "Add of three": lambda x: L.Add()([*_unlike(x), L.Conv2D(3, 2)(x)]),
    "Subtract": partial(_merged, L.Subtract),
    "Average": partial(_merged, L.Average),
    "Maximum": partial(_merged, L.Maximum),
    "Minimum": partial(_merged, L.Minimum),
    "Multiply": partial(_merged, L.Multiply),
    "Multiply of three": lambda x: L.Multiply()([*_unlike(x), L.Conv2D(3, 2)(x)]),
    "Multiply, repeated": _gate,
    "Concatenate": partial(_merged, L.Concatenate),
    "Concatenate, rows": lambda x: L.Concatenate(axis=1)(list(_unlike(x))),
    "Concatenate, then Dense": lambda x: L.Dense(2)(L.Flatten()(L.Concatenate()(list(_unlike(x))))),
    "residual": _residual,
    "x + y": lambda x: operator.add(*_branches(x)),
    "x - y": lambda x: operator.sub(*_branches(x)),
    "x * y": lambda x: operator.mul(*_branches(x)),
    "x / number": lambda x: L.Conv2D(3, 2)(x) / 3.0,
    "-x": lambda x: -L.Conv2D(3, 2)(x),
    "arithmetic": _arithmetic,
    "with itself": _with_itself,
    "shared layer": _shared,
    "nested models": _nested,
    "functions": lambda x: A.gelu(ops.relu6(L.Conv2D(3, 2)(x)), approximate=True),
    "relu function": lambda x: A.relu(L.Conv2D(3, 2)(x), max_value=0.5, negative_slope=0.1),
}

NAMES: tuple[str, ...] = (*_STACKS, *(_ACTIVATION + name for name in _ACTIVATIONS), *_GRAPHS)


def example(name: str, seed: int = 4) -> keras.Model:
    """Return a small model with random parameters.

    Args:
        name: One of ``NAMES``.
        seed: Of the parameters. Keras' own biases and shifts are all zero, and a lost one would not be seen.
    """
    model = _built(name)
    generator = np.random.default_rng(seed)
    # Activations are to be seen from end to end.
    size = 3.0 if name.startswith(_ACTIVATION) else 0.4
    model.set_weights([_random(generator, variable, size) for variable in model.weights])
    return model


def _built(name: str) -> keras.Model:
    if name in _GRAPHS:
        image = keras.Input(IMAGE)
        return keras.Model(image, _GRAPHS[name](image), name="graph")
    if name in _STACKS:
        shape, layers = _STACKS[name]
        return keras.Sequential([keras.Input(shape), *layers()])
    return keras.Sequential([keras.Input(LIST), L.Dense(16), L.Activation(name.removeprefix(_ACTIVATION))])


def _random(generator: np.random.Generator, variable: Any, size: float) -> Any:
    values = generator.normal(0, size, variable.shape)
    # A variance is never negative.
    return np.abs(values) + 0.1 if "variance" in variable.path else values
