"""The kernels of dealt mode that numba compiles; see ``plain`` for what each does.

Loops over elements are innermost and take rows as views, so that the compiler uses vector instructions; words
are handled in 64 bits and cut when stored. A word shifted by 64 places is not 0 but undefined: what may have
to go so far goes in two steps.
"""

from __future__ import annotations

import numpy as np

from fedsec.mpc.dealt.chunks import Chunk
from fedsec.mpc.dealt.plain import Bytes, Planes
from fedsec.ring import RingArray
from fedsec.ring._compiled import jit

_ALL = np.uint64(2**64 - 1)
_ONE = np.uint64(1)
_WORD = np.uint64(64)


@jit
def window(words: RingArray, shift: int, bits: int, out: RingArray) -> None:
    """Cut a window out of every word."""
    s, mask = np.uint64(shift), _ALL >> (_WORD - np.uint64(bits))
    for i in range(words.shape[0]):
        source, target = words[i], out[i]
        for e in range(words.shape[1]):
            target[e] = (np.uint64(source[e]) >> s) & mask


@jit
def deal_chunk(r: RingArray, chunk: Chunk, planes: RingArray) -> None:
    """Turn shares of a table into the other evaluator's."""
    shift, bits, weight, first, top = chunk
    images, n, count = planes.shape
    size, half = np.uint64(1 << bits), np.uint64(1 << (bits - top))
    ones, full = _ALL >> (_WORD - half), _ALL >> (_WORD - size)
    highest = ones ^ (ones >> _ONE)
    s, mask, sign = np.uint64(shift), half - _ONE, np.uint64(shift + bits - 1)
    # With the top bit of the mask, the values of m whose top bit differs are the lower half.
    differ_0, differ_1 = (full ^ ones, ones) if top else (np.uint64(0), np.uint64(0))
    at_weight, above = np.empty(count, planes.dtype), np.empty(count, planes.dtype)
    flips, borrow = np.empty(count, planes.dtype), np.empty(count, planes.dtype)
    zero = np.zeros(count, planes.dtype)
    for i in range(images):
        row = r[i]
        for e in range(count):
            value = np.uint64(row[e])
            carrying = (value >> s) & mask
            generate = ones ^ (ones >> carrying)
            propagate = highest >> carrying
            if top:
                generate |= generate << half
                propagate |= propagate << half
            at_weight[e] = generate if first else full ^ propagate
            above[e] = np.uint64(0) if first else full ^ generate ^ propagate
            flips[e] = differ_1 if (value >> sign) & _ONE else differ_0
            borrow[e] = 0
        for p in range(n):
            entry = zero if p < weight else (at_weight if p == weight else above)
            share = planes[i, p]
            flip = flips if p == n - 1 else zero
            for e in range(count):
                x, y, b = entry[e] ^ flip[e], share[e], borrow[e]
                share[e] = x ^ y ^ b
                borrow[e] = (~x & (y | b)) | (y & b)


@jit
def lookup(m: RingArray, shift: int, bits: int, planes: RingArray, digits: Bytes) -> None:
    """Add table entries to digits."""
    s, mask = np.uint64(shift), np.uint64((1 << bits) - 1)
    for i in range(planes.shape[0]):
        row, digit = m[i], digits[i]
        for p in range(planes.shape[1]):
            plane, weight = planes[i, p], np.uint64(p)
            for e in range(planes.shape[2]):
                place = (np.uint64(row[e]) >> s) & mask
                digit[e] += ((np.uint64(plane[e]) >> place) & _ONE) << weight


@jit
def two_digits(
    words: RingArray,
    numbers: tuple[int, int, int, int, int, int],
    shares: tuple[RingArray, RingArray, Planes],
    cut: RingArray,
    out: Planes,
) -> None:
    """Cut windows, look up in two tables, pack and mask the digits: all in one pass over the elements."""
    low, high, delta = shares
    images, count = words.shape
    shift, mask = np.uint64(numbers[0]), _ALL >> (_WORD - np.uint64(numbers[1]))
    low_shift, low_mask = np.uint64(numbers[2]), np.uint64((1 << numbers[3]) - 1)
    high_shift, high_mask = np.uint64(numbers[4]), np.uint64((1 << numbers[5]) - 1)
    for i in range(images):
        row, target = words[i], cut[i]
        low_0, low_1, high_0, high_1 = low[i, 0], low[i, 1], high[i, 0], high[i, 1]
        for k in range(delta.shape[2]):
            first, second = np.uint64(0), np.uint64(0)
            for e in range(64 * k, min(count, 64 * k + 64)):
                value = (np.uint64(row[e]) >> shift) & mask
                target[e] = value
                at_low, at_high = (value >> low_shift) & low_mask, (value >> high_shift) & high_mask
                place = np.uint64(e) & (_WORD - _ONE)
                a, b = np.uint64(low_0[e]) >> at_low, np.uint64(high_0[e]) >> at_high
                first |= ((a ^ b) & _ONE) << place
                c, d = np.uint64(low_1[e]) >> at_low, np.uint64(high_1[e]) >> at_high
                second |= (((a & b) ^ c ^ d) & _ONE) << place
            out[i, 0, k] = first ^ delta[i, 0, k]
            out[i, 1, k] = second ^ delta[i, 1, k] ^ (first & delta[i, 0, k])


@jit
def add_digits(digits: Bytes, delta: Planes, out: Planes) -> None:
    """Pack digits and add their masks."""
    images, n, words = delta.shape
    count = digits.shape[1]
    for i in range(images):
        for k in range(words):
            carry = np.uint64(0)
            start = 64 * k
            stop = min(count, start + 64)
            for p in range(n):
                bits = np.uint64(0)
                for e in range(start, stop):
                    bits |= ((np.uint64(digits[i, e]) >> np.uint64(p)) & _ONE) << np.uint64(e - start)
                mask = delta[i, p, k]
                out[i, p, k] = bits ^ mask ^ carry
                carry = (bits & mask) | (carry & (bits ^ mask))


@jit
def sum_digits(first: Planes, second: Planes, digits: Bytes) -> None:
    """Add packed digits and unpack them."""
    images, n, words = first.shape
    count = digits.shape[1]
    for i in range(images):
        row = digits[i]
        for k in range(words):
            carry = np.uint64(0)
            start = 64 * k
            stop = min(count, start + 64)
            for e in range(start, stop):
                row[e] = 0
            for p in range(n):
                a, b = first[i, p, k], second[i, p, k]
                bits = a ^ b ^ carry
                carry = (a & b) | (carry & (a ^ b))
                for e in range(start, stop):
                    row[e] |= ((bits >> np.uint64(e - start)) & _ONE) << np.uint64(p)


@jit
def deal_kept(delta: Bytes, n: int, values: RingArray, shares: RingArray) -> None:
    """Turn shares of payloads into the other evaluator's."""
    images, fields, count = shares.shape
    half = 1 << (n - 1)
    top = np.uint64(n - 1)
    for i in range(images):
        mask, value = delta[i], values[i]
        for c in range(fields):
            share = shares[i, c]
            if c == half:
                for e in range(count):
                    share[e] = value[e] - share[e]
            else:
                start = np.uint64(c + half - 1 + 256)
                for e in range(count):
                    bit = ((start - np.uint64(mask[e])) >> top) & _ONE
                    share[e] = bit * np.uint64(value[e]) - np.uint64(share[e])


@jit
def choose(j: Bytes, n: int, whole: int, shares: RingArray, out: RingArray) -> None:
    """Write shares of the payloads that are kept."""
    images, fields, count = shares.shape
    half = 1 << (n - 1)
    for i in range(images):
        row = j[i]
        for e in range(count):
            part = np.uint64(shares[i, row[e] & (half - 1), e])
            if row[e] >= half:
                out[i, e] = part
            else:
                payload = np.uint64(shares[i, half, e]) if fields > half else np.uint64(whole)
                out[i, e] = payload - part


@jit
def relu_share(
    opened: tuple[Planes, Planes],
    m: RingArray,
    numbers: tuple[int, int],
    shares: tuple[RingArray, RingArray, RingArray],
    out: RingArray,
) -> None:
    """Unpack digits, choose, combine: all in one pass over the elements, without a branch on a digit."""
    first, second = opened
    one, low, high = shares
    images, n, words = first.shape
    count, half = m.shape[1], 1 << (n - 1)
    top, whole = np.uint64(numbers[0] - 1), np.uint64(numbers[1])
    bits = np.empty(n, np.uint64)
    for i in range(images):
        row, target, rest, wrap = m[i], out[i], low[i, half], high[i, half]
        for k in range(words):
            carry = np.uint64(0)
            for p in range(n):
                a, b = first[i, p, k], second[i, p, k]
                bits[p] = a ^ b ^ carry
                carry = (a & b) | (carry & (a ^ b))
            for e in range(64 * k, min(count, 64 * k + 64)):
                place = np.uint64(e) & (_WORD - _ONE)
                c = np.uint64(0)
                for p in range(n - 1):
                    c |= ((bits[p] >> place) & _ONE) << np.uint64(p)
                # All ones where the payload minus the part is kept, 0 where the part is.
                minus = ((bits[n - 1] >> place) & _ONE) - _ONE
                keep = (whole & minus) + ((np.uint64(one[i, c, e]) ^ minus) - minus)
                below = (np.uint64(rest[e]) & minus) + ((np.uint64(low[i, c, e]) ^ minus) - minus)
                above = (np.uint64(wrap[e]) & minus) + ((np.uint64(high[i, c, e]) ^ minus) - minus)
                value = np.uint64(row[e])
                zero = ((value >> top) & _ONE) - _ONE
                target[e] = keep * value + below + (((above << top) << _ONE) & zero)


@jit
def combine(m: RingArray, bits: int, low: RingArray, high: RingArray, keep: RingArray) -> None:
    """Overwrite keep by keep * m + low + 2^bits * high."""
    top = np.uint64(bits - 1)
    for i in range(m.shape[0]):
        row, kept, below, above = m[i], keep[i], low[i], high[i]
        for e in range(m.shape[1]):
            value = np.uint64(row[e])
            wrap = np.uint64(0) if (value >> top) & _ONE else (np.uint64(above[e]) << top) << _ONE
            kept[e] = np.uint64(kept[e]) * value + np.uint64(below[e]) + wrap
