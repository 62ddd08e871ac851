"""Convolutions in the ring against numpy, and the compiled patches against their plain twin."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from fedsec.errors import UsageError
from fedsec.mpc.patches import Window, convolve, convolve_boxes, convolved_shape, patches, patches_plain
from fedsec.ring import Ring, fresh_stream

WINDOWS = [
    Window(),
    Window(strides=(2, 1)),
    Window(dilation=(1, 2)),
    Window(dilation=(2, 1), strides=(1, 2)),
    Window(padding=((1, 0), (0, 2))),
    Window(box=(2, 2), strides=(2, 2)),
    Window(box=(1, 3), box_step=(1, 2), padding=((0, 1), (2, 1))),
    Window((2, 2), (2, 2), ((2, 2), (2, 2)), (3, 2), (1, 2)),
    Window(padding=((3, 3), (3, 3)), box=(2, 2)),
]


def _direct(images: Any, kernel: Any, window: Window) -> Any:
    """Add up product by product, modulo 2^64, of which every ring is a remainder."""
    (top, bottom), (left, right) = window.padding
    padded = np.pad(images.astype(np.uint64), ((0, 0), (top, bottom), (left, right), (0, 0)))
    rows, columns = (padded.shape[1 + i] - window.box_step[i] * (window.box[i] - 1) for i in (0, 1))
    summed = np.zeros((len(images), rows, columns, images.shape[3]), dtype=np.uint64)
    for y, x in product(*map(range, window.box)):
        down, across = y * window.box_step[0], x * window.box_step[1]
        summed += padded[:, down : down + rows, across : across + columns]
    shape = convolved_shape(summed.shape, kernel.shape, window.strides, window.dilation)
    result = np.zeros(shape, dtype=np.uint64)
    depth, filters = kernel.shape[2], kernel.shape[3] // (images.shape[3] // kernel.shape[2])
    for place in product(range(shape[1]), range(shape[2]), range(shape[3])):
        group = place[2] // filters
        for y, x, c in product(*map(range, kernel.shape[:3])):
            row = place[0] * window.strides[0] + y * window.dilation[0]
            column = place[1] * window.strides[1] + x * window.dilation[1]
            value = summed[:, row, column, group * depth + c] * np.uint64(kernel[y, x, c, place[2]])
            result[:, place[0], place[1], place[2]] += value
    return result.astype(images.dtype)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("bits", [8, 32, 64])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolution_is_the_sum_of_products(window: Window, bits: int, groups: int) -> None:
    stream = fresh_stream()
    images = stream.words((2, 7, 8, 4), Ring(bits))
    kernel = stream.words((2, 3, 4 // groups, 4), Ring(bits))

    assert np.array_equal(convolve_boxes(images, kernel, window), _direct(images, kernel, window))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("channels", [1, 3, 20])
def test_compiled_patches_are_those_of_numpy(window: Window, channels: int) -> None:
    for bits in (32, 64):
        images = fresh_stream().words((3, 9, 8, channels), Ring(bits))
        rows, shape = patches(images, (2, 3, channels, 5), window)
        plain, plain_shape = patches_plain(images, (2, 3, channels, 5), window)

        assert np.array_equal(rows, plain)
        assert shape == plain_shape


def test_images_that_do_not_lie_in_one_piece() -> None:
    images = fresh_stream().words((2, 8, 9, 6))[:, 1:, ::2, 1:4]
    kernel = fresh_stream().words((3, 2, 3, 2))

    assert np.array_equal(convolve(images, kernel), _direct(images, kernel, Window()))


@pytest.mark.parametrize(
    ("kernel", "window"),
    [((3, 3, 3, 4), Window()), ((9, 1, 2, 2), Window()), ((2, 2, 2, 2), Window(strides=(0, 1)))],
)
def test_what_does_not_fit_is_refused(kernel: tuple[int, ...], window: Window) -> None:
    images = np.zeros((1, 8, 8, 2), dtype=np.uint32)

    with pytest.raises(UsageError, match=r"a convolution needs|does not fit"):
        convolve_boxes(images, np.zeros(kernel, dtype=np.uint32), window)
