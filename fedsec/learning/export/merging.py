"""Layers with several inputs, and the arithmetic of Keras tensors such as ``x + y`` and ``x / 255``."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real

from fedsec.errors import UnsupportedModelError
from fedsec.learning.backend import keras
from fedsec.learning.export.building import Converter, Site, converts
from fedsec.nn.network import (
    AddLayer,
    ConcatenateLayer,
    MultiplyLayer,
    ReluLayer,
    RescaleLayer,
    SubtractLayer,
)

L = keras.layers

_ONE_SHAPE = "inputs of different shapes"


@converts(L.Add, on_shares="local", only=_ONE_SHAPE)
def _add(site: Site) -> int:
    _require_one_shape(site)
    return site.build.add(AddLayer(site.name, inputs=site.inputs))


@converts(L.Subtract, on_shares="local", only=_ONE_SHAPE)
def _subtract(site: Site) -> int:
    _require_one_shape(site)
    return site.build.add(SubtractLayer(site.name, inputs=site.inputs))


@converts(L.Average, on_shares="local sum, product with a public number", only=_ONE_SHAPE)
def _average(site: Site) -> int:
    total = _add(site)
    return site.build.add(RescaleLayer(f"{site.name} mean", 1 / len(site.inputs), inputs=(total,)))


@converts(L.Maximum, on_shares="b + relu(a - b)", only=_ONE_SHAPE)
def _maximum(site: Site) -> int:
    return _extremum(site, lambda a, b: (a, b), AddLayer)


@converts(L.Minimum, on_shares="b - relu(b - a)", only=_ONE_SHAPE)
def _minimum(site: Site) -> int:
    return _extremum(site, lambda a, b: (b, a), SubtractLayer)


def _extremum(
    site: Site,
    order: Callable[[int, int], tuple[int, int]],
    join: type[AddLayer] | type[SubtractLayer],
) -> int:
    _require_one_shape(site)
    first, *rest = site.inputs
    for place, other in enumerate(rest, 2):
        name = f"{site.name} of {place}"
        difference = site.build.add(SubtractLayer(f"{name} difference", inputs=order(other, first)))
        above = site.build.add(ReluLayer(f"{name} relu", inputs=(difference,)))
        first = site.build.add(join(name, inputs=(first, above)))
    return first


@converts(L.Multiply, on_shares="one product of secrets for each further input, broadcast")
def _multiply(site: Site) -> int:
    rank = len(site.output_shape)
    values = [
        # Keras puts missing axes in front.
        site.build.reshape(f"{site.name} axes {place}", x, shape, (1,) * (rank - len(shape)) + shape)
        for place, (x, shape) in enumerate(zip(site.inputs, site.call.input_shapes, strict=True))
    ]
    return site.build.add(MultiplyLayer(site.name, inputs=tuple(values)))


@converts(L.Concatenate, on_shares="local")
def _concatenate(site: Site) -> int:
    axis = site.layer.axis
    if axis < 0:
        axis += len(site.output_shape) + 1
    site.require("an axis other than the batch", axis > 0)
    return site.build.add(ConcatenateLayer(site.name, axis - 1, inputs=site.inputs))


def _require_one_shape(site: Site) -> None:
    shapes = [list(shape) for shape in site.call.input_shapes]
    same = all(shape == shapes[0] for shape in shapes)
    site.require(f"inputs of one shape, got {shapes}", same, "reshape or pad them to one shape before")


# Arithmetic of tensors: an operation takes two tensors, or one and a number.

_numpy = keras.src.ops.numpy


def _arithmetic(
    *types: type, shown: str, on_shares: str, only: str = "arrays of constants"
) -> Callable[[Converter], Converter]:
    return converts(*types, names=(shown,), on_shares=on_shares, only=only)


@_arithmetic(_numpy.Add, shown="x + y", on_shares="as Add, or a public number")
def _plus(site: Site) -> int:
    return _scaled(site, 1.0, _number(site)) if len(site.inputs) == 1 else _add(site)


@_arithmetic(_numpy.Subtract, shown="x - y", on_shares="as Subtract, or a public number")
def _minus(site: Site) -> int:
    if len(site.inputs) == 2:
        return _subtract(site)
    number = _number(site)
    return _scaled(site, 1.0, -number) if site.call.operands[0] is None else _scaled(site, -1.0, number)


@_arithmetic(_numpy.Multiply, shown="x * y", on_shares="as Multiply, or a public number")
def _times(site: Site) -> int:
    return _scaled(site, _number(site), 0.0) if len(site.inputs) == 1 else _multiply(site)


@_arithmetic(
    _numpy.Divide,
    _numpy.TrueDivide,
    shown="x / number",
    on_shares="a public number",
    only="division by a tensor",
)
def _divided(site: Site) -> int:
    by_number = len(site.inputs) == 1 and site.call.operands[0] is None
    site.require("a number below the line", by_number, "a quotient of secrets is not supported")
    return _scaled(site, 1 / _number(site), 0.0)


@_arithmetic(_numpy.Negative, shown="-x", on_shares="local", only="")
def _negative(site: Site) -> int:
    return _scaled(site, -1.0, 0.0)


def _number(site: Site) -> float:
    numbers = [operand for operand in site.call.operands if isinstance(operand, Real)]
    if len(numbers) != 1:
        raise UnsupportedModelError(
            f"operation {site.name!r} takes a constant that is no single number: use a layer with parameters,"
            " for example Dense, Rescaling or BatchNormalization"
        )
    return float(numbers[0])


def _scaled(site: Site, scale: float, offset: float) -> int:
    return site.build.add(RescaleLayer(site.name, scale, offset, inputs=(site.x,)))
