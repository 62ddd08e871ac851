"""From a trained Keras model to a plan and its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fedsec.errors import UnsupportedModelError
from fedsec.learning.backend import keras
from fedsec.nn import Plan, Weights, plan_network
from fedsec.nn.network import (
    AveragePoolLayer,
    ConvLayer,
    DenseLayer,
    FlattenLayer,
    Network,
    NetworkLayer,
    Pair,
    ReluLayer,
)

SUPPORTED = (
    "Conv2D, AveragePooling2D, relu (ReLU, Activation or an activation argument), Flatten, Dense, Dropout,"
    " InputLayer, and one softmax at the end"
)


def export(
    model: keras.Model, fraction_bits: int = 16, *, input_range: tuple[float, float] = (0.0, 1.0)
) -> tuple[Plan, Weights]:
    """Plan a Keras model for private prediction.

    A final softmax is left out: the answers are logits, with the same label, and softmax is cheap for
    whoever has them. Dropout does nothing in a prediction and is left out too.

    Args:
        model: A built ``keras.Sequential`` of supported layers.
        fraction_bits: Binary digits behind the point; 16 keeps logits within 0.02 of Keras.
        input_range: Lower and upper bound of every input value; bounds are proven from it.

    Returns:
        The public plan and the parameters in its order.

    Raises:
        UnsupportedModelError: If the model has anything else or a value could leave the ring; the text
            names the layer, what is supported and what to do.
    """
    if not isinstance(model, keras.Sequential):
        raise UnsupportedModelError(
            f"model {getattr(model, 'name', model)!r} is a {type(model).__name__}, expected keras.Sequential:"
            " put its layers one after the other into a Sequential"
        )
    if not model.built or model.input_shape[0] is not None or None in model.input_shape[1:]:
        raise UnsupportedModelError(
            f"model {model.name!r} does not know its input shape: begin it with keras.Input(shape), whose"
            " sizes are all given, or train it first"
        )
    layers = model.layers
    network = Network(
        name=model.name,
        input_shape=tuple(model.input_shape[1:]),
        layers=tuple(
            part for i, layer in enumerate(layers) for part in _converted(layer, last=i == len(layers) - 1)
        ),
        input_low=float(input_range[0]),
        input_high=float(input_range[1]),
    )
    return plan_network(network, fraction_bits=fraction_bits)


def _converted(layer: Any, *, last: bool) -> list[NetworkLayer]:
    # The exact class: a subclass may compute something else under the same parameters.
    convert = _CONVERT.get(type(layer))
    if convert is None:
        raise UnsupportedModelError(
            f"layer {layer.name!r} is a {type(layer).__name__}, which cannot be computed on shares yet;"
            f" supported are {SUPPORTED}. Replace the layer and train again"
        )
    return [*convert(layer), *_activation(layer, last=last)]


def _activation(layer: Any, *, last: bool) -> list[NetworkLayer]:
    """Return the relu of a layer's own activation, nothing for a linear one or a final softmax."""
    activation = keras.activations.softmax if isinstance(layer, keras.layers.Softmax) else None
    activation = getattr(layer, "activation", activation)
    if activation is None or activation is keras.activations.linear:
        return []
    if activation is keras.activations.relu:
        return [ReluLayer(f"{layer.name} relu")]
    if activation is keras.activations.softmax and last:
        return []
    name = getattr(activation, "__name__", str(activation))
    raise UnsupportedModelError(
        f"layer {layer.name!r} has activation {name!r}{' before the end' if name == 'softmax' else ''};"
        f" supported are {SUPPORTED}. Use relu and train again"
    )


def _conv(layer: Any) -> list[NetworkLayer]:
    _require(layer, "channels_last images", layer.data_format == "channels_last")
    _require(layer, "dilation_rate 1 and groups 1", layer.dilation_rate == (1, 1) and layer.groups == 1)
    rows, columns = layer.strides
    _require(layer, "equal strides of rows and columns", rows == columns)
    kernel = _floats(layer.kernel)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    if layer.padding == "same":
        height, width = layer.input.shape[1:3]
        padding = (_same(height, kernel.shape[0], rows), _same(width, kernel.shape[1], rows))
    return [ConvLayer(layer.name, kernel, _bias(layer, kernel.shape[3]), rows, padding)]


def _same(size: int, window: int, stride: int) -> Pair:
    """Return the zeros before and after that Keras adds for ``padding="same"``."""
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def _dense(layer: Any) -> list[NetworkLayer]:
    kernel = _floats(layer.kernel)
    return [DenseLayer(layer.name, kernel, _bias(layer, kernel.shape[1]))]


def _pool(layer: Any) -> list[NetworkLayer]:
    _require(layer, "channels_last images", layer.data_format == "channels_last")
    # At the border "same" divides by fewer values, so that the mean is no longer one linear map.
    _require(layer, 'padding="valid"', layer.padding == "valid")
    return [AveragePoolLayer(layer.name, tuple(layer.pool_size), tuple(layer.strides))]


def _relu(layer: Any) -> list[NetworkLayer]:
    plain = layer.max_value is None and not layer.negative_slope and not layer.threshold
    _require(layer, "no max_value, negative_slope or threshold", plain)
    return [ReluLayer(layer.name)]


def _flatten(layer: Any) -> list[NetworkLayer]:
    _require(layer, "channels_last images", layer.data_format == "channels_last")
    return [FlattenLayer(layer.name)]


def _softmax(layer: Any) -> list[NetworkLayer]:
    _require(layer, "axis -1", layer.axis == -1)
    return []


def _nothing(_: Any) -> list[NetworkLayer]:
    return []


_CONVERT: dict[type, Callable[[Any], list[NetworkLayer]]] = {
    keras.layers.InputLayer: _nothing,
    keras.layers.Conv2D: _conv,
    keras.layers.AveragePooling2D: _pool,
    keras.layers.ReLU: _relu,
    keras.layers.Activation: _nothing,
    keras.layers.Softmax: _softmax,
    keras.layers.Flatten: _flatten,
    keras.layers.Dense: _dense,
    keras.layers.Dropout: _nothing,
}


def _require(layer: Any, what: str, fits: bool) -> None:
    if not fits:
        raise UnsupportedModelError(
            f"layer {layer.name!r} ({type(layer).__name__}) is supported only with {what}:"
            " change it and train again"
        )


def _bias(layer: Any, size: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    return _floats(layer.bias) if layer.use_bias else np.zeros(size)


def _floats(variable: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(variable, dtype=np.float64)
