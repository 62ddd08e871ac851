"""Linear layers: matrix products, convolutions of every kind, batch normalisation, rescaling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsec.learning.backend import keras
from fedsec.learning.export.activations import activated
from fedsec.learning.export.building import Floats, Site, bias_of, converts, floats
from fedsec.nn.network import AffineLayer, ConvLayer, DenseLayer, Pair, RescaleLayer

L = keras.layers

_ONE_MAP = "one convolution with a secret kernel"
_ON_IMAGES = "channels_first"


@converts(L.Dense, on_shares="one product with a secret matrix, on the last axis", only="quantized layers")
def _dense(site: Site) -> int:
    _require_floats(site)
    kernel = floats(site.layer.kernel)
    layer = DenseLayer(site.name, kernel, bias_of(site.layer, kernel.shape[1]), inputs=(site.x,))
    return activated(site, site.build.add(layer))


@converts(L.Conv1D, L.Conv2D, on_shares=_ONE_MAP, only=f"{_ON_IMAGES}, quantized layers")
def _conv(site: Site) -> int:
    _require_floats(site)
    kernel = floats(site.layer.kernel)
    return _convolve(site, kernel, site.layer.groups)


@converts(L.DepthwiseConv1D, L.DepthwiseConv2D, on_shares=f"{_ONE_MAP}, with a group for each channel",
          only=_ON_IMAGES)  # fmt: skip
def _depthwise(site: Site) -> int:
    kernel = floats(site.layer.kernel)
    channels = site.input_shape[-1]
    # [h, w, C, multiplier] to [h, w, 1, C * multiplier]: output channels are sorted by input channel.
    return _convolve(site, kernel.reshape(*kernel.shape[:-2], 1, -1), channels)


@converts(L.SeparableConv1D, L.SeparableConv2D, on_shares=f"joined into {_ONE_MAP}", only=_ON_IMAGES)
def _separable(site: Site) -> int:
    # Nothing is between the two maps, so they are one: products are cheap on shares, rounds are not.
    depthwise, pointwise = floats(site.layer.depthwise_kernel), floats(site.layer.pointwise_kernel)
    mixed = pointwise.reshape(*depthwise.shape[-2:], -1)
    return _convolve(site, np.einsum("...cm,cmf->...cf", depthwise, mixed), 1)


def _convolve(site: Site, kernel: Floats, groups: int) -> int:
    """Add a convolution of one or two dimensions and its activation; a line is an image of one row."""
    layer = site.layer
    site.require("channels_last data", layer.data_format == "channels_last")
    lines = kernel.ndim == 3
    strides, dilation = _two(layer.strides), _two(layer.dilation_rate)
    if lines:
        kernel = kernel[np.newaxis]
    image = (1, *site.input_shape) if lines else site.input_shape
    reached = [(kernel.shape[axis] - 1) * dilation[axis] + 1 for axis in (0, 1)]
    padding = padding_of(layer.padding, image[:2], reached, strides)
    x = site.build.reshape(f"{site.name} row", site.x, site.input_shape, image)
    bias = bias_of(layer, kernel.shape[-1])
    x = site.build.add(ConvLayer(site.name, kernel, bias, strides, padding, dilation, groups, inputs=(x,)))
    after = (1, *site.output_shape) if lines else site.output_shape
    return activated(site, site.build.reshape(f"{site.name} line", x, after, site.output_shape))


def padding_of(
    padding: str, sizes: Sequence[int], windows: Sequence[int], strides: Sequence[int]
) -> tuple[Pair, Pair]:
    """Return the margins of Keras' ``padding``: (top, bottom), (left, right).

    Args:
        padding: ``valid``, ``same`` or, for lines, ``causal``.
        sizes: Height and width of the image.
        windows: Height and width of what a window reaches over.
        strides: Of rows and columns.
    """
    if padding == "valid":
        return ((0, 0), (0, 0))
    if padding == "causal":
        return ((0, 0), (windows[1] - 1, 0))
    rows, columns = (_same(sizes[axis], windows[axis], strides[axis]) for axis in (0, 1))
    return rows, columns


def _same(size: int, window: int, stride: int) -> Pair:
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def _two(sizes: Sequence[int]) -> Pair:
    """Return sizes along rows and columns; a line has one row."""
    return (1, int(sizes[0])) if len(sizes) == 1 else (int(sizes[0]), int(sizes[1]))


def _require_floats(site: Site) -> None:
    # A quantized layer keeps integers under the same name, and scales elsewhere.
    whole = getattr(site.layer, "quantization_mode", None) is None
    site.require("float parameters", whole, "share the model as it was before quantize()")


@converts(
    L.BatchNormalization,
    on_shares="folded into the linear layer before it, else a depthwise 1x1 convolution",
    only="axes other than the last",
    example="BatchNormalization after Conv2D",
)
def _batch_norm(site: Site) -> int:
    layer, channels = site.layer, site.input_shape[-1]
    site.require("axis -1", layer.axis in {-1, len(site.input_shape)})
    scale = 1 / np.sqrt(floats(layer.moving_variance) + layer.epsilon)
    scale = scale * floats(layer.gamma) if layer.scale else scale
    shift = (floats(layer.beta) if layer.center else np.zeros(channels)) - floats(layer.moving_mean) * scale
    return site.build.add(AffineLayer(site.name, scale, shift, inputs=(site.x,)))


@converts(L.Normalization, on_shares="as BatchNormalization", only="axes other than the last, `invert`")
def _normalization(site: Site) -> int:
    layer = site.layer
    site.require("invert=False", not layer.invert)
    mean, variance = floats(layer.mean), floats(layer.variance)
    channels = site.input_shape[-1]
    site.require("one mean a channel (axis=-1) or one for all (axis=None)", mean.size in {1, channels})
    deviation = np.maximum(np.sqrt(variance.reshape(-1)), keras.config.epsilon())
    scale = np.broadcast_to(1 / deviation, channels).copy()
    return site.build.add(AffineLayer(site.name, scale, -mean.reshape(-1) * scale, inputs=(site.x,)))


@converts(L.Rescaling, on_shares="public numbers, no message of its own")
def _rescaling(site: Site) -> int:
    scale, offset = floats(site.layer.scale), floats(site.layer.offset)
    if scale.ndim == offset.ndim == 0:
        return site.build.add(RescaleLayer(site.name, float(scale), float(offset), inputs=(site.x,)))
    channels = site.input_shape[-1]
    site.require("one number, or one a channel", {scale.size, offset.size} <= {1, channels})
    each = [np.broadcast_to(numbers.reshape(-1), channels).copy() for numbers in (scale, offset)]
    return site.build.add(AffineLayer(site.name, *each, inputs=(site.x,)))
