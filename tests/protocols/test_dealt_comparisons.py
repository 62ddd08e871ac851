"""Dealt products, maxima, piecewise linear functions and places: value, cost, view and teeth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsec.mpc.dealt.comparisons import (
    dealt_max_pool,
    dealt_maximum,
    dealt_multiply,
    dealt_piecewise_linear,
    dealt_reduce_max,
    dealt_top_k,
)
from fedsec.mpc.dealt.piecewise import Pieces
from fedsec.ring import RING32, RING64, signed
from fedsec.testing import Secret, check_protocol

pytest_plugins = ["fedsec.testing"]


def _small(**more: Any) -> Secret:
    """Return a secret of which any two differ by less than 2^10."""
    return Secret(low=-500, high=500, **more)


KINKED = Pieces(knots=(-300, 0, 211), slopes=(3, -2, 40), first_slope=-7, offset=12345)


def _kinked(x: Any) -> Any:
    x = signed(x)
    bends = zip(KINKED.slopes, KINKED.knots, strict=True)
    y = KINKED.first_slope * x + KINKED.offset + sum(slope * np.maximum(0, x - at) for slope, at in bends)
    return y.astype(RING64.dtype)


def _floor_or_one_less(result: Any, expected: Any) -> bool:
    return bool(np.isin(signed(result) - signed(expected), (0, -1)).all())


@check_protocol(dealt_multiply, inputs={"x": Secret(), "y": Secret()})
def test_multiply(x: Any, y: Any) -> Any:
    return x * y


@check_protocol(dealt_multiply, inputs={"x": Secret((2, 1)), "y": Secret((1,))}, ring=RING32)
def test_multiply_broadcasts_behind_the_batch(x: Any, y: Any) -> Any:
    return x * y[:, np.newaxis]


@check_protocol(dealt_maximum, inputs={"x": _small(), "y": _small(), "window_bits": 11})
def test_maximum(x: Any, y: Any, window_bits: int) -> Any:
    return np.maximum(signed(x), signed(y)).astype(x.dtype)


@check_protocol(dealt_maximum, inputs={"x": _small(), "y": _small(), "window_bits": 11}, ring=RING32)
def test_maximum_in_the_32_bit_ring(x: Any, y: Any, window_bits: int) -> Any:
    return np.maximum(signed(x), signed(y)).astype(x.dtype)


@check_protocol(
    dealt_max_pool,
    inputs={"x": Secret((1, 3, 1), low=-7, high=7), "pool": (1, 2), "strides": (1, 1), "window_bits": 5},
    ring=RING32,
)
def test_max_pool_of_overlapping_windows(x: Any, pool: Any, strides: Any, window_bits: int) -> Any:
    x = signed(x)
    return np.maximum(x[:, :, 1:], x[:, :, :-1]).astype(RING32.dtype)


@pytest.mark.slow
@check_protocol(dealt_reduce_max, inputs={"x": Secret((3,), low=-7, high=7), "window_bits": 5})
def test_reduce_max(x: Any, window_bits: int) -> Any:
    return signed(x).max(axis=-1, keepdims=True).astype(x.dtype)


@pytest.mark.slow
@check_protocol(
    dealt_piecewise_linear,
    inputs={"x": _small(), "pieces": KINKED, "slope_bits": 0, "window_bits": 11, "bits": 0},
)
def test_piecewise_linear_without_truncation(x: Any, **public: Any) -> Any:
    return _kinked(x)


@check_protocol(
    dealt_piecewise_linear,
    inputs={
        "x": _small(fraction_bits=4),
        "pieces": KINKED,
        "slope_bits": 0,
        "window_bits": 11,
        "bits": 3,
    },
    agrees=_floor_or_one_less,
)
def test_piecewise_linear(x: Any, **public: Any) -> Any:
    return (signed(_kinked(x)) >> 3).astype(RING64.dtype)


@check_protocol(dealt_top_k, inputs={"x": Secret((3,), low=-4, high=3), "k": 1, "bits": 0, "window_bits": 4})
def test_top_k_with_many_ties(x: Any, **public: Any) -> Any:
    return np.argsort(-signed(x), axis=1, kind="stable")[:, :1].astype(RING64.dtype)
