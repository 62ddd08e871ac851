"""The way from a Keras model to a plan: every call is converted, what cannot be is refused by name."""

from __future__ import annotations

from collections.abc import Mapping

from fedsec.errors import UnsupportedModelError
from fedsec.learning.backend import keras

# These modules register what they convert.
from fedsec.learning.export import activations, linear, merging, pooling
from fedsec.learning.export.building import BY_TYPE, Builder, Site, entries
from fedsec.learning.export.graph import Call, calls_of
from fedsec.nn import Plan, Weights, plan_network
from fedsec.nn.network import Network

L = keras.layers

CONVERTERS = (linear, pooling, activations, merging)

_IGNORED_NAMES = (
    "ActivityRegularization", "AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise", "Identity",
    "InputLayer", "RandomBrightness", "RandomContrast", "RandomFlip", "RandomRotation", "RandomTranslation",
    "RandomZoom", "SpatialDropout1D", "SpatialDropout2D",
)  # fmt: skip

IGNORED = frozenset(getattr(L, name) for name in _IGNORED_NAMES)
"""Layers that do nothing in a prediction."""

INSTEAD: Mapping[str, str] = {
    "LayerNormalization": "use BatchNormalization, whose statistics are fixed in a prediction",
    "GroupNormalization": "use BatchNormalization, whose statistics are fixed in a prediction",
    "RMSNormalization": "use BatchNormalization, whose statistics are fixed in a prediction",
    "UnitNormalization": "use BatchNormalization, whose statistics are fixed in a prediction",
    "Embedding": "look words up before asking, and give the model their vectors as input",
    "LSTM": "use Conv1D over the steps",
    "GRU": "use Conv1D over the steps",
    "SimpleRNN": "use Conv1D over the steps",
    "Bidirectional": "use Conv1D over the steps",
    "MultiHeadAttention": "use Conv1D, or Dense over a Flatten",
    "Conv2DTranspose": "use Conv2D over a larger ZeroPadding2D",
    "Conv3D": "use Conv2D with the depth as channels",
    "Cropping2D": "crop images before asking",
    "CenterCrop": "crop images before asking",
    "Resizing": "resize images before asking",
    "Lambda": "use Keras' own layers, whose code is known",
    "TimeDistributed": "use Dense alone, which works on the last axis",
    "UpSampling2D": "use larger strides before it, so that it is not needed",
}
"""What to use in place of layers that people ask for."""

_LONGEST_NAME = 128
"""Of a plan."""

_AXES = 3
"""The most axes that one example may have on shares."""


def export(
    model: keras.Model, fraction_bits: int = 16, *, input_range: tuple[float, float] = (0.0, 1.0)
) -> tuple[Plan, Weights]:
    """Plan a Keras model for private prediction.

    A final softmax is left out: the answers are logits, with the same label, and softmax is cheap for
    whoever has them. What does nothing in a prediction, such as Dropout, is left out too. A layer that is
    called twice is computed twice, each time with its own copy of the parameters.

    Args:
        model: A built ``keras.Sequential`` or functional ``keras.Model`` with one input and one output;
            models within models are unfolded.
        fraction_bits: Binary digits behind the point. With 16 the planner may use shorter words where bounds
            allow it; more are slower and closer to Keras.
        input_range: Lower and upper bound of every input value; bounds are proven from it.

    Returns:
        The public plan and the parameters in its order.

    Raises:
        UnsupportedModelError: If the model has anything else or a value could leave the ring; the text
            names the layer, what is supported and what to do.
    """
    return plan_network(network_of(model, input_range=input_range), fraction_bits=fraction_bits)


def network_of(model: keras.Model, *, input_range: tuple[float, float] = (0.0, 1.0)) -> Network:
    """Return a Keras model as layers in the clear, before it is planned.

    Args and errors: as ``export``.
    """
    calls = calls_of(model, IGNORED)
    input_shape = tuple(model.inputs[0].shape[1:])
    if not 1 <= len(input_shape) <= _AXES:
        raise UnsupportedModelError(
            f"model {model.name!r} takes examples with {len(input_shape)} axes, expected 1 to {_AXES}:"
            " reshape them before asking"
        )
    build = Builder()
    values = [0]
    for place, call in enumerate(calls, 1):
        inputs = tuple(values[number] for number in call.inputs)
        values.append(_converted(Site(build, call, inputs, is_last=place == len(calls))))
    if not build.layers:
        raise UnsupportedModelError(
            f"model {model.name!r} does nothing that is worth sharing: leave its softmax to whoever asks"
        )
    return Network(
        name=model.name[:_LONGEST_NAME],
        input_shape=input_shape,
        layers=tuple(build.layers),
        input_low=float(input_range[0]),
        input_high=float(input_range[1]),
    )


def _converted(site: Site) -> int:
    convert = BY_TYPE.get(type(site.layer))
    if convert is None:
        raise UnsupportedModelError(_refusal(site.call))
    axes = len(site.output_shape)
    if not 1 <= axes <= _AXES:
        raise UnsupportedModelError(
            f"layer {site.name!r} gives values with {axes} axes, supported are 1 to {_AXES}: reshape"
            " before it"
        )
    return convert(site)


def _refusal(call: Call) -> str:
    kind = type(call.operation).__name__
    instead = INSTEAD.get(kind, "replace the layer")
    known = ", ".join(dict.fromkeys(name for entry in entries() for name in entry.names))
    return (
        f"layer {call.name!r} is a {kind}, which cannot be computed on shares: {instead} and train again;"
        f" supported are {known}"
    )
