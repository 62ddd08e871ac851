"""Linear layers on two secrets, against numpy and Keras' definition of a convolution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsec.errors import UsageError
from fedsec.mpc import (
    Cost,
    Pair,
    Party,
    conv2d,
    conv2d_pair,
    matmul,
    matmul_pair,
    protocol,
    share_pair,
    simulate,
    sum_pool,
)
from fedsec.ring import RING32, RING64, Ring, fresh_stream
from fedsec.sharing import replicated
from fedsec.sharing.replicated import RepShare
from fedsec.testing import Secret, check_protocol

pytest_plugins = ["fedsec.testing"]


def plain_conv2d(
    x: Any, w: Any, strides: tuple[int, int] = (1, 1), dilation: tuple[int, int] = (1, 1)
) -> Any:
    """Valid convolution as Keras defines it, one output value at a time; groups follow from the channels."""
    height, width, depth, filters = w.shape
    groups = x.shape[3] // depth
    rows = range(0, x.shape[1] - dilation[0] * (height - 1), strides[0])
    columns = range(0, x.shape[2] - dilation[1] * (width - 1), strides[1])
    z = np.zeros((len(x), len(rows), len(columns), filters), dtype=x.dtype)
    for i, r in enumerate(rows):
        for j, c in enumerate(columns):
            under = x[:, r :: dilation[0], c :: dilation[1]][:, :height, :width]
            for f in range(filters):
                group = f // (filters // groups)
                seen = under[..., group * depth : (group + 1) * depth]
                z[:, i, j, f] = np.sum(seen * w[..., f], axis=(1, 2, 3), dtype=x.dtype)
    return z


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


@check_protocol(
    conv2d,
    inputs={
        "x": Secret((1, 3, 2)),
        "w": Secret((1, 2, 1, 2), per_lane=False),
        "strides": (1, 1),
        "dilation": (1, 2),
    },
    ring=RING32,
)
def test_conv2d_with_dilation_and_groups(
    x: Any, w: Any, strides: tuple[int, int], dilation: tuple[int, int]
) -> Any:
    return plain_conv2d(x, w, strides, dilation)


@protocol(cost=lambda x, w: matmul_pair.cost(x, w) + _shared(x, w), source="test")
def _matmul_and_share(party: Party, x: RepShare, w: RepShare) -> RepShare:
    """Multiply two matrices.

    Cost:      1 round.
    Security:  ``matmul_pair`` and ``share_pair``.
    """
    return share_pair(party, matmul_pair(party, x, w))


def _shared(x: RepShare, w: RepShare) -> Cost:
    # Party 0's message does not wait for the others': it takes no round of its own.
    return Cost(0, (8 * x.shape[0] * w.shape[1], 0, 0))


@check_protocol(_matmul_and_share, inputs={"x": Secret((3,)), "w": Secret((3, 2), per_lane=False)})
def test_matmul_pair(x: Any, w: Any) -> Any:
    return x @ w


@pytest.mark.parametrize("ring", [RING32, RING64], ids=str)
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_conv2d_pair_of_any_ring_plus_a_bias(ring: Ring, groups: int) -> None:
    stream = fresh_stream()
    images, bias = stream.words((2, 9, 8, 6), ring), stream.words(12, ring)
    kernel = stream.words((3, 2, 6 // groups, 12), ring)
    x, w, b = (replicated.share(words, stream) for words in (images, kernel, bias))

    def program(party: Party) -> RepShare:
        pair = conv2d_pair(party, x[party.id], w[party.id], (2, 1), 2)
        return share_pair(party, pair.plus(party, b[party.id]))

    done = simulate(program, record=True)

    expected = plain_conv2d(images, kernel, (2, 1), (2, 2)) + bias
    assert np.array_equal(replicated.reconstruct(done.results), expected)
    assert done.cost.rounds == 1
    assert done.cost.total_bytes == 3 * expected.nbytes


def test_a_product_of_two_rings_and_a_sum_of_two_kinds_are_refused() -> None:
    stream = fresh_stream()
    x = replicated.share(stream.words((2, 3)), stream)
    w = replicated.share(stream.words((3, 2), RING32), stream)

    with pytest.raises(UsageError, match="one ring"):
        simulate(lambda party: matmul_pair(party, x[party.id], w[party.id]))
    with pytest.raises(UsageError, match="equal kinds"):
        simulate(lambda party: Pair(x[0].own, fraction_bits=1).plus(party, x[party.id]))


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
