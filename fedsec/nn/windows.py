"""Windows over images, for floats and ring elements alike: padding, box sums, sum pooling, convolution.

Images have the shape [N, height, width, channels]. Sums and padding are linear with public constants, so
that on shares they are local.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Pair = tuple[int, int]
Image = TypeVar("Image", bound=npt.NDArray[Any])


def pad(images: Image, padding: tuple[Pair, Pair]) -> Image:
    """Put zeros around every image: (top, bottom), (left, right)."""
    if padding == ((0, 0), (0, 0)):
        return images
    return np.pad(images, ((0, 0), *padding, (0, 0)))  # type: ignore[return-value]  # dtype and rank stay


def repeat_edge(images: Image, padding: tuple[Pair, Pair]) -> Image:
    """Repeat every image's border outwards: the largest value of a window that reaches over it stays."""
    if padding == ((0, 0), (0, 0)):
        return images
    return np.pad(images, ((0, 0), *padding, (0, 0)), mode="edge")  # type: ignore[return-value]  # as above


def box_sum(images: Image, box: Pair, step: Pair = (1, 1)) -> Image:
    """Sum, at every place, the box of values that starts there.

    Args:
        images: Shape [N, H, W, C].
        box: Height and width of the box, in values.
        step: Distance of neighbouring values in the box, along rows and columns.

    Returns:
        Shape [N, H - step[0]*(box[0]-1), W - step[1]*(box[1]-1), C].
    """
    for axis in (0, 1):
        size = images.shape[axis + 1] - step[axis] * (box[axis] - 1)
        total = _slice(images, axis, 0, size).copy()
        for k in range(1, box[axis]):
            total += _slice(images, axis, k * step[axis], size)
        images = total
    return images


def sum_pool(images: Image, pool: Pair, strides: Pair) -> Image:
    """Sum over windows of ``pool`` values that start every ``strides`` values and lie wholly inside."""
    return box_sum(images, pool)[:, :: strides[0], :: strides[1]]  # type: ignore[return-value]  # a view of it


def patches(images: Image, size: Pair, strides: Pair, dilation: Pair = (1, 1)) -> Image:
    """Return a view of the values under every window that lies wholly inside.

    Args:
        images: Shape [N, H, W, C].
        size: Height and width of the window, in values.
        strides: Distance of neighbouring windows.
        dilation: Distance of neighbouring values in a window.

    Returns:
        Shape [N, H', W', C, *size].
    """
    extent = tuple(dilation[axis] * (size[axis] - 1) + 1 for axis in (0, 1))
    views = np.lib.stride_tricks.sliding_window_view(images, extent, axis=(1, 2))
    rows = views[:, :: strides[0], :: strides[1]]
    return rows[..., :: dilation[0], :: dilation[1]]  # type: ignore[return-value]  # a view of it


def conv2d(
    images: npt.NDArray[np.float64],
    kernel: npt.NDArray[np.float64],
    strides: Pair = (1, 1),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> npt.NDArray[np.float64]:
    """Convolve in the clear, without padding.

    Args:
        images: Shape [N, H, W, C].
        kernel: Shape [h, w, C / groups, F].
        strides: Distance of neighbouring places, along rows and columns.
        dilation: Distance of neighbouring values under the kernel.
        groups: Group g of the channels gives group g of the filters.

    Returns:
        Shape [N, H', W', F].
    """
    views = patches(images, (kernel.shape[0], kernel.shape[1]), strides, dilation)
    parts = [
        np.tensordot(channels, filters, axes=((4, 5, 3), (0, 1, 2)))
        for channels, filters in zip(
            np.split(views, groups, axis=3), np.split(kernel, groups, axis=3), strict=True
        )
    ]
    product: npt.NDArray[np.float64] = np.concatenate(parts, axis=3)
    return product


def positions(size: int, window: int, stride: int) -> int:
    """Return how many windows fit into ``size`` values; 0 or less if none does."""
    return (size - window) // stride + 1


def _slice(images: Image, axis: int, start: int, size: int) -> Image:
    index = [slice(None)] * images.ndim
    index[axis + 1] = slice(start, start + size)
    return images[tuple(index)]  # type: ignore[return-value]  # a view of it


def spread(factors: Image, shape: tuple[int, ...]) -> Image:
    """Return factors of a ``Scale`` step in a shape that broadcasts with examples of ``shape``."""
    if factors.size == math.prod(shape):
        return factors.reshape(shape)  # type: ignore[return-value]  # dtype stays
    return factors


def with_rank(examples: Image, rank: int) -> Image:
    """Put axes of length one behind the batch axis, so that examples broadcast as without the batch."""
    missing = rank - (examples.ndim - 1)
    return examples.reshape(len(examples), *(1,) * missing, *examples.shape[1:])  # type: ignore[return-value]
