"""Activations: relu and what is made of it, and the smooth functions that the planner knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedsec.errors import UnsupportedModelError
from fedsec.learning.backend import keras
from fedsec.learning.export.building import Site, converts, floats
from fedsec.nn.network import (
    AddLayer,
    AffineLayer,
    FunctionLayer,
    MultiplyLayer,
    ReluLayer,
    RescaleLayer,
    SubtractLayer,
)

Activate = Callable[[Site, int, str, Mapping[str, Any]], int]
"""Takes where, the value that goes in, a name for the step and the activation's settings."""

L = keras.layers


def _relu(site: Site, x: int, name: str, settings: Mapping[str, Any]) -> int:
    top = settings.get("max_value")
    site.require("max_value above 0", top is None or top > 0)
    return site.build.add(
        ReluLayer(
            name,
            max_value=None if top is None else float(top),
            negative_slope=float(settings.get("negative_slope") or 0.0),
            threshold=float(settings.get("threshold") or 0.0),
            inputs=(x,),
        )
    )


def _relu6(site: Site, x: int, name: str, _: Mapping[str, Any]) -> int:
    return site.build.add(ReluLayer(name, max_value=6.0, inputs=(x,)))


def _leaky_relu(site: Site, x: int, name: str, settings: Mapping[str, Any]) -> int:
    # Keras' function has this slope when it is named as an activation.
    return _relu(site, x, name, {"negative_slope": settings.get("negative_slope", 0.2)})


def _function(kind: Any) -> Activate:
    return lambda site, x, name, _: site.build.add(FunctionLayer(name, kind, inputs=(x,)))


def _gelu(site: Site, x: int, name: str, settings: Mapping[str, Any]) -> int:
    kind = _function("gelu_tanh" if settings.get("approximate") else "gelu")
    return kind(site, x, name, {})


def _elu(site: Site, x: int, name: str, settings: Mapping[str, Any]) -> int:
    return site.build.add(FunctionLayer(name, "elu", float(settings.get("alpha", 1.0)), inputs=(x,)))


def _selu(site: Site, x: int, name: str, _: Mapping[str, Any]) -> int:
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    inner = site.build.add(FunctionLayer(name, "elu", alpha, inputs=(x,)))
    return site.build.add(RescaleLayer(f"{name} scale", scale, inputs=(inner,)))


def _hard_sigmoid(site: Site, x: int, name: str, _: Mapping[str, Any]) -> int:
    """relu6(x + 3) / 6."""
    moved = site.build.add(RescaleLayer(f"{name} shift", 1.0, 3.0, inputs=(x,)))
    clipped = site.build.add(ReluLayer(name, max_value=6.0, inputs=(moved,)))
    return site.build.add(RescaleLayer(f"{name} scale", 1 / 6, inputs=(clipped,)))


def _hard_silu(site: Site, x: int, name: str, _: Mapping[str, Any]) -> int:
    """X times the hard sigmoid of x."""
    gate = _hard_sigmoid(site, x, f"{name} gate", {})
    return site.build.add(MultiplyLayer(name, inputs=(x, gate)))


def _hard_tanh(site: Site, x: int, name: str, _: Mapping[str, Any]) -> int:
    moved = site.build.add(RescaleLayer(f"{name} shift", 1.0, 1.0, inputs=(x,)))
    clipped = site.build.add(ReluLayer(name, max_value=2.0, inputs=(moved,)))
    return site.build.add(RescaleLayer(f"{name} shift back", 1.0, -1.0, inputs=(clipped,)))


def _softmax(site: Site, x: int, _name: str, settings: Mapping[str, Any]) -> int:
    axis = settings.get("axis", -1)
    site.require("axis -1", axis in {-1, len(site.output_shape)})
    instead = 'use relu or sigmoid there, and reveal="probabilities" for the answers'
    site.require("softmax as the last layer", site.is_last, instead)
    # The answers are logits: the same label, and softmax is cheap for whoever has them.
    return x


def _linear(_site: Site, x: int, _name: str, _settings: Mapping[str, Any]) -> int:
    return x


BY_NAME: Mapping[str, Activate] = {
    "elu": _elu,
    "gelu": _gelu,
    "hard_sigmoid": _hard_sigmoid,
    "hard_silu": _hard_silu,
    "hard_tanh": _hard_tanh,
    "leaky_relu": _leaky_relu,
    "linear": _linear,
    "relu": _relu,
    "relu6": _relu6,
    "selu": _selu,
    "sigmoid": _function("sigmoid"),
    "silu": _function("silu"),
    "softmax": _softmax,
    "softplus": _function("softplus"),
    "tanh": _function("tanh"),
}
"""By the name in ``keras.activations``; ``silu`` is also called swish."""

_BY_FUNCTION = {getattr(keras.activations, name): name for name in BY_NAME}


def activated(site: Site, x: int) -> int:
    """Apply the activation argument of a layer to its value.

    Raises:
        UnsupportedModelError: If the activation is none of Keras' that are supported.
    """
    function = getattr(site.layer, "activation", None)
    if function is None:
        return x
    # Keras also takes a layer here, such as LeakyReLU(0.1).
    name = _BY_LAYER.get(type(function)) or _BY_FUNCTION.get(function)
    if name is None:
        label = getattr(function, "__name__", type(function).__name__)
        raise UnsupportedModelError(
            f"layer {site.name!r} has activation {label!r}, which cannot be computed on shares; supported are"
            f" {', '.join(BY_NAME)}. Use relu or another of them and train again"
        )
    return BY_NAME[name](site, x, f"{site.name} {name}", _settings_of(function))


_SETTINGS = ("alpha", "approximate", "axis", "max_value", "negative_slope", "threshold")
"""Attributes by which Keras' layers and operations keep the settings of their activation."""


_BY_LAYER: dict[type, str] = {}
"""Names of the activations that layers and operations stand for, by their class."""


def _settings_of(holder: Any) -> dict[str, Any]:
    return {key: getattr(holder, key) for key in _SETTINGS if hasattr(holder, key)}


def _register(name: str, *types: type, on_shares: str, only: str = "", example: str = "") -> None:
    layers = (cls.__name__ for cls in types if issubclass(cls, L.Layer))

    _BY_LAYER.update(dict.fromkeys(types, name))

    @converts(*types, on_shares=on_shares, only=only, names=(*layers, f"activation {name}"), example=example)
    def convert(site: Site) -> int:
        return BY_NAME[name](site, site.x, site.name, _settings_of(site.layer))


@converts(L.Activation, on_shares="as the activation of that name", example="activation linear")
def _activation(site: Site) -> int:
    return activated(site, site.x)


_nn, _functions = keras.src.ops.nn, keras.src.activations.activations

_register(
    "relu", L.ReLU, _nn.Relu, _functions.ReLU,
    on_shares="sign and product; with max_value or negative_slope one sign for each knee",
    only="`max_value` 0",
    example="ReLU",
)  # fmt: skip
_register("relu6", _nn.Relu6, on_shares="as ReLU with max_value 6")
_register("leaky_relu", L.LeakyReLU, _nn.LeakyRelu, on_shares="as ReLU with negative_slope")
_register(
    "softmax", L.Softmax, _nn.Softmax,
    on_shares="left out at the end: the answers are logits",
    only="before the end; axes other than the last",
    example="Softmax at the end",
)  # fmt: skip
_register("sigmoid", _nn.Sigmoid, on_shares="straight pieces")
_register("tanh", keras.src.ops.numpy.Tanh, on_shares="straight pieces")
_register("silu", _nn.Silu, on_shares="straight pieces")
_register("gelu", _nn.Gelu, on_shares="straight pieces")
_register("elu", L.ELU, _nn.Elu, on_shares="straight pieces")
_register("selu", _nn.Selu, on_shares="straight pieces")
_register("softplus", _nn.Softplus, on_shares="straight pieces")
_register("hard_sigmoid", _nn.HardSigmoid, on_shares="as ReLU with max_value")
_register("hard_silu", _nn.HardSilu, on_shares="hard sigmoid and one product")
_register("hard_tanh", _nn.HardTanh, on_shares="as ReLU with max_value")


@converts(L.PReLU, on_shares="as ReLU, and one depthwise product with the secret slopes",
          only="slopes that differ along the image (`shared_axes=[1, 2]` is needed)")  # fmt: skip
def _prelu(site: Site) -> int:
    """relu(x) + alpha * (x - relu(x)), with a slope for each channel."""
    slopes = floats(site.layer.alpha)
    channels = site.input_shape[-1]
    site.require("one slope a channel (shared_axes for the others)", slopes.size == channels)
    above = site.build.add(ReluLayer(f"{site.name} relu", inputs=(site.x,)))
    below = site.build.add(SubtractLayer(f"{site.name} below", inputs=(site.x, above)))
    sloped = site.build.add(
        AffineLayer(f"{site.name} slopes", slopes.reshape(-1), slopes.reshape(-1) * 0.0, inputs=(below,))
    )
    return site.build.add(AddLayer(site.name, inputs=(above, sloped)))
