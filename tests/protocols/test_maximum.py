"""Largest values against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from fedsec.errors import UsageError
from fedsec.mpc import max_pool, maximum, reduce_max, simulate
from fedsec.ring import RING32, RING64, Ring, fresh_stream, signed
from fedsec.sharing import replicated
from fedsec.testing import Secret, check_protocol

pytest_plugins = ["fedsec.testing"]


@check_protocol(
    maximum, inputs={"a": Secret(low=-8, high=7), "b": Secret(low=-8, high=7), "window_bits": 5}, ring=RING32
)
def test_maximum(a: Any, b: Any, window_bits: int) -> Any:
    return np.maximum(signed(a), signed(b)).view(a.dtype)


@check_protocol(reduce_max, inputs={"x": Secret((2,), low=-4, high=3), "window_bits": 4})
def test_reduce_max(x: Any, window_bits: int) -> Any:
    return signed(x).max(axis=-1, keepdims=True).view(x.dtype)


@check_protocol(
    max_pool,
    inputs={
        "x": Secret((1, 2, 1), low=-4, high=3),
        "pool": (1, 2),
        "strides": (1, 1),
        "window_bits": 4,
    },
)
def test_max_pool(x: Any, pool: Any, strides: Any, window_bits: int) -> Any:
    return signed(x).max(axis=(1, 2), keepdims=True).view(x.dtype)


@pytest.mark.parametrize("ring", [RING32, RING64], ids=str)
@pytest.mark.parametrize(
    ("pool", "strides"),
    [((2, 2), (2, 2)), ((2, 2), (1, 1)), ((3, 2), (2, 1)), ((1, 5), (3, 3)), ((6, 7), (1, 1))],
)
def test_windows_of_any_shape_at_their_declared_cost(
    pool: tuple[int, int], strides: tuple[int, int], ring: Ring
) -> None:
    stream = fresh_stream()
    x = (stream.words((2, 6, 7, 3), ring) >> ring.dtype.type(ring.bits - 10)) - ring.dtype.type(512)
    shares = replicated.share(x, stream, fraction_bits=4)

    done = simulate(lambda party: max_pool(party, shares[party.id], pool, strides, 11), record=True)

    windows = sliding_window_view(signed(x), pool, axis=(1, 2))[:, :: strides[0], :: strides[1]]
    assert np.array_equal(signed(replicated.reconstruct(done.results)), windows.max(axis=(4, 5)))
    assert done.cost == max_pool.cost(shares[0], pool, strides, 11)
    assert done.results[0].fraction_bits == 4


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10])
def test_the_largest_of_any_number_of_values_at_its_declared_cost(count: int) -> None:
    stream = fresh_stream()
    x = stream.words((5, count)) >> np.uint64(50)
    shares = replicated.share(x, stream)

    done = simulate(lambda party: reduce_max(party, shares[party.id], 15), record=True)

    assert np.array_equal(replicated.reconstruct(done.results), x.max(axis=1, keepdims=True))
    assert done.cost == reduce_max.cost(shares[0], 15)


def test_what_has_no_largest_value_is_refused() -> None:
    empty = replicated.share(np.zeros((2, 0), dtype=RING64.dtype), fresh_stream())

    with pytest.raises(UsageError, match="no largest one"):
        simulate(lambda party: reduce_max(party, empty[party.id], 5))
    with pytest.raises(UsageError, match="do not fit images"):
        simulate(lambda party: max_pool(party, empty[party.id], (2, 2), (1, 1), 5))
