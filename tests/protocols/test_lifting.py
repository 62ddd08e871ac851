"""Lifting is exact for every sharing, and a public fraction gives one of the two integers around it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsec.errors import UsageError
from fedsec.mpc import lift, multiply_fraction, simulate
from fedsec.ring import RING32, RING64, Ring, RingArray, fresh_stream, signed
from fedsec.sharing import replicated
from fedsec.sharing.replicated import RepShare
from fedsec.testing import Secret, check_protocol

pytest_plugins = ["fedsec.testing"]

RING8, RING16 = Ring(8), Ring(16)
LARGEST = 2**30 - 1


def same_integer(result: Any, expected: Any) -> bool:
    """Whether words of two rings are the same signed integers."""
    return bool(np.array_equal(signed(result), signed(expected)))


def one_of_the_two(result: Any, floor: Any) -> bool:
    difference = signed(result) - signed(floor)
    return bool(np.all((difference == 0) | (difference == 1)))


@check_protocol(lift, inputs={"x": Secret((), low=-LARGEST, high=LARGEST)}, agrees=same_integer, ring=RING32)
def test_lift(x: Any) -> Any:
    return x


@check_protocol(
    multiply_fraction,
    inputs={"x": Secret((), low=-(2**30), high=2**30), "numerators": 2**29 - 3, "bits": 32},
    agrees=one_of_the_two,
)
def test_multiply_fraction(x: Any, numerators: int, bits: int) -> Any:
    return ((signed(x) * numerators) >> bits).view(x.dtype)


def shares_of(secret: RingArray, x_0: RingArray, x_1: RingArray) -> list[RepShare]:
    parts = [x_0, x_1, np.asarray(secret - x_0 - x_1)]
    return [RepShare(parts[i], parts[(i + 1) % 3]) for i in range(3)]


def lifted(secret: RingArray, x_0: RingArray, x_1: RingArray, ring: Ring, into: Ring) -> Any:
    shares = shares_of(secret, x_0, x_1)
    done = simulate(lambda party: lift(party, shares[party.id], into), ring=ring)
    return signed(replicated.reconstruct(done.results))


def test_every_sharing_of_the_8_bit_ring_lifts_to_the_same_integer() -> None:
    everything = np.arange(256, dtype=np.uint8)
    x_0, x_1 = (grid.ravel() for grid in np.meshgrid(everything, everything))
    for secret in np.array_split(np.arange(-63, 64, dtype=np.int16).astype(np.uint8), 4):
        shape = (len(secret), x_0.size)
        repeated = np.repeat(secret[:, None], x_0.size, axis=1)

        result = lifted(repeated, np.broadcast_to(x_0, shape), np.broadcast_to(x_1, shape), RING8, RING16)

        np.testing.assert_array_equal(result, signed(repeated))


def test_extremes_of_the_32_bit_ring_with_every_kind_of_wrap() -> None:
    stream = fresh_stream()
    edges = np.array([LARGEST, -LARGEST, 0, 1, -1, 2**29, -(2**29)], dtype=np.int64)
    secret = np.repeat(edges, 5000).astype(RING32.dtype)
    parts = stream.words((2, secret.size), RING32)
    parts[:, ::5] = 0
    parts[0, ::7] = 2**31

    result = lifted(secret, parts[0], parts[1], RING32, RING64)

    np.testing.assert_array_equal(result, np.repeat(edges, 5000))


def test_a_local_lift_would_be_wrong() -> None:
    """What the protocol is for: larger words of the same components are another integer."""
    secret = np.array([5, 7, 9], dtype=RING32.dtype)
    shares = shares_of(secret, *fresh_stream().words((2, 3), RING32))

    wide = sum(share.own.astype(np.uint64) for share in shares)

    assert not np.array_equal(wide, secret)


@pytest.mark.parametrize("bits", [1, 8, 26, 40])
def test_fractions_against_python_integers_by_element(bits: int) -> None:
    stream = fresh_stream()
    most = (2**62 - 2**bits - 1) // (2**31)
    secret = stream.words(2000) % np.uint64(2 * most + 1) - np.uint64(most)
    secret[:4] = np.array([most, -most, 0, -1], dtype=np.int64).view(np.uint64)
    numerators = stream.words(2000) % np.uint64(2**31) + np.uint64(1)
    shares = shares_of(secret, *stream.words((2, 2000)))

    done = simulate(lambda party: multiply_fraction(party, shares[party.id], numerators, bits))

    result = replicated.reconstruct(done.results)
    exact = [int(x) * int(n) for x, n in zip(signed(secret), numerators, strict=True)]
    # Floor or one more: less than one away on either side.
    assert {int(r) - (e >> bits) for r, e in zip(signed(result), exact, strict=True)} <= {0, 1}


def test_into_its_own_ring_is_no_message_and_into_a_smaller_one_refused() -> None:
    shares = shares_of(*fresh_stream().words((3, 4)))

    done = simulate(lambda party: lift(party, shares[party.id]), record=True)

    assert done.cost == lift.cost(shares[0])
    assert done.cost.total_bytes == 0
    with pytest.raises(UsageError, match="high bits"):
        simulate(lambda party: lift(party, shares[party.id], RING32))
    with pytest.raises(UsageError, match="denominator"):
        simulate(lambda party: multiply_fraction(party, shares[party.id], 3, 63))
