"""A trained network in the clear: layers with their parameters as float arrays, before it is planned.

Layers are nodes of a graph. Value 0 is the network's input, layer i makes value i + 1, the last layer gives
the output. Shapes are those of one example, images are [height, width, channels].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from fedsec.errors import UsageError

Floats = npt.NDArray[np.float64]
Pair = tuple[int, int]
Margins = tuple[Pair, Pair]
"""Around an image: (top, bottom), (left, right)."""

Function = Literal["sigmoid", "tanh", "softmax", "gelu", "gelu_tanh", "silu", "elu", "softplus"]
FUNCTIONS: tuple[Function, ...] = get_args(Function)
"""``gelu`` is x * Phi(x), ``gelu_tanh`` its usual approximation; ``silu`` is also called swish."""


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """What every layer has."""

    name: str

    inputs: tuple[int, ...] = field(default=(), kw_only=True)
    """Numbers of the values that go in; none stands for the value before."""


# Linear.


@dataclass(frozen=True, slots=True, eq=False)
class ConvLayer(_Layer):
    """A two-dimensional convolution (cross-correlation, as Keras has it) and its bias.

    A depthwise convolution has as many groups as channels; Keras' depthwise kernel [h, w, C, multiplier] is
    this one's [h, w, 1, C * multiplier].
    """

    kernel: Floats
    """Shape [height, width, channels of a group, filters]."""

    bias: Floats
    """Shape [filters]."""

    strides: Pair = (1, 1)
    padding: Margins = ((0, 0), (0, 0))
    """Zeros put around the image."""

    dilation: Pair = (1, 1)
    groups: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class DenseLayer(_Layer):
    """A matrix product of the last axis and its bias."""

    kernel: Floats
    """Shape [inputs, outputs]."""

    bias: Floats
    """Shape [outputs]."""


@dataclass(frozen=True, slots=True, eq=False)
class AffineLayer(_Layer):
    """scale * x + shift for each channel: a batch normalisation at prediction time. Both are secret."""

    scale: Floats
    """Shape [last axis]."""

    shift: Floats
    """Shape [last axis]."""


@dataclass(frozen=True, slots=True, eq=False)
class RescaleLayer(_Layer):
    """scale * x + offset with two numbers that may be public."""

    scale: float
    offset: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class AveragePoolLayer(_Layer):
    """The mean over windows; what lies in the margins is not counted, as with Keras' ``same``."""

    pool: Pair
    strides: Pair
    padding: Margins = ((0, 0), (0, 0))


@dataclass(frozen=True, slots=True, eq=False)
class AddLayer(_Layer):
    """Sum of two values or more, all of one shape."""


@dataclass(frozen=True, slots=True, eq=False)
class SubtractLayer(_Layer):
    """The first value minus the second, both of one shape."""


# Not linear.


@dataclass(frozen=True, slots=True, eq=False)
class MultiplyLayer(_Layer):
    """Product of two values or more, element by element; axes of length one are repeated, as numpy does."""


@dataclass(frozen=True, slots=True, eq=False)
class ReluLayer(_Layer):
    """max_value above it, x from the threshold on, negative_slope * (x - threshold) below, as Keras' ReLU."""

    max_value: float | None = None
    negative_slope: float = 0.0
    threshold: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class FunctionLayer(_Layer):
    """A function of every element, or softmax over the last axis."""

    kind: Function
    alpha: float = 1.0
    """Of ``elu``: alpha * (exp(x) - 1) below zero."""


@dataclass(frozen=True, slots=True, eq=False)
class MaxPoolLayer(_Layer):
    """The largest value of every window; what lies in the margins is not looked at."""

    pool: Pair
    strides: Pair
    padding: Margins = ((0, 0), (0, 0))


# Places.


@dataclass(frozen=True, slots=True, eq=False)
class FlattenLayer(_Layer):
    """Everything as one list, in C order."""


@dataclass(frozen=True, slots=True, eq=False)
class ReshapeLayer(_Layer):
    """The same values in another shape, in C order."""

    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class PadLayer(_Layer):
    """Zeros around an image."""

    padding: Margins


@dataclass(frozen=True, slots=True, eq=False)
class ConcatenateLayer(_Layer):
    """Values one after the other along an axis, which is counted without the batch; -1 is the last."""

    axis: int = -1


NetworkLayer = (
    ConvLayer
    | DenseLayer
    | AffineLayer
    | RescaleLayer
    | AveragePoolLayer
    | AddLayer
    | SubtractLayer
    | MultiplyLayer
    | ReluLayer
    | FunctionLayer
    | MaxPoolLayer
    | FlattenLayer
    | ReshapeLayer
    | PadLayer
    | ConcatenateLayer
)

_SEVERAL = AddLayer | SubtractLayer | MultiplyLayer | ConcatenateLayer


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """Layers in an order in which each comes after what it takes, and what goes into the first.

    Raises:
        UsageError: A layer takes a value that is not there yet, or the wrong number of them.
    """

    name: str
    input_shape: tuple[int, ...]
    """Of one example, without the batch."""

    layers: tuple[NetworkLayer, ...]
    input_low: float = 0.0
    input_high: float = 1.0
    """Every input value lies between these two; all bounds follow from them."""

    def __post_init__(self) -> None:
        """Refuse a graph that does not hold together."""
        for number, layer in enumerate(self.layers):
            taken = self.inputs_of(number)
            several = isinstance(layer, _SEVERAL)
            if not all(0 <= value <= number for value in taken) or (len(taken) > 1) != several:
                raise UsageError(
                    f"layer {layer.name!r} takes the values {list(taken)}; expected"
                    f" {'two or more' if several else 'one'} of 0 to {number}"
                )

    def inputs_of(self, number: int) -> tuple[int, ...]:
        """Return the numbers of the values that go into a layer."""
        return self.layers[number].inputs or (number,)
