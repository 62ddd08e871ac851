"""Dealt products, maxima, functions and places: all masks of small rings, all shapes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from fedsec.errors import UsageError
from fedsec.mpc import simulate
from fedsec.mpc.dealt import DEALER
from fedsec.mpc.dealt.comparisons import (
    dealt_max_pool,
    dealt_maximum,
    dealt_multiply,
    dealt_piecewise_linear,
    dealt_reduce_max,
    dealt_top_k,
)
from fedsec.mpc.dealt.maximum import LargestGate, MaximumGate, last_axis, windows_of
from fedsec.mpc.dealt.piecewise import Pieces, PiecewiseGate
from fedsec.mpc.dealt.products import MultiplyGate
from fedsec.mpc.dealt.ranking import LargestAtOnceGate, TopKGate, largest_of_last_axis
from fedsec.mpc.party import Layout
from fedsec.ring import RING32, RING64, Ring, fresh_stream, signed
from fedsec.sharing import replicated
from fedsec.sharing.replicated import RepShare

RING8 = Ring(8)
Integers = npt.NDArray[np.int64]


def _shared(values: Any, ring: Ring = RING64, fraction_bits: int = 0) -> Any:
    return replicated.share(np.asarray(values).astype(ring.dtype), fresh_stream(), fraction_bits)


def _run(protocol: Callable[..., RepShare], *shares: Any, ring: Ring = RING64, **public: Any) -> Integers:
    done = simulate(
        lambda party: protocol(party, *(share[party.id] for share in shares), **public), ring=ring
    )
    return signed(replicated.reconstruct(done.results)).astype(np.int64)


def _integers(seed: int, *shape: int, size: int = 1000) -> Integers:
    return np.random.default_rng(seed).integers(-size, size, shape)


def _every_value_under_every_mask(values: Integers) -> tuple[Integers, Any]:
    """Return all pairs of a value and a mask of the 8-bit ring, and the shares of the values."""
    value, mask = (grid.reshape(-1, 1) for grid in np.meshgrid(values, np.arange(256)))
    first = np.random.default_rng(0).integers(0, 256, value.shape)
    components = [part.astype(np.uint8) for part in (mask - first, first, value - mask)]
    shares = [RepShare(components[i], components[(i + 1) % 3]) for i in range(3)]
    return value, shares


@pytest.mark.parametrize("window_bits", [2, 3, 5, 7, 8])
def test_a_maximum_is_right_under_every_mask_of_the_8_bit_ring(window_bits: int) -> None:
    reach = 1 << (window_bits - 1)
    difference, x = _every_value_under_every_mask(np.arange(-reach, reach))
    y = _shared(np.zeros(difference.shape), RING8)

    z = _run(dealt_maximum, x, y, ring=RING8, window_bits=window_bits)

    assert np.array_equal(z, np.maximum(difference, 0))


def test_places_are_right_for_all_pairs_under_many_masks() -> None:
    reach = 4
    pairs = np.stack(np.meshgrid(*[np.arange(-reach, reach)] * 2), axis=-1).reshape(-1, 2)
    pairs = np.tile(pairs, (256, 1))

    # The lowest of two bits is dropped: what truncation may round either way is no tie and no order.
    z = _run(dealt_top_k, _shared(4 * pairs, RING8), ring=RING8, k=2, bits=1, window_bits=6)
    exact = _run(dealt_top_k, _shared(pairs, RING8), ring=RING8, k=2, bits=0, window_bits=4)

    expected = np.argsort(-pairs, axis=1, kind="stable")
    apart = pairs[:, 0] != pairs[:, 1]
    assert np.array_equal(z[apart], expected[apart])
    assert np.array_equal(np.sort(z), np.sort(expected))
    assert np.array_equal(exact, expected)


@pytest.mark.parametrize(("classes", "k"), [(2, 1), (10, 1), (10, 3), (7, 7), (300, 2)])
def test_places_of_the_largest(classes: int, k: int) -> None:
    values = _integers(1, 6, classes, size=40)

    z = _run(dealt_top_k, _shared(values), k=k, bits=0, window_bits=8)

    # Equal values are many: the lowest index comes first, as in numpy's stable order.
    assert np.array_equal(z, np.argsort(-values, axis=1, kind="stable")[:, :k])


@pytest.mark.parametrize(
    ("x", "y"), [((3,), (3,)), ((4, 1, 2), (5, 2)), ((1,), (2, 3, 4)), ((2, 3, 4), (4,)), ((5,), (1,))]
)
def test_products_broadcast_behind_the_batch(x: tuple[int, ...], y: tuple[int, ...]) -> None:
    first, second = _integers(2, 3, *x), _integers(3, 3, *y)

    z = _run(dealt_multiply, _shared(first), _shared(second))

    assert np.array_equal(z, np.stack([a * b for a, b in zip(first, second, strict=True)]))


def test_a_square_is_a_product_of_one_masked_value_with_itself() -> None:
    values = _integers(4, 3, 5)
    share = _shared(values)

    assert np.array_equal(_run(dealt_multiply, share, share), values**2)


@pytest.mark.parametrize("ring", [RING32, RING64])
@pytest.mark.parametrize(
    ("pool", "strides", "levels"),
    [
        ((2, 2), (2, 2), 2),
        ((2, 2), (1, 1), 2),
        ((3, 2), (3, 2), 3),
        ((3, 3), (2, 2), 4),
        ((1, 2), (2, 1), 1),
        ((2, 3), (1, 4), 3),
        ((7, 6), (1, 1), 6),
        ((7, 6), (7, 6), 6),
    ],
)
def test_max_pools(ring: Ring, pool: tuple[int, int], strides: tuple[int, int], levels: int) -> None:
    images = _integers(5, 2, 7, 6, 3)

    z = _run(dealt_max_pool, _shared(images, ring), ring=ring, pool=pool, strides=strides, window_bits=12)

    found = sliding_window_view(images, pool, axis=(1, 2))[:, :: strides[0], :: strides[1]]
    assert np.array_equal(z, found.max(axis=(4, 5)))
    gate = LargestGate(DEALER, Layout((7, 6, 3), ring), windows_of(pool, strides), window_bits=12)
    assert gate.rounds == 2 * levels
    assert gate.shape == z.shape[1:]


def test_overlapping_windows_share_their_comparisons() -> None:
    source = Layout((25, 25, 16), RING32)
    gate = LargestGate(DEALER, source, windows_of((2, 2), (1, 1)), window_bits=12)

    # One word of the ring opened a comparison: 24 x 25 down the columns, then 24 x 24 across.
    words = [layout for layout in gate.fields.masks if layout.ring == RING32]
    assert sum(int(np.prod(layout.shape)) for layout in words) == (24 * 25 + 24 * 24) * 16


@pytest.mark.parametrize("ring", [RING32, RING64])
@pytest.mark.parametrize(
    ("shape", "rounds"), [((2,), 3), ((10,), 3), ((3, 5), 3), ((2, 2, 16), 3), ((17,), 10)]
)
def test_reduce_max_keeps_the_axis(ring: Ring, shape: tuple[int, ...], rounds: int) -> None:
    values = _integers(6, 4, *shape)
    values[..., 0] = values[..., -1]

    z = _run(dealt_reduce_max, _shared(values, ring), ring=ring, window_bits=12)

    assert np.array_equal(z, values.max(axis=-1, keepdims=True))
    assert largest_of_last_axis(DEALER, Layout(shape, ring), window_bits=12).rounds == rounds


PIECES = Pieces(knots=(-500, -1, 0, 700), slopes=(3, -2, 100, -7), first_slope=-5, offset=-12345)


def _function(x: Integers) -> Integers:
    bends = zip(PIECES.slopes, PIECES.knots, strict=True)
    y: Integers = PIECES.first_slope * x + PIECES.offset + sum(s * np.maximum(0, x - k) for s, k in bends)
    return y


@pytest.mark.parametrize("ring", [RING32, RING64])
def test_piecewise_linear_functions(ring: Ring) -> None:
    x = np.concatenate([_integers(7, 50, 4), np.array([[-500, -1, 0, 700], [-501, -2, 1, 701]])])

    exact = _run(dealt_piecewise_linear, _shared(x), pieces=PIECES, slope_bits=0, window_bits=12, bits=0)
    cut = _run(
        dealt_piecewise_linear, _shared(x, fraction_bits=4), pieces=PIECES, slope_bits=3, window_bits=12,
        bits=5, ring=ring,
    )  # fmt: skip

    assert np.array_equal(exact, _function(x))
    assert set((cut - (_function(x) >> 5)).ravel().tolist()) <= {0, -1}


def test_knots_share_their_tables() -> None:
    source = Layout((5,), RING64)

    def tables(knots: int) -> int:
        pieces = Pieces(tuple(range(knots)), (1,) * knots, 0, 0)
        gate = PiecewiseGate(DEALER, source, pieces, window_bits=18, bits=0, ring=RING64)
        # Tables and digits are of n planes, payloads of 2^(n-1) words and one more.
        return sum(layout.size_bytes for layout in gate.fields.dealt if layout.shape[0] == 3)

    assert tables(1) == tables(20) > 0


def test_what_does_not_fit_is_refused() -> None:
    one, pair = Layout((3,), RING32), Layout((2,), RING64)

    refused: list[tuple[Callable[[], object], str]] = [
        (partial(MultiplyGate, DEALER, one, Layout((3,), RING64)), "one ring"),
        (partial(MultiplyGate, DEALER, one, Layout((2,), RING32)), "do not broadcast"),
        (partial(MaximumGate, DEALER, one, window_bits=33), "does not fit"),
        (partial(MaximumGate, DEALER, pair, window_bits=60), "window of 2 to"),
        (partial(LargestGate, DEALER, Layout((2, 2, 1), RING32), windows_of((1, 1), (2, 2)), window_bits=9),
         "two candidates"),
        (partial(LargestGate, DEALER, one, (), window_bits=9), "a gather for each tree"),
        (partial(LargestGate, DEALER, Layout((1,), RING32), (last_axis,), window_bits=9), "two candidates"),
        (partial(LargestAtOnceGate, DEALER, Layout((1,), RING32), window_bits=9), "two candidates"),
        (partial(PiecewiseGate, DEALER, pair, PIECES, window_bits=12, bits=0, ring=RING32), "not truncated"),
        (partial(Pieces, (1, 2), (3,), 0, 0), "for each of at least one knot"),
        (partial(TopKGate, DEALER, one, 4, bits=0, window_bits=9), "list of two values or more"),
        (partial(TopKGate, DEALER, one, 1, bits=24, window_bits=9), "does not fit"),
    ]  # fmt: skip
    for make, words in refused:
        with pytest.raises(UsageError, match=words):
            make()


@pytest.mark.parametrize("bits", [0, 3])
def test_final_gates_leave_additive_shares_and_save_a_round(bits: int) -> None:
    source = Layout((4,), RING64)

    def gates(*, final: bool) -> list[Any]:
        return [
            MultiplyGate(1, source, source, final=final),
            MaximumGate(1, source, window_bits=9, final=final),
            LargestGate(1, source, (last_axis,), window_bits=9, final=final),
            LargestAtOnceGate(1, source, window_bits=9, final=final),
            PiecewiseGate(1, source, PIECES, window_bits=12, bits=bits, ring=RING64, final=final),
            TopKGate(1, source, 2, bits=0, window_bits=9, final=final),
        ]

    for opened, final in zip(gates(final=False), gates(final=True), strict=True):
        assert final.rounds == opened.rounds - 1
        assert final.shape == opened.shape
        assert final.fields.mask_bytes < opened.fields.mask_bytes
