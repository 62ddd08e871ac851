"""Search for a single hospital's values in what others received, in every form they could have there."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np

SHORTEST = 5
"""Bytes of the shortest pattern: four random bytes turn up in a megabyte by chance."""
WINDOW = 16


@dataclass(frozen=True)
class Pattern:
    """One form of one value.

    Attributes:
        what: The value and its form, for messages.
        data: The bytes.
    """

    what: str
    data: bytes

    @property
    def anchor(self) -> int:
        """Where the five bytes begin that are looked for first: files are full of zeros, so not there."""
        starts = range(len(self.data) - SHORTEST + 1)
        return max(starts, key=lambda start: len(set(self.data[start : start + SHORTEST])))


@dataclass
class Found:
    """Where a pattern turned up."""

    place: str
    what: str


@dataclass
class Secrets:
    """What one hospital knows and nobody else may have.

    Attributes:
        hospital: Its name.
        arrays: Vectors by name: parameters, updates, ring words of several scales.
        numbers: Its weight and its metrics by name.
    """

    hospital: str
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)

    def patterns(self) -> Iterator[Pattern]:
        """Every form of every value."""
        for name, array in self.arrays.items():
            for form, data in _forms(array):
                yield from self._named(f"{name} {form}", _windows(data, array.dtype.itemsize))
        for name, number in self.numbers.items():
            for form, data in _number_forms(number):
                yield from self._named(f"{name} {form}", [data])

    def _named(self, what: str, several: Iterable[bytes]) -> Iterator[Pattern]:
        for data in several:
            if len(data) >= SHORTEST and len(set(data)) > 2:
                yield Pattern(f"{self.hospital}: {what}", data)


def scan(places: Mapping[str, bytes], everyone: Iterable[Secrets]) -> list[Found]:
    """Return every pattern of every hospital that stands anywhere in ``places``."""
    by_key: dict[int, list[tuple[int, Pattern]]] = defaultdict(list)
    for secrets in everyone:
        for pattern in secrets.patterns():
            offset = pattern.anchor
            key = _keys(pattern.data[offset : offset + SHORTEST])[0]
            by_key[int(key)].append((offset, pattern))
    wanted = np.array(sorted(by_key), dtype=np.uint64)
    found = {}
    for place, data in places.items():
        keys = _keys(data)
        for at in np.flatnonzero(np.isin(keys, wanted)):
            for offset, pattern in by_key[int(keys[at])]:
                if at >= offset and data.startswith(pattern.data, int(at) - offset):
                    found[place, pattern.what] = Found(place, pattern.what)
    return list(found.values())


def _keys(data: bytes) -> np.ndarray:
    """The first five bytes at every position, as one integer each."""
    octets = np.frombuffer(data, np.uint8).astype(np.uint64)
    count = max(0, len(octets) - SHORTEST + 1)
    keys = np.zeros(count, np.uint64)
    for place in range(SHORTEST):
        keys |= octets[place : place + count] << np.uint64(8 * place)
    return keys


def _forms(array: np.ndarray) -> Iterator[tuple[str, bytes]]:
    kinds = ["f4", "f8"] if array.dtype.kind == "f" else [array.dtype.str[1:]]
    for kind in kinds:
        for order in "<>":
            yield f"{order}{kind}", np.ascontiguousarray(array, dtype=f"{order}{kind}").tobytes()
    if array.dtype.kind == "f":
        yield "text", ", ".join(f"{value:.9g}" for value in array.ravel()).encode()


def _windows(data: bytes, item: int) -> Iterator[bytes]:
    """Windows of 16 bytes at every element, and the whole if it is shorter."""
    last = max(0, len(data) - WINDOW)
    for start in range(0, last + 1, item):
        yield data[start : start + WINDOW]


def _number_forms(number: float) -> Iterator[tuple[str, bytes]]:
    for order in "<>":
        yield f"{order}f8", struct.pack(f"{order}d", number)
    yield "text", repr(number).encode()[:10]
    if isinstance(number, int):
        for order in "<>":
            yield f"{order}i8", struct.pack(f"{order}q", number)
        yield "msgpack", msgspec.msgpack.encode(number)
        yield "short", number.to_bytes((number.bit_length() + 7) // 8, "big")
        yield "varint", _varint(number)
        yield "zigzag varint", _varint(2 * number)


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])
