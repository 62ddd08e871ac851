"""The compiled kernels of dealt mode against their plain twins, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsec.errors import UsageError
from fedsec.mpc.dealt import plain
from fedsec.mpc.dealt.chunks import Chunk, chunks_of
from fedsec.mpc.dealt.kernels import compiled
from fedsec.ring import RING64, KeyedStream, Ring, fresh_key

IMAGES, COUNT = 3, 70
WORDS = -(-COUNT // 64)


@pytest.fixture
def words() -> Any:
    key = fresh_key()
    print(f"key {key.hex()}")
    stream = KeyedStream(key)
    return lambda shape, bits: stream.words(shape, Ring(bits))


def _same(name: str, *arguments: Any) -> None:
    """Run both versions; the last argument is what they write."""
    outputs = [arguments[-1].copy() for _ in range(2)]
    for module, out in zip((compiled(), plain), outputs, strict=True):
        getattr(module, name)(*arguments[:-1], out)
    assert np.array_equal(*outputs)


@pytest.mark.parametrize(
    ("shift", "bits", "ring", "out"),
    [
        *((*cut, *rings) for cut in ((0, 32), (0, 7), (5, 27), (31, 1)) for rings in ((32, 32), (64, 32))),
        *((*cut, 64, 64) for cut in ((0, 1), (0, 63), (0, 64), (1, 63), (62, 2), (63, 1))),
    ],
)
def test_window(words: Any, shift: int, bits: int, ring: int, out: int) -> None:
    _same("window", words((IMAGES, COUNT), ring), shift, bits, np.empty((IMAGES, COUNT), Ring(out).dtype))


@pytest.mark.parametrize("bits", range(1, 7))
@pytest.mark.parametrize("role", [(0, 1, 0), (0, 0, 0), (1, 0, 0), (1, 0, 1), (0, 1, 1)], ids=str)
@pytest.mark.parametrize("shift", [0, 3, 26])
def test_deal_chunk(words: Any, bits: int, role: tuple[int, int, int], shift: int) -> None:
    weight, first, top = role
    n = 1 if first and top else 3
    planes = words((IMAGES, n, COUNT), max(8, 1 << bits))
    _same("deal_chunk", words((IMAGES, COUNT), 32), Chunk(shift, bits, weight, first, top), planes)


@pytest.mark.parametrize("bits", range(1, 7))
def test_chunks_at_the_top_of_the_longest_words(words: Any, bits: int) -> None:
    r, planes = words((IMAGES, COUNT), 64), words((IMAGES, 2, COUNT), max(8, 1 << bits))
    _same("deal_chunk", r, Chunk(64 - bits, bits, 0, 0, 1), planes)
    _same("lookup", r, 64 - bits, bits, planes, np.zeros((IMAGES, COUNT), np.uint8))


@pytest.mark.parametrize("bits", range(1, 7))
def test_lookup(words: Any, bits: int) -> None:
    planes = words((IMAGES, 3, COUNT), max(8, 1 << bits))
    digits = np.asarray(words((IMAGES, COUNT), 8) % 8, dtype=np.uint8)
    _same("lookup", words((IMAGES, COUNT), 32), 9, bits, planes, digits)


@pytest.mark.parametrize("ring", [32, 64])
@pytest.mark.parametrize("sizes", [(5, 5), (6, 5), (6, 6), (3, 1)])
@pytest.mark.parametrize("count", [1, 64, COUNT])
def test_two_digits(words: Any, ring: int, sizes: tuple[int, int], count: int) -> None:
    low, high = sizes
    numbers = (ring - 2 - low - high, 2 + low + high, 1, low, 1 + low, high)
    shape = (IMAGES, 2, -(-count // 64))
    shares = (*(words((IMAGES, 2, count), max(8, 1 << bits)) for bits in sizes), words(shape, 64))
    m, cuts = words((IMAGES, count), ring), []
    for module in (compiled(), plain):
        cuts.append(np.empty((IMAGES, count), np.uint32))
        _same("two_digits", m, numbers, shares, cuts[-1], np.empty(shape, np.uint64))
        module.two_digits(m, numbers, shares, cuts[-1], np.empty(shape, np.uint64))
    assert np.array_equal(*cuts)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 63, 64, 65, COUNT, 128])
def test_digits(words: Any, n: int, count: int) -> None:
    shape = (IMAGES, n, -(-count // 64))
    digits = words((IMAGES, count), 8)
    _same("add_digits", digits, words(shape, 64), np.empty(shape, np.uint64))
    _same("sum_digits", words(shape, 64), words(shape, 64), np.empty((IMAGES, count), np.uint8))


@pytest.mark.parametrize("n", [1, 2, 3, 7])
@pytest.mark.parametrize("ring", [8, 16, 32, 64])
@pytest.mark.parametrize("extra", [0, 1])
def test_kept(words: Any, n: int, ring: int, extra: int) -> None:
    shares = words((IMAGES, 2 ** (n - 1) + extra, COUNT), ring)
    digits = np.asarray(words((IMAGES, COUNT), 8) % 2**n, dtype=np.uint8)
    _same("deal_kept", digits, n, words((IMAGES, COUNT), ring), shares)
    for whole in (0, 1):
        _same("choose", digits, n, whole, shares, np.empty((IMAGES, COUNT), shares.dtype))


@pytest.mark.parametrize(
    ("ring", "high", "window", "bits"),
    [
        *((32, 16, 32, 21), (32, 8, 32, 32), (32, 8, 64, 64)),
        *((64, 64, 32, 1), (64, 64, 32, 13), (64, 32, 64, 40), (64, 8, 64, 63), (64, 8, 64, 64)),
    ],
)
def test_combine(words: Any, ring: int, high: int, window: int, bits: int) -> None:
    m = words((IMAGES, COUNT), window)
    m &= m.dtype.type((1 << bits) - 1)
    _same("combine", m, bits, *(words((IMAGES, COUNT), size) for size in (ring, high, ring)))


@pytest.mark.parametrize("n", [1, 2, 3, 7])
@pytest.mark.parametrize(
    ("ring", "high", "bits"),
    [(32, 16, 21), (32, 32, 9), (32, 8, 32), (64, 64, 13), (64, 8, 63), (64, 8, 64), (32, 8, 64)],
)
def test_relu_share(words: Any, n: int, ring: int, high: int, bits: int) -> None:
    planes = [words((IMAGES, n, WORDS), 64) for _ in range(2)]
    m = words((IMAGES, COUNT), 32 if bits <= 32 else 64)
    m &= m.dtype.type((1 << bits) - 1)
    kept = 2 ** (n - 1)
    shares = tuple(
        words((IMAGES, fields, COUNT), size)
        for fields, size in ((kept, ring), (kept + 1, ring), (kept + 1, high))
    )
    for whole in (0, 1):
        out = np.empty((IMAGES, COUNT), Ring(ring).dtype)
        _same("relu_share", tuple(planes), m, (bits, whole), shares, out)


def test_chunks_cover_their_window_at_the_lowest_price() -> None:
    for window_bits in range(2, 43):
        chunks = chunks_of(window_bits, 10)
        ends = [chunk.shift + chunk.bits for chunk in chunks]
        assert [chunk.shift for chunk in chunks] == [0, *ends[:-1]]
        assert sum(chunk.bits for chunk in chunks) == window_bits
        assert [chunk.first for chunk in chunks] == [1] + [0] * (len(chunks) - 1)
        assert chunks[-1].top
        assert max(chunk.bits for chunk in chunks) <= 6
    assert [chunk.bits for chunk in chunks_of(12, 12)] == [6, 6]
    assert [chunk.bits for chunk in chunks_of(14, 12)] == [5, 5, 4]


@pytest.mark.parametrize("window_bits", [0, 1, 43])
def test_a_window_without_tables_is_refused(window_bits: int) -> None:
    with pytest.raises(UsageError, match="2 to 42 bits"):
        chunks_of(window_bits, RING64.element_bytes)
