"""How a window of bits is cut into chunks for one-time tables: the cut that deals the fewest bytes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from fedsec.errors import UsageError
from fedsec.ring import Ring

MOST_CHUNK_BITS = 6
"""A plane of a table is one word of 2^bits bits."""

_MOST_CHUNKS = 7
"""Digits of so many bits fit a byte; what is kept or not doubles with each."""

MOST_WINDOW_BITS = MOST_CHUNK_BITS * _MOST_CHUNKS


class Chunk(NamedTuple):
    """Neighbouring bits of a window; numbers only, as kernels take it.

    Attributes:
        shift: Place of the lowest bit in a word.
        bits: Number of bits, 1 to 6.
        weight: The chunk's entries count times 2^weight in the digit.
        first: 1 for the lowest: its entries are its carry, not generate, propagate or kill.
        top: 1 for the highest: its highest bit is the sign.
    """

    shift: int
    bits: int
    weight: int
    first: int
    top: int

    @property
    def ring(self) -> Ring:
        """The words of this chunk's table, one bit a value of the chunk."""
        return Ring(max(8, 1 << self.bits))


@cache
def chunks_of(window_bits: int, kept_bytes: int, shift: int = 0) -> tuple[Chunk, ...]:
    """Cut a window into chunks, lowest first.

    With n chunks a table entry has n bits, so an element costs n * sum(2^bits) / 8 bytes for the tables and
    2^(n-1) * ``kept_bytes`` for what is kept or not.

    Args:
        window_bits: Bits of the window, the sign among them.
        kept_bytes: Bytes of all payloads of one element that the sign is multiplied with.
        shift: Place of the window's lowest bit.

    Raises:
        UsageError: The window does not have 2 to 42 bits.
    """
    if not 2 <= window_bits <= MOST_WINDOW_BITS:
        raise UsageError(f"a dealt sign needs a window of 2 to {MOST_WINDOW_BITS} bits, got {window_bits}")
    sizes = min(_cuts(window_bits), key=lambda cut: _bytes(cut, kept_bytes))
    places = [shift + sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(
        Chunk(place, bits, max(0, i - 1), first=int(i == 0), top=int(i == len(sizes) - 1))
        for i, (place, bits) in enumerate(zip(places, sizes, strict=True))
    )


def _bytes(sizes: tuple[int, ...], kept_bytes: int) -> int:
    tables = sum(max(8, 1 << bits) for bits in sizes) * len(sizes) // 8
    return tables + kept_bytes * (1 << (len(sizes) - 1))


def _cuts(window_bits: int) -> Iterator[tuple[int, ...]]:
    """Yield the most even cut for each number of chunks: anything less even has a larger sum of 2^bits."""
    for count in range(-(-window_bits // MOST_CHUNK_BITS), min(_MOST_CHUNKS, window_bits) + 1):
        less, more = divmod(window_bits, count)
        yield (less + 1,) * more + (less,) * (count - more)
