"""ReLU and other piecewise linear functions, against numpy on the same integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fedsec.errors import UsageError
from fedsec.mpc import Pair, Party, piecewise_linear, relu, share_pair, simulate, truncated_relu
from fedsec.ring import RING32, RING64, Ring, RingArray, fresh_stream, signed
from fedsec.sharing import replicated
from fedsec.sharing.replicated import RepShare
from fedsec.testing import Secret, check_protocol

pytest_plugins = ["fedsec.testing"]

RING8, RING16 = Ring(8), Ring(16)


def floor_or_one_less_or_zero(result: RingArray, expected: RingArray) -> bool:
    """Of a truncated ReLU: T, or T - 1, and 0 where that is negative."""
    kept, one_less = np.maximum(signed(expected), 0), np.maximum(signed(expected) - 1, 0)
    return bool(np.all((signed(result) == kept) | (signed(result) == one_less)))


@check_protocol(relu, inputs={"x": Secret(low=-8, high=7, window_bits=4), "window_bits": 4})
def test_relu(x: Any, window_bits: int) -> Any:
    return np.maximum(signed(x), 0)


@pytest.mark.parametrize("window_bits", range(2, 9))
def test_every_value_of_every_window_of_the_8_bit_ring(window_bits: int) -> None:
    half = 1 << (window_bits - 1)
    values, x_2 = np.meshgrid(np.arange(-half, half, dtype=np.int8), np.arange(256, dtype=np.uint8))
    secret = values.ravel().astype(np.uint8)
    parts = [fresh_stream().words(secret.shape, RING8)]
    parts += [np.asarray(secret - parts[0] - x_2.ravel()), x_2.ravel()]
    shares = [replicated.RepShare(parts[i], parts[(i + 1) % 3]) for i in range(3)]

    done = simulate(lambda party: relu(party, shares[party.id], window_bits), ring=RING8)

    assert np.array_equal(signed(replicated.reconstruct(done.results)), np.maximum(signed(secret), 0))


@check_protocol(
    truncated_relu,
    inputs={"x": Secret(low=-(2**16), high=2**16 - 1, fraction_bits=13), "bits": 13, "window_bits": 5},
    agrees=floor_or_one_less_or_zero,
)
def test_truncated_relu(x: Any, bits: int, window_bits: int) -> Any:
    return (signed(x) >> bits).view(x.dtype)


@check_protocol(
    truncated_relu,
    inputs={
        "x": Secret(low=-(2**30), high=2**31 - 1, fraction_bits=14),
        "bits": 14,
        "window_bits": 18,
        "ignore_bits": 5,
    },
    agrees=lambda result, expected: bool(
        np.all((result == expected) | (result == expected - 1) | ((result == 0) & (signed(expected) <= 32)))
    ),
    ring=RING32,
)
def test_truncated_relu_with_a_coarse_sign_in_the_whole_32_bit_ring(
    x: Any, bits: int, window_bits: int, ignore_bits: int
) -> Any:
    return (signed(x) >> bits).view(x.dtype)


@check_protocol(
    truncated_relu,
    inputs={
        "x": Secret(low=256 - 2**20, high=2**20 - 1, fraction_bits=8),
        "bits": 8,
        "window_bits": 13,
        "ring": RING64,
    },
    agrees=floor_or_one_less_or_zero,
    ring=RING32,
)
def test_truncated_relu_into_a_larger_ring(x: Any, bits: int, window_bits: int, ring: Ring) -> Any:
    return (signed(x) >> bits).astype(np.int64).view(np.uint64)


def _every_sharing(secret: npt.NDArray[np.int64]) -> tuple[RepShare, RepShare, RepShare]:
    """Shares of the 8-bit ring: every secret with every sum of x_0 and x_1; x_0 is random."""
    values = np.repeat(secret.astype(np.int8).view(np.uint8), 256)
    known_to_0 = np.tile(np.arange(256, dtype=np.uint8), len(secret))
    x_0 = fresh_stream().words(values.shape, RING8)
    parts = [x_0, np.asarray(known_to_0 - x_0), np.asarray(values - known_to_0)]
    first, second, third = (RepShare(parts[i], parts[(i + 1) % 3], 7) for i in range(3))
    return first, second, third


def _as_pair(party_id: int, x: RepShare) -> Pair:
    known = (np.asarray(x.own + x.next), x.next, x.own)[party_id]
    return Pair(known, x.fraction_bits)


@pytest.mark.parametrize("ring", [RING8, RING16, RING32], ids=str)
@pytest.mark.parametrize("bits", range(6))
def test_every_value_of_every_window_of_the_8_bit_ring_truncated(bits: int, ring: Ring) -> None:
    for window_bits in range(2, 9 - bits):
        for ignore_bits in range(window_bits - 1):
            _check_every_value(bits, window_bits, ignore_bits, ring)


def _check_every_value(bits: int, window_bits: int, ignore_bits: int, ring: Ring) -> None:
    largest = 1 << (window_bits - 1 + bits)
    # A negative value may come one lower, and without the ignored bits: it must still fit the window.
    secret = np.arange(-largest + (1 << (bits + ignore_bits)), largest)
    shares = _every_sharing(secret)

    def program(party: Party) -> RepShare:
        pair = _as_pair(party.id, shares[party.id])
        return truncated_relu(party, pair, bits, window_bits, ignore_bits, ring=ring)

    result = signed(replicated.reconstruct(simulate(program).results)).astype(np.int64)

    floor = np.repeat(secret, 256) >> bits
    kept = (result == np.maximum(floor, 0)) | (result == np.maximum(floor - 1, 0))
    ignored = (result == 0) & (floor <= 1 << ignore_bits)
    assert np.all(kept | ignored)
    assert np.all(result[floor < 0] == 0)


def test_a_pair_costs_one_word_more_and_can_be_shared() -> None:
    stream = fresh_stream()
    values = stream.words(70) >> np.uint64(40)
    shares = replicated.share(values, stream, fraction_bits=3)

    done = simulate(lambda party: relu(party, _as_pair(party.id, shares[party.id]), 30), record=True)
    shared = simulate(lambda party: share_pair(party, _as_pair(party.id, shares[party.id])), record=True)

    assert np.array_equal(replicated.reconstruct(done.results), values)
    assert np.array_equal(replicated.reconstruct(shared.results), values)
    pair = _as_pair(0, shares[0])
    assert done.cost == relu.cost(pair, 30)
    assert done.cost.total_bytes == relu.cost(shares[0], 30).total_bytes + 8 * 70
    assert shared.cost == share_pair.cost(pair)
    assert shared.results[0].fraction_bits == 3


def plain_piecewise(x: Any, knots: Any, slopes: Any, first_slope: int, offset: int) -> Any:
    """The function on integers, modulo 2^k."""
    values = signed(x).astype(object)
    total = first_slope * values + offset
    for knot, slope in zip(knots, slopes, strict=True):
        total = total + slope * np.maximum(values - knot, 0)
    return (total % 2 ** (8 * x.dtype.itemsize)).astype(x.dtype)


PIECES: dict[str, Any] = {
    "knots": (-7, 0, 5),
    "slopes": (3, -9, 2),
    "first_slope": -4,
    "offset": 1000,
    "slope_bits": 6,
    "window_bits": 9,
}


@check_protocol(
    piecewise_linear,
    inputs={"x": Secret(low=-8, high=8), **PIECES, "window_bits": 5},
)
def test_piecewise_linear(x: Any, knots: Any, slopes: Any, **others: int) -> Any:
    return plain_piecewise(x, knots, slopes, others["first_slope"], others["offset"])


def test_a_pair_goes_through_a_piecewise_linear_function_in_the_32_bit_ring() -> None:
    stream = fresh_stream()
    x = np.arange(-130, 130, dtype=np.int32).view(np.uint32).reshape(2, 130)
    shares = replicated.share(x, stream, fraction_bits=5)

    done = simulate(
        lambda party: piecewise_linear(party, _as_pair(party.id, shares[party.id]), **PIECES), record=True
    )

    expected = plain_piecewise(x, PIECES["knots"], PIECES["slopes"], -4, 1000)
    assert np.array_equal(replicated.reconstruct(done.results), expected)
    assert done.results[0].fraction_bits == 11
    assert done.cost == piecewise_linear.cost(_as_pair(0, shares[0]), **PIECES)


def test_a_function_without_a_slope_for_each_knot_is_refused() -> None:
    shares = replicated.share(np.zeros(1, dtype=RING64.dtype), fresh_stream())

    with pytest.raises(UsageError, match="one slope for each knot"):
        simulate(lambda party: piecewise_linear(party, shares[party.id], **{**PIECES, "slopes": (1,)}))


def test_bits_that_the_secret_does_not_have_are_not_dropped() -> None:
    shares = replicated.share(np.zeros(1, dtype=RING64.dtype), fresh_stream(), fraction_bits=4)

    with pytest.raises(UsageError, match="5 bits cannot be dropped"):
        simulate(lambda party: truncated_relu(party, shares[party.id], 5, 20))


@pytest.mark.parametrize(("window_bits", "ignore_bits"), [(1, 0), (62, 0), (5, 4), (5, -1)])
def test_a_window_that_does_not_fit_is_refused(window_bits: int, ignore_bits: int) -> None:
    shares = replicated.share(np.zeros(1, dtype=RING64.dtype), fresh_stream(), fraction_bits=4)

    with pytest.raises(UsageError, match="window of 2 to 64 bits"):
        simulate(lambda party: truncated_relu(party, shares[party.id], 3, window_bits, ignore_bits))
