"""Layers of images as steps: pooling and padding."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fedsec.errors import UnsupportedModelError
from fedsec.nn import plan, windows
from fedsec.nn.builder import Builder, Operand
from fedsec.nn.network import AveragePoolLayer, Margins, MaxPoolLayer, NetworkLayer, PadLayer, Pair


def lower_average(builder: Builder, layer: AveragePoolLayer, x: Operand) -> Operand:
    """Append a mean: sums, which are divided by their counts' least common multiple elsewhere."""
    image = expect_image(builder, layer, x)
    places = places_of(image, layer.pool, layer.strides, layer.padding)
    if min(places) < 1 or _too_wide(layer.padding, layer.pool):
        raise misfit(builder, layer, x, f"a pool of {list(layer.pool)}")
    output = (*places, image[2])
    value = builder.put(
        plan.SumPool2D(
            name=layer.name,
            inputs=(x.value,),
            input_shape=image,
            output_shape=output,
            pool=layer.pool,
            strides=layer.strides,
            padding=layer.padding,
        )
    )
    counts = _counts(image, layer)
    common = math.lcm(*(int(count) for count in counts.reshape(-1)))
    pooled = Operand(value, x.pending * common, x.product)
    if counts.min() == counts.max():
        return pooled
    # Where a window has fewer values its sum counts for more; all then have one divisor.
    factors = tuple(int(common // count) for count in np.repeat(counts, image[2], axis=-1).reshape(-1))
    value = builder.put(
        plan.Scale(name=layer.name, inputs=(value,), input_shape=output, output_shape=output, factors=factors)
    )
    return Operand(value, pooled.pending, pooled.product)


def lower_max_pool(builder: Builder, layer: MaxPoolLayer, x: Operand) -> Operand:
    """Append a maximum over windows."""
    if layer.pool == (1, 1):
        # Nothing to compare: the strides alone are those of a sum of one value.
        return lower_average(builder, AveragePoolLayer(layer.name, (1, 1), layer.strides, layer.padding), x)
    image = expect_image(builder, layer, x)
    places = places_of(image, layer.pool, layer.strides, layer.padding)
    if min(places) < 1 or _too_wide(layer.padding, layer.pool):
        raise misfit(builder, layer, x, f"a pool of {list(layer.pool)}")
    x = builder.dropped(layer.name, x)
    found = builder.interval(x)
    span = float(np.max(found.high) - np.min(found.low))
    x = builder.comparable(layer.name, x, span, builder.values[x.value].fraction_bits)
    given = builder.values[x.value]
    # A truncation moves values by two units at most, the same way.
    width = max(2, 1 + given.fraction_bits + math.frexp(span + 2.0 ** (1 - given.fraction_bits))[1])
    builder.check_window(layer.name, width, 0, (x.value, given.ring_bits, given.ring_bits), span)
    value = builder.put(
        plan.MaxPool2D(
            name=layer.name,
            inputs=(x.value,),
            input_shape=image,
            output_shape=(*places, image[2]),
            pool=layer.pool,
            strides=layer.strides,
            padding=layer.padding,
            window_bits=width,
        )
    )
    return Operand(value, x.pending)


def lower_pad(builder: Builder, layer: PadLayer, x: Operand) -> Operand:
    """Append zeros around an image."""
    image = expect_image(builder, layer, x)
    height, width = (image[axis] + sum(layer.padding[axis]) for axis in (0, 1))
    value = builder.put(
        plan.Pad2D(
            name=layer.name,
            inputs=(x.value,),
            input_shape=image,
            output_shape=(height, width, image[2]),
            padding=layer.padding,
        )
    )
    return Operand(value, x.pending, x.product)


def places_of(image: tuple[int, ...], reach: Pair, strides: Pair, padding: Margins) -> Pair:
    """Return how many windows fit into a padded image along rows and columns; 0 or less if none does."""
    rows, columns = (windows.positions(image[i] + sum(padding[i]), reach[i], strides[i]) for i in (0, 1))
    return rows, columns


def expect_image(builder: Builder, layer: NetworkLayer, x: Operand) -> tuple[int, ...]:
    """Return the shape of a layer's input.

    Raises:
        UnsupportedModelError: If it is no image.
    """
    shape = builder.shape(x)
    if len(shape) != 3:
        raise misfit(builder, layer, x, "a layer for images")
    return shape


def misfit(builder: Builder, layer: NetworkLayer, x: Operand, what: str) -> UnsupportedModelError:
    """Return the error for a layer that does not fit its input."""
    return UnsupportedModelError(f"layer {layer.name!r} gets {list(builder.shape(x))} and is {what}")


def _too_wide(padding: Margins, pool: Pair) -> bool:
    """Whether a window could lie in the margin alone."""
    return any(max(padding[axis]) >= pool[axis] for axis in (0, 1))


def _counts(image: tuple[int, ...], layer: AveragePoolLayer) -> npt.NDArray[np.int64]:
    """Return how many values of the image each window has, shape [H', W', 1]."""
    ones = windows.pad(np.ones((1, *image[:2], 1), dtype=np.int64), layer.padding)
    counts: npt.NDArray[np.int64] = windows.sum_pool(ones, layer.pool, layer.strides)[0]
    return counts
