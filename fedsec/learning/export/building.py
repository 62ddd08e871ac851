"""What the converters of layers share: the network so far, the register of converters, refusals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsec.errors import UnsupportedModelError
from fedsec.learning.export.graph import Call, Shape
from fedsec.nn.network import NetworkLayer, ReshapeLayer

Floats = npt.NDArray[np.float64]


class Builder:
    """The layers of a network so far.

    Attributes:
        layers: In order; layer i gives value i + 1.
    """

    def __init__(self) -> None:
        self.layers: list[NetworkLayer] = []

    def add(self, layer: NetworkLayer) -> int:
        """Append a layer whose inputs are there; return the number of its value."""
        self.layers.append(layer)
        return len(self.layers)

    def reshape(self, name: str, x: int, before: Shape, after: Shape) -> int:
        """Give a value another shape, if it is another one."""
        if before == after:
            return x
        return self.add(ReshapeLayer(name, after, inputs=(x,)))


@dataclass(frozen=True, slots=True)
class Site:
    """Where a converter works: one call, on values that are converted already."""

    build: Builder
    call: Call
    inputs: tuple[int, ...]
    is_last: bool
    """Whether the call's value is the model's answer."""

    @property
    def layer(self) -> Any:
        """The Keras layer or operation."""
        return self.call.operation

    @property
    def name(self) -> str:
        """Unique in the model."""
        return self.call.name

    @property
    def x(self) -> int:
        """The only input."""
        return self.inputs[0]

    @property
    def input_shape(self) -> Shape:
        """Of the only input."""
        return self.call.input_shapes[0]

    @property
    def output_shape(self) -> Shape:
        """Of what Keras makes of it."""
        return self.call.output_shape

    def require(self, what: str, fits: bool, instead: str = "change it and train again") -> None:
        """Refuse the layer unless ``fits``.

        Raises:
            UnsupportedModelError: Naming the layer, what it must have and what to do.
        """
        if not fits:
            raise UnsupportedModelError(
                f"layer {self.name!r} ({type(self.layer).__name__}) is supported only with {what}: {instead}"
            )


Converter = Callable[[Site], int]
"""Adds what a call computes to the network; returns the number of its value."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One kind of layer: how it is converted and what a reader should know of it."""

    names: tuple[str, ...]
    """As in ``keras.layers`` or of operations, for people."""

    convert: Converter
    on_shares: str
    """How it is computed on shares."""

    only: str
    """What of the layer is not supported; empty if all is."""

    example: str
    """The name of its small model in ``examples``."""


_PAGE_ORDER = [f"{__package__}.{name}" for name in ("linear", "pooling", "activations", "merging")]

_BY_TYPE: dict[type, Converter] = {}
_ENTRIES: list[Entry] = []

BY_TYPE: Mapping[type, Converter] = MappingProxyType(_BY_TYPE)
"""Converters by the exact class: a subclass may compute something else under the same parameters."""


def converts(
    *types: type, on_shares: str, only: str = "", names: tuple[str, ...] = (), example: str = ""
) -> Callable[[Converter], Converter]:
    """Register a converter.

    Args:
        types: Classes of layers or operations.
        on_shares: How the layer is computed on shares, for the page of layers.
        only: What of it is refused, for the same page.
        names: For the page; by default those of the classes.
        example: By default the last name.
    """

    def register(convert: Converter) -> Converter:
        _BY_TYPE.update(dict.fromkeys(types, convert))
        shown = names or tuple(cls.__name__ for cls in types)
        _ENTRIES.append(Entry(shown, convert, on_shares, only, example or shown[-1]))
        return convert

    return register


def entries() -> tuple[Entry, ...]:
    """Return all kinds of layers, sorted as a reader looks for them."""
    return tuple(sorted(_ENTRIES, key=lambda entry: _PAGE_ORDER.index(entry.convert.__module__)))


def floats(variable: Any) -> Floats:
    """Return a Keras variable as float64."""
    return np.asarray(variable, dtype=np.float64)


def bias_of(layer: Any, size: int) -> Floats:
    """Return a layer's bias, or zeros for a layer without one."""
    return floats(layer.bias) if layer.use_bias else np.zeros(size)
