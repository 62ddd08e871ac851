"""Truncation is sound: floor or floor - 1 for every secret and every sharing (threat 11)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsec.errors import UsageError
from fedsec.mpc import simulate, truncate
from fedsec.ring import RING32, RING64, Ring, RingArray, fresh_stream, signed
from fedsec.sharing import replicated
from fedsec.sharing.replicated import RepShare
from fedsec.testing import Secret, check_protocol

pytest_plugins = ["fedsec.testing"]

RING8 = Ring(8)


def floor_or_one_less(result: Any, expected: Any) -> bool:
    difference = signed(expected) - signed(result)
    return bool(np.all((difference == 0) | (difference == 1)))


@check_protocol(
    truncate,
    inputs={"x": Secret((), low=-5000, high=5000, fraction_bits=13), "bits": 13},
    agrees=floor_or_one_less,
)
def test_truncate(x: Any, bits: int) -> Any:
    return (signed(x) >> bits).view(x.dtype)


@check_protocol(
    truncate,
    inputs={"x": Secret((), low=-(2**30) + 1, high=2**30 - 1, fraction_bits=6), "bits": 6},
    agrees=floor_or_one_less,
    ring=RING32,
)
def test_truncate_in_the_32_bit_ring(x: Any, bits: int) -> Any:
    return (signed(x) >> bits).view(x.dtype)


def _truncated(secret: RingArray, x_0: RingArray, x_1: RingArray, bits: int, ring: Ring) -> Any:
    """The result as signed integers, for a sharing given by its first two components."""
    parts = [x_0, x_1, np.asarray(secret - x_0 - x_1)]
    shares = [RepShare(parts[i], parts[(i + 1) % 3], bits) for i in range(3)]
    done = simulate(lambda party: truncate(party, shares[party.id], bits), ring=ring)
    return signed(replicated.reconstruct(done.results))


def _in_range(ring: Ring) -> RingArray:
    quarter = ring.modulus // 4
    return np.arange(-quarter + 1, quarter, dtype=np.int16).astype(ring.dtype)


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 6])
def test_threat_11_every_pair_of_parts_of_the_8_bit_ring(bits: int) -> None:
    # Party 0 knows x_0 + x_1, the others x_2: all values of that sum for all secrets; x_0 is random.
    secret, known_to_0 = (
        grid.ravel() for grid in np.meshgrid(_in_range(RING8), np.arange(256, dtype=np.uint8))
    )
    x_0 = fresh_stream().words(secret.shape, RING8)

    result = _truncated(secret, x_0, np.asarray(known_to_0 - x_0), bits, RING8)

    assert set(np.unique((signed(secret) >> bits) - result)) == {0, 1}


def test_threat_11_every_sharing_of_the_8_bit_ring() -> None:
    bits, everything = 3, np.arange(256, dtype=np.uint8)
    x_0, x_1 = (grid.ravel() for grid in np.meshgrid(everything, everything))

    for secret in np.array_split(_in_range(RING8), 16):
        shape = (len(secret), x_0.size)
        result = _truncated(
            np.repeat(secret[:, None], x_0.size, axis=1),
            np.broadcast_to(x_0, shape),
            np.broadcast_to(x_1, shape),
            bits,
            RING8,
        )
        difference = (signed(secret) >> bits)[:, None] - result
        assert set(np.unique(difference)) <= {0, 1}


@pytest.mark.parametrize("bits", [1, 10, 13, 16, 33, 62])
def test_threat_11_random_and_boundary_values_of_the_64_bit_ring(bits: int) -> None:
    stream, largest = fresh_stream(), 2**62 - 1
    edges = [largest, -largest, 0, 1, -1, 2**bits, -(2**bits), 2**bits - 1, 1 - 2**bits, largest - 1]
    edges = [value for value in edges if abs(value) <= largest]
    random = stream.words(200_000) % np.uint64(2 * largest + 1) - np.uint64(largest)
    # Small secrets are where local truncation fails rarely and hugely.
    small = stream.words(50_000) % np.uint64(2**20)
    secret = np.concatenate([random, small, np.repeat(np.array(edges, dtype=np.int64).view(np.uint64), 500)])

    result = _truncated(secret, stream.words(secret.shape), stream.words(secret.shape), bits, RING64)

    assert set(np.unique((signed(secret) >> bits) - result)) <= {0, 1}


@pytest.mark.slow
def test_threat_11_ten_million_random_truncations() -> None:
    stream, largest = fresh_stream(), 2**62 - 1
    for _ in range(20):
        secret = stream.words(500_000) % np.uint64(2 * largest + 1) - np.uint64(largest)
        result = _truncated(secret, stream.words(secret.shape), stream.words(secret.shape), 16, RING64)
        assert set(np.unique((signed(secret) >> 16) - result)) <= {0, 1}


def test_no_bits_is_no_message() -> None:
    shares = replicated.share(np.array([5], dtype=RING64.dtype), fresh_stream(), fraction_bits=4)

    done = simulate(lambda party: truncate(party, shares[party.id], 0), record=True)

    assert replicated.reconstruct(done.results) == 5
    assert done.cost == truncate.cost(shares[0], 0)
    assert done.cost.total_bytes == 0


@pytest.mark.parametrize("bits", [-1, 5, 63])
def test_bits_that_the_secret_does_not_have_are_refused(bits: int) -> None:
    shares = replicated.share(np.array([5], dtype=RING64.dtype), fresh_stream(), fraction_bits=4)

    with pytest.raises(UsageError, match="4 fraction bits"):
        simulate(lambda party: truncate(party, shares[party.id], bits))
