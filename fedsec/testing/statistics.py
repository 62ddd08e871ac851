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
CELL_BITS = 12
"""Bits that split the lanes into cells: 2^12 cells of 8 lanes each at the lanes that the checks use."""


def chi_squared_tail(statistic: float, degrees: float) -> float:
    """Return P(X >= statistic) for a chi-squared variable, by Wilson and Hilferty's cube root.

    Good to a few percent of the p-value at 200 degrees and more, which is where the checks use it.
    """
    spread = 2 / (9 * degrees)
    root = float((statistic / degrees) ** (1 / 3))
    z = (root - (1 - spread)) / math.sqrt(spread)
    return normal_tail(z)


def normal_tail(z: float) -> float:
    """Return P(Z >= z) for a standard normal variable."""
    return math.erfc(z / math.sqrt(2)) / 2


def uniform_bytes(samples: npt.NDArray[np.uint8]) -> float:
    """Return the p-value of "every column of bytes is uniform", corrected for the number of columns.

    Args:
        samples: Bytes, shape [samples, columns].
    """
    count, columns = samples.shape
    cells = samples.astype(np.int64) + BYTE_VALUES * np.arange(columns)
    seen = np.bincount(cells.ravel(), minlength=BYTE_VALUES * columns).reshape(columns, BYTE_VALUES)
    expected = count / BYTE_VALUES
    worst = float(np.max(np.sum((seen - expected) ** 2, axis=1) / expected))
    return float(min(1.0, columns * chi_squared_tail(worst, BYTE_VALUES - 1)))


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
