"""A trained network in the clear: layers with their parameters as float arrays, before it is planned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Pair = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class ConvLayer:
    """A two-dimensional convolution (cross-correlation, as Keras has it) and its bias."""

    name: str
    kernel: Floats
    """Shape [height, width, channels, filters]."""

    bias: Floats
    """Shape [filters]."""

    stride: int = 1
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    """Zeros put around the image: (top, bottom), (left, right)."""


@dataclass(frozen=True, slots=True, eq=False)
class DenseLayer:
    """A matrix product and its bias."""

    name: str
    kernel: Floats
    """Shape [inputs, outputs]."""

    bias: Floats
    """Shape [outputs]."""


@dataclass(frozen=True, slots=True)
class AveragePoolLayer:
    """The mean over windows that lie wholly inside the image."""

    name: str
    pool: Pair
    strides: Pair


@dataclass(frozen=True, slots=True)
class ReluLayer:
    """max(0, x)."""

    name: str


@dataclass(frozen=True, slots=True)
class FlattenLayer:
    """An image as one list, in C order."""

    name: str


NetworkLayer = ConvLayer | DenseLayer | AveragePoolLayer | ReluLayer | FlattenLayer


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """Layers one after the other, and what goes into the first."""

    name: str
    input_shape: tuple[int, ...]
    """Of one example, without the batch."""

    layers: tuple[NetworkLayer, ...]
    input_low: float = 0.0
    input_high: float = 1.0
    """Every input value lies between these two; all bounds follow from them."""
