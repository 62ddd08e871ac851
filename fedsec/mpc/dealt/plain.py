"""The kernels of dealt mode in plain numpy: what the compiled ones are tested against, bit for bit.

Every function overwrites its last argument. Elements are along the last axis, images along the first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedsec.mpc.dealt.chunks import Chunk
from fedsec.ring import RingArray

Bytes = npt.NDArray[np.uint8]
Planes = npt.NDArray[np.uint64]
"""Digits as bit planes: shape [images, bits of a digit, ceil(count / 64)], bit e % 64 of word e // 64."""


def window(words: RingArray, shift: int, bits: int, out: RingArray) -> None:
    """Cut ``bits`` bits from place ``shift`` out of every word."""
    mask = words.dtype.type((1 << bits) - 1)
    out[...] = (words >> words.dtype.type(shift)) & mask


def deal_chunk(r: RingArray, chunk: Chunk, planes: RingArray) -> None:
    """Turn evaluator 1's share of a chunk's table into evaluator 2's: table minus share, modulo 2^n.

    The entry for a chunk m of the masked value, with ``half`` the values that the carrying bits take, is

    * in the first chunk 1 if m + r >= half, else 0,
    * in the others 2^weight times 1, 0, -1 if m + r is >= half, half - 1, less,
    * in the top chunk, whose highest bit does not carry, plus 2^(n-1) if the highest bits of m and r differ.

    Args:
        r: Words that hold the chunks of the masks, shape [images, count].
        chunk: Which bits.
        planes: Bit v of ``planes[i, p, e]`` is bit p of the entry for m = v; shape [images, n, count].
    """
    shift, bits, weight, first, top = chunk
    n, m = planes.shape[1], np.arange(1 << bits)
    half = 1 << (bits - top)
    known = (r.astype(np.int64) >> shift)[..., np.newaxis] & ((1 << bits) - 1)
    total = (m % half) + (known % half)
    entry = (total >= half) if first else np.sign(total - (half - 1)) << weight
    entry = entry + ((m // half != known // half) << (n - 1)) * top
    table = np.zeros((*known.shape[:2], 8 * planes.itemsize), dtype=np.int64)
    table[..., : 1 << bits] = entry
    for p in range(n):
        table -= _bits(planes[:, p]) << p
    for p in range(n):
        planes[:, p] = _words((table >> p) & 1)


def lookup(m: RingArray, shift: int, bits: int, planes: RingArray, digits: Bytes) -> None:
    """Add a chunk's table entries at the masked values to digits, modulo 2^8.

    Args:
        m: Words that hold the chunks of the masked values, shape [images, count].
        shift: Place of the chunk in them.
        bits: Bits of the chunk.
        planes: This evaluator's share of the table, as in ``deal_chunk``.
        digits: Shape [images, count].
    """
    place = ((m >> m.dtype.type(shift)) & m.dtype.type((1 << bits) - 1)).astype(planes.dtype)
    for p in range(planes.shape[1]):
        digits += (((planes[:, p] >> place) & planes.dtype.type(1)) << planes.dtype.type(p)).astype(np.uint8)


def two_digits(
    words: RingArray,
    numbers: tuple[int, int, int, int, int, int],
    shares: tuple[RingArray, RingArray, Planes],
    cut: RingArray,
    out: Planes,
) -> None:
    """Write this evaluator's masked digits of windows with two chunks.

    Args:
        words: Masked values, shape [images, count].
        numbers: Place and bits of the window in them; place and bits of the first, of the second chunk in it.
        shares: Of this evaluator: of both chunks' tables, as in ``deal_chunk``, and of the digits' mask.
        cut: Is overwritten by the windows.
        out: Is overwritten by the masked digits.
    """
    window(words, numbers[0], numbers[1], cut)
    digits = np.zeros(words.shape, dtype=np.uint8)
    lookup(cut, numbers[2], numbers[3], shares[0], digits)
    lookup(cut, numbers[4], numbers[5], shares[1], digits)
    add_digits(digits, shares[2], out)


def add_digits(digits: Bytes, delta: Planes, out: Planes) -> None:
    """Write digits plus ``delta`` modulo 2^n as bit planes; bits beyond ``count`` are those of ``delta``."""
    packed = np.zeros_like(delta)
    for p in range(delta.shape[1]):
        octets = np.packbits((digits >> p) & 1, axis=1, bitorder="little")
        packed.view(np.uint8)[:, p, : octets.shape[1]] = octets
    _add_planes(packed, delta, out)


def sum_digits(first: Planes, second: Planes, digits: Bytes) -> None:
    """Add digits in bit planes modulo 2^n and write them as bytes, shape [images, count]."""
    total = np.empty_like(first)
    _add_planes(first, second, total)
    digits[...] = 0
    for p in range(total.shape[1]):
        octets = np.ascontiguousarray(total[:, p]).view(np.uint8)
        digits |= np.unpackbits(octets, axis=1, count=digits.shape[1], bitorder="little") << np.uint8(p)


def deal_kept(delta: Bytes, n: int, values: RingArray, shares: RingArray) -> None:
    """Turn evaluator 1's share of payloads into evaluator 2's: payload minus share.

    ``shares[:, c]`` for c < 2^(n-1) is the value where the top bit of (c + 2^(n-1) - 1 - delta) modulo 2^n is
    1, else 0. If there is one more, it is the value itself.

    Args:
        delta: Masks of the digits, shape [images, count].
        n: Bits of a digit.
        values: Ring elements of the shares' ring, shape [images, count].
        shares: Shape [images, 2^(n-1) or one more, count].
    """
    half = 1 << (n - 1)
    for c in range(half):
        bit = (c + half - 1 - delta.astype(np.int64)) >> (n - 1) & 1
        shares[:, c] = bit.astype(shares.dtype) * values - shares[:, c]
    if shares.shape[1] > half:
        shares[:, half] = values - shares[:, half]


def choose(j: Bytes, n: int, whole: int, shares: RingArray, out: RingArray) -> None:
    """Write this evaluator's share of the payloads where the value is not negative, of 0 elsewhere.

    Args:
        j: The opened digits, shape [images, count].
        n: Bits of a digit.
        whole: This evaluator's share of the payload, where it is a public constant and not among ``shares``.
        shares: As in ``deal_kept``.
        out: Shape [images, count].
    """
    half = 1 << (n - 1)
    word = shares.dtype.type
    index = (j & (half - 1)).astype(np.int64)[:, np.newaxis]
    part = np.take_along_axis(shares, index, axis=1)[:, 0]
    payload = shares[:, half] if shares.shape[1] > half else word(whole)
    out[...] = np.where(j >> np.uint8(n - 1), part, payload - part)


def combine(m: RingArray, bits: int, low: RingArray, high: RingArray, keep: RingArray) -> None:
    """Overwrite ``keep`` by keep * m + low, plus 2^bits * high where the top one of the bits of m is 0.

    ``high`` may be of a smaller ring: it counts modulo 2^(k - bits) only.
    """
    word, ring_bits = keep.dtype.type, 8 * keep.itemsize
    wrap = high.astype(keep.dtype) << word(bits) if bits < ring_bits else np.zeros_like(keep)
    wrap[m >> m.dtype.type(bits - 1) == 1] = 0
    keep[...] = keep * m.astype(keep.dtype) + low + wrap


def relu_share(
    opened: tuple[Planes, Planes],
    m: RingArray,
    numbers: tuple[int, int],
    shares: tuple[RingArray, RingArray, RingArray],
    out: RingArray,
) -> None:
    """Write this evaluator's share of T where T is not negative, of 0 elsewhere.

    Args:
        opened: Both evaluators' masked digits.
        m: The windows of the masked values, shape [images, count].
        numbers: Bits of the window; this evaluator's share of 1.
        shares: Payloads as in ``deal_kept``: 1, low and high of ``combine``, where high is of a ring of at
            least k - bits bits.
        out: Shape [images, count].
    """
    bits, whole = numbers
    digits: Bytes = np.empty(m.shape, dtype=np.uint8)
    sum_digits(*opened, digits)
    low, high = (np.empty(m.shape, dtype=share.dtype) for share in shares[1:])
    for share, kept in zip(shares, (out, low, high), strict=True):
        choose(digits, opened[0].shape[1], whole, share, kept)
    combine(m, bits, low, high, out)


def _bits(words: RingArray) -> npt.NDArray[np.int64]:
    places = np.arange(8 * words.itemsize, dtype=np.uint64)
    return ((words.astype(np.uint64)[..., np.newaxis] >> places) & np.uint64(1)).astype(np.int64)


def _words(bits: npt.NDArray[np.int64]) -> Planes:
    places = np.arange(bits.shape[-1], dtype=np.uint64)
    words: Planes = np.bitwise_or.reduce(bits.astype(np.uint64) << places, axis=-1)
    return words


def _add_planes(first: Planes, second: Planes, out: Planes) -> None:
    carry = np.zeros_like(first[:, 0])
    for p in range(first.shape[1]):
        a, b = first[:, p].copy(), second[:, p].copy()
        out[:, p] = a ^ b ^ carry
        carry = (a & b) | (carry & (a ^ b))
