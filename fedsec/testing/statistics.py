"""The statistics behind the view checks, in plain numpy.

Bits are handled in packed rows: one row of 64-bit words a bit of the view, one bit of the row a lane, that is
an independent repetition of the same protocol step. P-values are corrected for the number of looks by their
caller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Row = npt.NDArray[np.uint64]
"""One bit of a view in every lane, packed as bit planes are: shape [lanes / 64]."""

BYTE_VALUES = 256
HALF_VALUES = 16
CELL_BITS = 12
"""Bits that split the lanes into cells: 2^12 cells of 8 lanes each at the lanes that the checks use."""


def chi_squared_tail(statistic: float, degrees: float) -> float:
    """Return P(X >= statistic) for a chi-squared variable, by Wilson and Hilferty's cube root.

    Where the checks use it, at p-values down to 1e-12, it is good to a fifth of the p-value with 200 degrees
    and more, and within a factor of three with 32.
    """
    spread = 2 / (9 * degrees)
    root = float((statistic / degrees) ** (1 / 3))
    z = (root - (1 - spread)) / math.sqrt(spread)
    return normal_tail(z)


def normal_tail(z: float) -> float:
    """Return P(Z >= z) for a standard normal variable."""
    return math.erfc(z / math.sqrt(2)) / 2


class Looks:
    """The smallest of several p-values, corrected for their number."""

    def __init__(self) -> None:
        self._least = 1.0
        self._number = 0

    def add(self, p: float) -> None:
        """Take one more look."""
        self._least = min(self._least, p)
        self._number += 1

    @property
    def p(self) -> float:
        """The p-value of "nothing is wrong anywhere"; 1 without a look."""
        return min(1.0, self._least * max(self._number, 1))


def uniform_bytes(samples: npt.NDArray[np.uint8], blocks: int = 1) -> float:
    """Return the p-value of "every column of bytes is uniform", corrected for the number of looks.

    Two looks a column. Over all samples, how often each byte occurs. And within each block, how often each
    value of its upper and of its lower half occurs, added up over the blocks: that finds bytes which are
    constant in a block and another constant in the next.

    Args:
        samples: Bytes, shape [samples, columns].
        blocks: Number of blocks that the samples fall into, in order; a divisor of their number.
    """
    count, columns = samples.shape
    places = np.arange(columns) + columns * np.repeat(np.arange(blocks), count // blocks)[:, np.newaxis]
    cells = samples + BYTE_VALUES * places
    counts = np.bincount(cells.ravel(), minlength=BYTE_VALUES * columns * blocks)
    seen = counts.reshape(blocks, columns, BYTE_VALUES)

    looks = Looks()
    over_all = float(np.max(_pearson(seen.sum(axis=0))))
    looks.add(columns * chi_squared_tail(over_all, BYTE_VALUES - 1))
    if blocks > 1:
        pairs = seen.reshape(blocks, columns, HALF_VALUES, HALF_VALUES)
        in_blocks = sum(_pearson(pairs.sum(axis=axis)).sum(axis=0) for axis in (2, 3))
        degrees = 2 * blocks * (HALF_VALUES - 1)
        looks.add(columns * chi_squared_tail(float(np.max(in_blocks)), degrees))
    return looks.p


def fair_in_blocks(planes: npt.NDArray[np.uint64], blocks: int) -> float:
    """Return the p-value of "every plane is a fair coin in each block of lanes", corrected for the planes.

    Args:
        planes: Packed rows, shape [planes, lanes / 64].
        blocks: Number of blocks that the lanes fall into, in order; a divisor of lanes / 64.
    """
    size = 64 * planes.shape[1] // blocks
    ones = np.bitwise_count(planes.reshape(len(planes), blocks, -1)).sum(axis=2, dtype=np.int64)
    statistic = float(np.max(np.sum((2 * ones - size) ** 2 / size, axis=1)))
    return min(1.0, len(planes) * chi_squared_tail(statistic, blocks))


def _pearson(seen: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return Pearson's statistic of "all values are equally likely" along the last axis."""
    expected = seen.sum(axis=-1, keepdims=True) / seen.shape[-1]
    statistic: npt.NDArray[np.float64] = np.sum((seen - expected) ** 2 / expected, axis=-1)
    return statistic


class Span:
    """The bits that follow from known ones by XOR: a basis over GF(2), one row of all lanes an element."""

    def __init__(self, lanes: int) -> None:
        self._basis: dict[int, int] = {}
        self._capacity = lanes // 2  # beyond that, chance alone would find dependence
        self.add((1 << lanes) - 1)

    def add(self, bits: int) -> bool:
        """Add a bit, given as an integer with one binary digit a lane; return whether it is new."""
        while bits:
            top = bits.bit_length()
            if top not in self._basis:
                if len(self._basis) < self._capacity:
                    self._basis[top] = bits
                return True
            bits ^= self._basis[top]
        return False


def row_as_integer(row: Row) -> int:
    """Return a packed row as one integer, for ``Span``."""
    return int.from_bytes(row.tobytes(), "little")


def fair_by_parity(target: Row, known: npt.NDArray[np.uint64]) -> float:
    """Return the p-value of "the target is fair, and independent of every XOR of up to two known bits".

    Args:
        target: One packed row.
        known: Packed rows, shape [rows, lanes / 64].

    Returns:
        The smallest p-value, corrected for the number of parities.
    """
    lanes = 64 * target.size
    mixed = known ^ target
    # The first row of zeros stands for "nothing else": the target alone, then with each known bit.
    partners = np.concatenate([np.zeros((1, target.size), dtype=np.uint64), known])
    largest = abs(2 * int(np.bitwise_count(target).sum()) - lanes)
    for i in range(len(known)):
        ones = np.bitwise_count(mixed[i] ^ partners[: i + 1]).sum(axis=1, dtype=np.int64)
        largest = max(largest, int(np.abs(2 * ones - lanes).max()))
    looks = 1 + len(known) * (len(known) + 1) // 2
    return min(1.0, 2 * looks * normal_tail(largest / math.sqrt(lanes)))


def fair_in_cells(target: Row, splitting: Sequence[Row]) -> float:
    """Return the p-value of "the target is a fair coin in each cell of the splitting bits".

    Args:
        target: One packed row.
        splitting: Packed rows; the first ``CELL_BITS`` of them make the cells.
    """
    if not splitting:
        return 1.0
    cell = np.zeros(64 * target.size, dtype=np.int64)
    for place, row in enumerate(splitting[:CELL_BITS]):
        cell |= _unpacked(row).astype(np.int64) << place
    sizes = np.bincount(cell)
    ones = np.bincount(cell, weights=_unpacked(target))
    filled = sizes > 0
    sizes, ones = sizes[filled], ones[filled]
    # Of n fair coins, (2 * ones - n)^2 / n has mean 1 and variance 2 (1 - 1/n).
    statistic = float(np.sum((2 * ones - sizes) ** 2 / sizes))
    mean, variance = float(sizes.size), float(np.sum(2 * (1 - 1 / sizes)))
    degrees = 2 * mean**2 / variance
    return chi_squared_tail(statistic * degrees / mean, degrees)


def _unpacked(row: Row) -> npt.NDArray[np.uint8]:
    return np.unpackbits(row.view(np.uint8), bitorder="little")
