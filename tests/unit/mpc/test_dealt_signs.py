"""The mathematics of dealt signs, ReLU and truncation: every value and every mask of small windows."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest

from fedsec.mpc import simulate
from fedsec.mpc.dealt import plain
from fedsec.mpc.dealt.chunks import Chunk
from fedsec.mpc.dealt.protocols import dealt_relu, dealt_truncate
from fedsec.ring import RING32, RING64, Ring, RingArray, fresh_stream, signed
from fedsec.sharing import replicated
from fedsec.sharing.replicated import RepShare

RING8, RING16 = Ring(8), Ring(16)


def _cuts(window_bits: int) -> list[tuple[int, ...]]:
    """Return every way to cut a window into chunks of at most 6 bits."""
    places = [cut for k in range(window_bits) for cut in combinations(range(1, window_bits), k)]
    ends = [(0, *cut, window_bits) for cut in places]
    cuts = [tuple(b - a for a, b in pairwise(e)) for e in ends]
    return [cut for cut in cuts if max(cut) <= 6]


@pytest.mark.parametrize("window_bits", [2, 5, 7])
def test_the_digit_of_every_cut_has_the_sign_on_top(window_bits: int) -> None:
    values = np.arange(1 << window_bits, dtype=np.uint32)
    m, r = (part.ravel()[np.newaxis] for part in np.meshgrid(values, values))
    negative = ((m + r) >> np.uint32(window_bits - 1)) & 1
    for sizes in _cuts(window_bits):
        n = len(sizes)
        digits = np.zeros(m.shape, dtype=np.uint8)
        for i, bits in enumerate(sizes):
            chunk = Chunk(sum(sizes[:i]), bits, max(0, i - 1), int(i == 0), int(i == n - 1))
            table: RingArray = np.zeros((1, n, m.size), dtype=chunk.ring.dtype)
            plain.deal_chunk(r, chunk, table)
            plain.lookup(m, chunk.shift, chunk.bits, table, digits)
        top = (digits + np.uint8((1 << (n - 1)) - 1)) >> (n - 1) & 1
        assert np.array_equal(top, negative), sizes


def _all_sharings(secret: RingArray, masks: RingArray) -> list[RepShare]:
    """Share every secret with every sum of the dealer's components, as one image."""
    x, r = (part.ravel()[np.newaxis].astype(secret.dtype) for part in np.meshgrid(secret, masks))
    first = fresh_stream().words(x.shape, Ring(8 * secret.itemsize))
    parts = [first, np.asarray(r - first), np.asarray(x - r)]
    return [RepShare(parts[i], parts[(i + 1) % 3], 6) for i in range(3)]


def _result(protocol: Any, shares: list[RepShare], **public: Any) -> tuple[Any, Any]:
    """Return the secrets and the results as signed integers."""
    done = simulate(lambda party: protocol(party, shares[party.id], **public))
    result = signed(replicated.reconstruct(done.results)).astype(np.int64)
    return signed(replicated.reconstruct(shares)).astype(np.int64), result


@pytest.mark.parametrize("ring", [RING8, RING16, RING64], ids=str)
@pytest.mark.parametrize("ignore_bits", [0, 1, 2])
@pytest.mark.parametrize(("bits", "window_bits"), [(0, 8), (2, 6), (1, 6), (3, 5), (0, 4)])
def test_relu_of_every_value_under_every_mask(
    bits: int, window_bits: int, ignore_bits: int, ring: Ring
) -> None:
    half = 1 << (window_bits - 1 + bits)
    values = np.arange(-half + (1 << (bits + ignore_bits)) - 1, half).astype(np.uint8)
    shares = _all_sharings(values, np.arange(256, dtype=np.uint8))

    x, result = _result(
        dealt_relu, shares, bits=bits, window_bits=window_bits, ignore_bits=ignore_bits, ring=ring
    )

    right = np.zeros(x.shape, dtype=bool)
    for t in (x >> bits, (x >> bits) - 1):
        right |= (result == t) & (t >= 0)
        right |= (result == 0) & (t < 1 << ignore_bits)
    assert right.all()
    # Without dropped bits the result is exact.
    assert bits or ignore_bits or np.array_equal(result, np.maximum(x, 0))


@pytest.mark.parametrize("ignore_bits", [0, 1, 2])
def test_one_value_below_the_range_can_come_out_positive(ignore_bits: int) -> None:
    values = np.array([-(1 << 7) + (1 << (2 + ignore_bits)) - 2]).astype(np.uint8)
    shares = _all_sharings(values, np.arange(256, dtype=np.uint8))

    _x, result = _result(dealt_relu, shares, bits=2, window_bits=6, ignore_bits=ignore_bits)

    assert result.any()


@pytest.mark.parametrize("ring", [RING8, RING16, RING32], ids=str)
@pytest.mark.parametrize(("bits", "window_bits"), [(0, 7), (2, 5), (3, 4), (1, 4), (6, 1)])
def test_truncation_of_every_value_under_every_mask(bits: int, window_bits: int, ring: Ring) -> None:
    half = 1 << (window_bits - 1 + bits)
    values = np.arange(-half + (1 << bits) - 1, half).astype(np.uint8)
    shares = _all_sharings(values, np.arange(256, dtype=np.uint8))

    x, result = _result(dealt_truncate, shares, bits=bits, window_bits=window_bits, ring=ring)

    assert np.isin((x >> bits) - result, (0, 1)).all()
    assert bits or np.array_equal(result, x)


@pytest.mark.parametrize("ring", [RING32, RING64], ids=str)
def test_a_truncation_by_nothing_takes_the_widest_window(ring: Ring) -> None:
    half = 1 << 62
    values = np.array([-half, -half + 1, -1, 0, 1, half - 2, half - 1], dtype=np.int64)
    # An odd number: vector instructions and those for what is left over shift differently.
    secret = np.tile(values.view(np.uint64), 201)[np.newaxis]
    shares = replicated.share(secret, fresh_stream(), 0)

    _x, result = _result(dealt_truncate, list(shares), bits=0, window_bits=63, ring=ring)

    assert np.array_equal(result.astype(ring.dtype), secret.astype(ring.dtype))


@pytest.mark.parametrize(("bits", "window_bits", "ignore_bits"), [(14, 17, 5), (15, 17, 3), (0, 32, 0)])
@pytest.mark.parametrize("ring", [RING32, RING64], ids=str)
def test_relu_of_wide_windows_at_the_ends_of_the_range(
    bits: int, window_bits: int, ignore_bits: int, ring: Ring
) -> None:
    half = 1 << (window_bits - 1 + bits)
    low = -half + (1 << (bits + ignore_bits)) - 1
    values = np.array([low, low + 1, -1, 0, 1, 1 << bits, 5 << (bits + ignore_bits), half - 1])
    secret = np.tile(values.astype(np.uint32), 200)[np.newaxis]
    shares = replicated.share(secret, fresh_stream(), 20)

    x, result = _result(
        dealt_relu, list(shares), bits=bits, window_bits=window_bits, ignore_bits=ignore_bits, ring=ring
    )

    large = x >= 2 << (bits + ignore_bits)
    assert not result[x < 0].any()
    assert np.isin((x >> bits)[large] - result[large], (0, 1)).all()
    assert np.isin(result[~large], (0, 1, *(np.unique(x[~large] >> bits)))).all()
