"""Convolutions of ring elements at one party, in whatever ring; protocols mask them before they send."""

from __future__ import annotations

import numpy as np

from fedsec.errors import UsageError
from fedsec.ring import RingArray, kernels

Sizes = tuple[int, int]
"""Along rows and columns."""


def convolved_shape(
    images: tuple[int, ...], kernel: tuple[int, ...], strides: Sizes = (1, 1), dilation: Sizes = (1, 1)
) -> tuple[int, int, int, int]:
    """Return the shape of a convolution without padding.

    Args:
        images: [N, H, W, C].
        kernel: [h, w, C / groups, F], where groups divides F.
        strides: Distance of neighbouring results.
        dilation: Distance of neighbouring values under the kernel.

    Raises:
        UsageError: The shapes do not fit.
    """
    if len(images) != 4 or len(kernel) != 4 or images[3] % kernel[2] or kernel[3] % (images[3] // kernel[2]):
        raise UsageError(
            f"a convolution needs shapes [N, H, W, C] and [h, w, C / groups, F], got {images} and {kernel}"
        )
    rows, columns = (images[1 + i] - dilation[i] * (kernel[i] - 1) - 1 for i in (0, 1))
    if min(rows, columns) < 0 or min(*strides, *dilation) < 1:
        raise UsageError(
            f"a kernel of {kernel[:2]} with strides {strides} and dilation {dilation} does not fit images of "
            f"{images[1:3]}"
        )
    return images[0], rows // strides[0] + 1, columns // strides[1] + 1, kernel[3]


def convolve(
    images: RingArray, kernel: RingArray, strides: Sizes = (1, 1), dilation: Sizes = (1, 1)
) -> RingArray:
    """Convolve modulo 2^k, without padding, as Keras' Conv2D does.

    Args:
        images: Shape [N, H, W, C].
        kernel: Of the same ring, shape [h, w, C / groups, F]; with C / groups = 1 it is depthwise.
        strides: Distance of neighbouring results along rows and columns.
        dilation: Distance of neighbouring values under the kernel.

    Returns:
        Shape [N, H', W', F], a new array.

    Raises:
        UsageError: The shapes do not fit.
        InputError: The rings differ.
    """
    shape = convolved_shape(images.shape, kernel.shape, strides, dilation)
    if images.shape[3] == kernel.shape[2]:
        rows = patches(images, kernel.shape[:2], shape[1:3], strides, dilation)
        return kernels.matmul(rows, kernel.reshape(-1, kernel.shape[3])).reshape(shape)
    return _grouped(images, kernel, shape, strides, dilation)


def patches(
    images: RingArray, window: tuple[int, ...], places: tuple[int, ...], strides: Sizes, dilation: Sizes
) -> RingArray:
    """Return what lies under a kernel at each place as rows [N * H' * W', h * w * C].

    Args:
        images: Shape [N, H, W, C].
        window: Height and width of the kernel.
        places: H' and W'.
        strides: Distance of places.
        dilation: Distance of values under the kernel.
    """
    images = np.ascontiguousarray(images)
    number, _height, _width, channels = images.shape
    if window == (1, 1) and strides == (1, 1):
        return images.reshape(-1, channels)
    image, row, column, channel = images.strides
    view: RingArray = np.ndarray(
        (number, *places, *window, channels),
        images.dtype,
        images.data,
        strides=(
            image, row * strides[0], column * strides[1], row * dilation[0], column * dilation[1], channel,
        ),
    )  # fmt: skip
    return view.reshape(-1, window[0] * window[1] * channels)


def _grouped(
    images: RingArray, kernel: RingArray, shape: tuple[int, int, int, int], strides: Sizes, dilation: Sizes
) -> RingArray:
    """Convolve each group of channels with its own filters: one product of arrays for each kernel element."""
    number, rows, columns, filters = shape
    depth = kernel.shape[2]
    groups = images.shape[3] // depth
    total = np.zeros((number, rows, columns, groups, filters // groups), dtype=images.dtype)
    for down in range(kernel.shape[0]):
        for across in range(kernel.shape[1]):
            top, left = down * dilation[0], across * dilation[1]
            under = images[:, top :: strides[0], left :: strides[1]][:, :rows, :columns]
            under = under.reshape(number, rows, columns, groups, depth, 1)
            weights = kernel[down, across].reshape(depth, groups, filters // groups)
            for channel in range(depth):
                total += under[..., channel, :] * weights[channel]
    return total.reshape(shape)
