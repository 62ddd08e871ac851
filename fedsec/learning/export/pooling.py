"""Pooling, padding and reshaping: what moves values about."""

from __future__ import annotations

from typing import Any

from fedsec.learning.backend import keras
from fedsec.learning.export.building import Site, converts
from fedsec.learning.export.linear import padding_of
from fedsec.nn.network import AveragePoolLayer, FlattenLayer, MaxPoolLayer, PadLayer, Pair

L = keras.layers

_AVERAGE = "sums are local; the division goes into the next kernel, or into a product with public numbers"
_MAXIMUM = "a tree of comparisons"
_ONLY = "channels_first"


@converts(L.AveragePooling1D, L.AveragePooling2D, on_shares=_AVERAGE, only=_ONLY)
def _average(site: Site) -> int:
    return _pool(site, AveragePoolLayer)


@converts(L.MaxPooling1D, L.MaxPooling2D, on_shares=_MAXIMUM, only=_ONLY)
def _maximum(site: Site) -> int:
    return _pool(site, MaxPoolLayer)


@converts(L.GlobalAveragePooling1D, L.GlobalAveragePooling2D, on_shares=_AVERAGE, only=_ONLY)
def _global_average(site: Site) -> int:
    return _global(site, AveragePoolLayer)


@converts(L.GlobalMaxPooling1D, L.GlobalMaxPooling2D, on_shares=_MAXIMUM, only=_ONLY)
def _global_maximum(site: Site) -> int:
    return _global(site, MaxPoolLayer)


def _pool(site: Site, kind: Any) -> int:
    layer = site.layer
    pool, strides = (_two(sizes) for sizes in (layer.pool_size, layer.strides))
    return _windows(site, kind, pool, strides)


def _global(site: Site, kind: Any) -> int:
    whole = _two(site.input_shape[:-1])
    return _windows(site, kind, whole, whole)


def _windows(site: Site, kind: Any, pool: Pair, strides: Pair) -> int:
    """Add a pooling of one or two dimensions; a line is an image of one row."""
    site.require("channels_last data", site.layer.data_format == "channels_last")
    image = site.input_shape if len(site.input_shape) == 3 else (1, *site.input_shape)
    padding = padding_of(getattr(site.layer, "padding", "valid"), image[:2], pool, strides)
    x = site.build.reshape(f"{site.name} row", site.x, site.input_shape, image)
    x = site.build.add(kind(site.name, pool, strides, padding, inputs=(x,)))
    sizes = [image[axis] + sum(padding[axis]) for axis in (0, 1)]
    places = [(sizes[axis] - pool[axis]) // strides[axis] + 1 for axis in (0, 1)]
    return site.build.reshape(f"{site.name} shape", x, (*places, image[2]), site.output_shape)


def _two(sizes: Any) -> Pair:
    return (1, int(sizes[0])) if len(sizes) == 1 else (int(sizes[0]), int(sizes[1]))


@converts(L.ZeroPadding1D, L.ZeroPadding2D, on_shares="local", only=_ONLY)
def _zero_padding(site: Site) -> int:
    layer = site.layer
    site.require("channels_last data", getattr(layer, "data_format", "channels_last") == "channels_last")
    lines = len(site.input_shape) == 2
    image, after = ((1, *shape) if lines else shape for shape in (site.input_shape, site.output_shape))
    margins = ((0, 0), tuple(layer.padding)) if lines else tuple(tuple(pair) for pair in layer.padding)
    x = site.build.reshape(f"{site.name} row", site.x, site.input_shape, image)
    x = site.build.add(PadLayer(site.name, margins, inputs=(x,)))  # type: ignore[arg-type]  # two pairs
    return site.build.reshape(f"{site.name} line", x, after, site.output_shape)


@converts(L.Flatten, on_shares="local", only=_ONLY)
def _flatten(site: Site) -> int:
    site.require("channels_last data", site.layer.data_format == "channels_last")
    return site.build.add(FlattenLayer(site.name, inputs=(site.x,)))


@converts(L.Reshape, on_shares="local", only="more than three axes")
def _reshape(site: Site) -> int:
    return site.build.reshape(site.name, site.x, site.input_shape, site.output_shape)
