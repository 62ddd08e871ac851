"""Convolutions of ring elements at one party, in whatever ring; protocols mask them before they send."""

from __future__ import annotations

from functools import cache, lru_cache
from types import ModuleType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedsec.errors import UsageError
from fedsec.ring import RING32, RingArray, kernels, ring_of

Sizes = tuple[int, int]
"""Along rows and columns."""

Margins = tuple[Sizes, Sizes]
"""Zeros before and after, along rows and columns."""

Numbers = npt.NDArray[np.int64]

NO_MARGINS: Margins = ((0, 0), (0, 0))


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


class Window(NamedTuple):
    """How a kernel moves over images: zeros around them first, then sums over boxes, then the kernel."""

    strides: Sizes = (1, 1)
    dilation: Sizes = (1, 1)
    padding: Margins = NO_MARGINS
    box: Sizes = (1, 1)
    box_step: Sizes = (1, 1)


def convolve(
    images: RingArray, kernel: RingArray, strides: Sizes = (1, 1), dilation: Sizes = (1, 1)
) -> RingArray:
    """Convolve modulo 2^k, without padding, as Keras' Conv2D does; see ``convolve_boxes``."""
    return convolve_boxes(images, kernel, Window(strides, dilation))


def convolve_boxes(images: RingArray, kernel: RingArray, window: Window) -> RingArray:
    """Put zeros around images, sum a box around every place, convolve: all modulo 2^k.

    Args:
        images: Shape [N, H, W, C].
        kernel: Of the same ring, shape [h, w, C / groups, F]; with C / groups = 1 it is depthwise.
        window: How the kernel moves.

    Returns:
        Shape [N, H', W', F], a new array.

    Raises:
        UsageError: The shapes do not fit.
        InputError: The rings differ.
    """
    if images.shape[3] != kernel.shape[2]:
        summed = box_sums(images, window)
        shape = convolved_shape(summed.shape, kernel.shape, window.strides, window.dilation)
        return _grouped(summed, kernel, shape, window)
    rows, shape = patches(images, kernel.shape, window)
    return kernels.matmul(rows, kernel.reshape(-1, kernel.shape[3])).reshape(shape)


@cache
def compiled() -> ModuleType:
    """Return the compiled kernels, loaded at the first call."""
    from fedsec.mpc import _compiled_patches  # noqa: PLC0415 - numba is loaded at the first call

    return _compiled_patches


class _Shapes(NamedTuple):
    """What the compiled convolution of given shapes needs: arrays as matrices, and scratch memory."""

    images: tuple[int, ...]
    kernel: tuple[int, ...]
    result: tuple[int, int, int, int]
    rows: tuple[int, ...]
    summed: tuple[int, ...]
    gathered: tuple[int, ...]
    sizes: Numbers


class Convolution:
    """``convolve_boxes`` with one window, as one call of a kernel: for whom every microsecond counts."""

    def __init__(self, window: Window) -> None:
        """Take how kernels move over images."""
        self._window = window
        self._shapes: dict[tuple[int, ...], _Shapes] = {}

    def __call__(self, images: RingArray, kernel: RingArray) -> RingArray:
        """Convolve; see ``convolve_boxes``."""
        if images.itemsize < RING32.element_bytes or images.shape[3] != kernel.shape[2]:
            return convolve_boxes(images, kernel, self._window)
        key = images.shape + kernel.shape
        shapes = self._shapes.get(key)
        if shapes is None:
            shapes = self._shapes[key] = _shapes_of(images.shape, kernel.shape, self._window)
        dtype = images.dtype
        product: RingArray = np.empty(shapes.rows, dtype)
        compiled().convolve(
            np.ascontiguousarray(images).reshape(shapes.images),
            shapes.sizes,
            kernel.reshape(shapes.kernel),
            (np.empty(shapes.summed, dtype), np.empty(shapes.gathered, dtype)),
            product,
        )
        return product.reshape(shapes.result)


def _shapes_of(images: tuple[int, ...], kernel: tuple[int, ...], window: Window) -> _Shapes:
    number, height, width, channels = images
    (rows, columns), places, sizes = _geometry(images[1:], kernel, window)
    count, terms = number * places[0] * places[1], kernel[0] * kernel[1] * channels
    return _Shapes(
        images=(number, height, width * channels),
        kernel=(terms, kernel[3]),
        result=(number, *places, kernel[3]),
        rows=(count, kernel[3]),
        summed=(rows, columns * channels),
        gathered=(count, terms),
        sizes=sizes,
    )


def patches(
    images: RingArray, kernel: tuple[int, ...], window: Window
) -> tuple[RingArray, tuple[int, int, int, int]]:
    """Return what lies under a kernel at each place, and the shape of the convolution.

    Args:
        images: Shape [N, H, W, C].
        kernel: Shape of the kernel, [h, w, C, F].
        window: How it moves.

    Returns:
        Rows [N * H' * W', h * w * C], and [N, H', W', F].

    Raises:
        UsageError: The shapes do not fit.
    """
    if ring_of(images).bits < RING32.bits:
        return patches_plain(images, kernel, window)
    shapes = _shapes_of(images.shape, kernel, window)
    gathered: RingArray = np.empty(shapes.gathered, images.dtype)
    compiled().gather(
        np.ascontiguousarray(images).reshape(shapes.images),
        shapes.sizes,
        np.empty(shapes.summed, images.dtype),
        gathered,
    )
    return gathered, shapes.result


def patches_plain(
    images: RingArray, kernel: tuple[int, ...], window: Window
) -> tuple[RingArray, tuple[int, int, int, int]]:
    """Gather patches with numpy: the reference that ``patches`` is tested against."""
    summed = box_sums(images, window)
    shape = convolved_shape(summed.shape, kernel, window.strides, window.dilation)
    height, width = (window.dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1))
    views = np.lib.stride_tricks.sliding_window_view(summed, (height, width), axis=(1, 2))
    views = views[
        :, :: window.strides[0], :: window.strides[1], :, :: window.dilation[0], :: window.dilation[1]
    ]
    rows = views.transpose(0, 1, 2, 4, 5, 3).reshape(-1, kernel[0] * kernel[1] * images.shape[3])
    return rows, shape


def box_sums(images: RingArray, window: Window) -> RingArray:
    """Return images with zeros around them, every value replaced by the sum of the box that starts there."""
    if window.padding != NO_MARGINS:
        images = np.pad(images, ((0, 0), *window.padding, (0, 0)))
    if window.box == (1, 1):
        return images
    rows, columns = (images.shape[1 + i] - window.box_step[i] * (window.box[i] - 1) for i in (0, 1))
    total = np.zeros((len(images), rows, columns, images.shape[3]), dtype=images.dtype)
    for top in range(0, window.box[0] * window.box_step[0], window.box_step[0]):
        for left in range(0, window.box[1] * window.box_step[1], window.box_step[1]):
            total += images[:, top : top + rows, left : left + columns]
    return total


@lru_cache(maxsize=512)
def _geometry(
    image: tuple[int, ...], kernel: tuple[int, ...], window: Window
) -> tuple[Sizes, Sizes, Numbers]:
    """Return the sizes of the summed image and of the result, and all that the kernel needs to know."""
    (top, bottom), (left, right) = window.padding
    box, box_step = window.box, window.box_step
    rows = image[0] + top + bottom - box_step[0] * (box[0] - 1)
    columns = image[1] + left + right - box_step[1] * (box[1] - 1)
    shape = (1, rows, columns, image[2])
    places = convolved_shape(shape, kernel, window.strides, window.dilation)[1:3]
    sizes = (image[2], top, left, *box, *box_step, *places, *kernel[:2], *window.strides, *window.dilation)
    return (rows, columns), (places[0], places[1]), np.array(sizes, dtype=np.int64)


def _grouped(
    images: RingArray, kernel: RingArray, shape: tuple[int, int, int, int], window: Window
) -> RingArray:
    """Convolve each group of channels with its own filters: one product of arrays for each kernel element."""
    number, rows, columns, filters = shape
    depth = kernel.shape[2]
    groups = images.shape[3] // depth
    total = np.zeros((number, rows, columns, groups, filters // groups), dtype=images.dtype)
    for down in range(kernel.shape[0]):
        for across in range(kernel.shape[1]):
            top, left = down * window.dilation[0], across * window.dilation[1]
            under = images[:, top :: window.strides[0], left :: window.strides[1]][:, :rows, :columns]
            under = under.reshape(number, rows, columns, groups, depth, 1)
            weights = kernel[down, across].reshape(depth, groups, filters // groups)
            for channel in range(depth):
                total += under[..., channel, :] * weights[channel]
    return total.reshape(shape)
