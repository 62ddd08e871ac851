"""Words of a ring: the integers modulo 2^k, held in unsigned numpy arrays.

Addition, subtraction and multiplication of unsigned numpy arrays already wrap modulo 2^k, so the ring needs
no arithmetic of its own; this module only names the ring and moves between it and two's complement.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsec.errors import InputError, UsageError

RingArray = npt.NDArray[np.unsignedinteger[Any]]
"""An array of ring elements; its dtype (uint8, uint16, uint32 or uint64) names the ring."""

WORD_SIZES = (8, 16, 32, 64)
_DTYPES = {bits: np.dtype(f"<u{bits // 8}") for bits in WORD_SIZES}


@dataclass(frozen=True, slots=True)
class Ring:
    """The integers modulo 2^bits.

    Attributes:
        bits: Word size k: 8, 16, 32 or 64. The small ones exist so that tests can be exhaustive.

    Raises:
        UsageError: ``bits`` is not one of the word sizes.
    """

    bits: int

    def __post_init__(self) -> None:
        if self.bits not in WORD_SIZES:
            raise UsageError(f"a ring has 8, 16, 32 or 64 bits, got {self.bits!r}; use RING32 or RING64")

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger[Any]]:
        """The unsigned little-endian dtype of one element, in memory and on the wire."""
        return _DTYPES[self.bits]

    @property
    def element_bytes(self) -> int:
        """Bytes of one element."""
        return self.bits // 8

    @property
    def modulus(self) -> int:
        """The Python integer 2^bits."""
        return 1 << self.bits


RING32 = Ring(32)
RING64 = Ring(64)


@cache
def _ring_of_dtype(dtype: np.dtype[Any]) -> Ring:
    if dtype.kind != "u":
        raise InputError(f"ring elements are unsigned integers, got dtype {dtype}; encode the values first")
    return Ring(8 * dtype.itemsize)


def ring_of(words: RingArray) -> Ring:
    """Return the ring that an array's dtype names.

    Raises:
        InputError: The dtype is not an unsigned integer.
    """
    return _ring_of_dtype(words.dtype)


def signed(words: RingArray) -> npt.NDArray[np.signedinteger[Any]]:
    """View ring elements as two's complement integers of the same size; no copy.

    Raises:
        InputError: The dtype is not an unsigned integer.
    """
    return words.view(np.dtype(f"<i{ring_of(words).element_bytes}"))
