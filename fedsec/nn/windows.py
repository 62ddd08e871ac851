"""Windows over images, for floats and ring elements alike: padding, box sums, sum pooling, convolution.

Images have the shape [N, height, width, channels]. Sums and padding are linear with public constants, so
that on shares they are local.
"""

from __future__ import annotations

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


def box_sum(images: Image, box: Pair, step: int = 1) -> Image:
    """Sum, at every place, the box of values that starts there.

    Args:
        images: Shape [N, H, W, C].
        box: Height and width of the box, in values.
        step: Distance of neighbouring values in the box.

    Returns:
        Shape [N, H - step*(box[0]-1), W - step*(box[1]-1), C].
    """
    for axis in (0, 1):
        size = images.shape[axis + 1] - step * (box[axis] - 1)
        total = _slice(images, axis, 0, size).copy()
        for k in range(1, box[axis]):
            total += _slice(images, axis, k * step, size)
        images = total
    return images


def sum_pool(images: Image, pool: Pair, strides: Pair) -> Image:
    """Sum over windows of ``pool`` values that start every ``strides`` values and lie wholly inside."""
    return box_sum(images, pool)[:, :: strides[0], :: strides[1]]  # type: ignore[return-value]  # a view of it


def conv2d(
    images: npt.NDArray[np.float64], kernel: npt.NDArray[np.float64], stride: int = 1
) -> npt.NDArray[np.float64]:
    """Convolve in the clear, without padding.

    Args:
        images: Shape [N, H, W, C].
        kernel: Shape [h, w, C, F].
        stride: Of rows and columns alike.

    Returns:
        Shape [N, (H - h) // stride + 1, (W - w) // stride + 1, F].
    """
    windows = np.lib.stride_tricks.sliding_window_view(images, kernel.shape[:2], axis=(1, 2))
    windows = windows[:, ::stride, ::stride]
    product: npt.NDArray[np.float64] = np.tensordot(windows, kernel, axes=((4, 5, 3), (0, 1, 2)))
    return product


def positions(size: int, window: int, stride: int) -> int:
    """Return how many windows fit into ``size`` values; 0 or less if none does."""
    return (size - window) // stride + 1


def _slice(images: Image, axis: int, start: int, size: int) -> Image:
    index = [slice(None)] * images.ndim
    index[axis + 1] = slice(start, start + size)
    return images[tuple(index)]  # type: ignore[return-value]  # a view of it
