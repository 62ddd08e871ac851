"""Linear layers on two secrets, against numpy and Keras' definition of a convolution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsec.errors import UsageError
from fedsec.mpc import conv2d, matmul, simulate, sum_pool
from fedsec.ring import RING64, fresh_stream
from fedsec.sharing import replicated
from fedsec.testing import Secret, check_protocol

pytest_plugins = ["fedsec.testing"]


def plain_conv2d(x: Any, w: Any, strides: tuple[int, int] = (1, 1)) -> Any:
    """Valid convolution as Keras defines it, one output pixel at a time."""
    height, width = w.shape[:2]
    rows = range(0, x.shape[1] - height + 1, strides[0])
    columns = range(0, x.shape[2] - width + 1, strides[1])
    return np.stack(
        [
            np.stack(
                [
                    np.sum(x[:, r : r + height, c : c + width, :, None] * w, axis=(1, 2, 3), dtype=x.dtype)
                    for c in columns
                ],
                axis=1,
            )
            for r in rows
        ],
        axis=1,
    )


def plain_sum_pool(x: Any, pool: int) -> Any:
    rows, columns = x.shape[1] // pool, x.shape[2] // pool
    cut = x[:, : rows * pool, : columns * pool]
    return np.sum(cut.reshape(-1, rows, pool, columns, pool, x.shape[3]), axis=(2, 4), dtype=x.dtype)


@check_protocol(matmul, inputs={"x": Secret((3,)), "w": Secret((3, 2), per_lane=False)})
def test_matmul(x: Any, w: Any) -> Any:
    return x @ w


@check_protocol(
    conv2d,
    inputs={"x": Secret((2, 4, 1)), "w": Secret((2, 2, 1, 1), per_lane=False), "strides": (1, 2)},
)
def test_conv2d(x: Any, w: Any, strides: tuple[int, int]) -> Any:
    return plain_conv2d(x, w, strides)


def test_sum_pool_is_local_and_drops_what_does_not_fill_a_block() -> None:
    images = np.arange(2 * 5 * 5 * 3, dtype=RING64.dtype).reshape(2, 5, 5, 3)
    shares = replicated.share(images, fresh_stream(), fraction_bits=3)

    pooled = [sum_pool(share, (2, 2), (2, 2)) for share in shares]

    assert np.array_equal(replicated.reconstruct(pooled), plain_sum_pool(images, 2))
    assert pooled[0].fraction_bits == 3


def test_shapes_that_do_not_fit_are_refused_before_anything_is_sent() -> None:
    stream = fresh_stream()
    x = replicated.share(stream.words((2, 3)), stream)
    image = replicated.share(stream.words((1, 2, 2, 1)), stream)
    kernel = replicated.share(stream.words((3, 3, 1, 1)), stream)

    with pytest.raises(UsageError, match=r"\[M, K\] and \[K, N\]"):
        simulate(lambda party: matmul(party, x[party.id], x[party.id]))
    with pytest.raises(UsageError, match="does not fit images"):
        simulate(lambda party: conv2d(party, image[party.id], kernel[party.id]))
    with pytest.raises(UsageError, match="needs shapes"):
        simulate(lambda party: conv2d(party, x[party.id], kernel[party.id]))
    with pytest.raises(UsageError, match="do not fit images"):
        sum_pool(image[0], (3, 3), (1, 1))
