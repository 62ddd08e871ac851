"""Looks for a model in the memory of processes and in files, in every encoding that it could be kept in.

A copy is noticed by any run of ``RUN`` parameters that stand one after the other, at whatever offset, or by a
few numbers as text. What is public, the initial parameters, is no part of what is looked for.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numba
import numpy as np

RUN = 32
"""Parameters in a row by which a copy is noticed."""

_STRIDE = 64
"""Parameters between the begins of two such runs."""

_TEXTS = 64
"""Numbers that are looked for as text."""

_FEWEST_TEXTS = 3
"""Of those, as many have to be found: one alone could be chance."""

_CHUNK = 1 << 25
_OVERLAP = 1 << 10
_HASH_BITS = 20
_MULTIPLIER = np.uint32(2654435761)

_FLOATS = ("<f8", ">f8", "<f4", ">f4", "<f2", ">f2")
_WORDS = ("<u8", ">u8", "<u4", ">u4")


def encodings(values: np.ndarray, fraction_bits: Iterable[int]) -> dict[str, np.ndarray]:
    """Return the numbers in every binary encoding: floats, and ring words with so many fraction bits."""
    found = {f"floats {kind}": values.astype(kind) for kind in _FLOATS}
    for bits in fraction_bits:
        whole = np.rint(np.ldexp(values, bits)).astype(np.int64).view(np.uint64)
        for kind in _WORDS:
            found[f"words at {bits} bits {kind}"] = (whole & np.uint64((1 << 8 * int(kind[2])) - 1)).astype(
                kind
            )
    return found


def texts(values: np.ndarray) -> dict[str, list[bytes]]:
    """Return numbers as they are printed: float32's and float64's shortest digits, and six places."""
    single = values.astype(np.float32)
    return {
        "text float32": [str(one).encode() for one in single],
        "text float64": [repr(float(one)).encode() for one in single],
        "text %.8e": [f"{one:.8e}".encode() for one in single],
    }


@dataclass(frozen=True)
class _Needle:
    name: str
    number: int
    data: bytes
    offset: int
    """Of the eight bytes in ``data`` that are looked for first."""


class Scanner:
    """Knows what a model looks like.

    Args:
        models: Models by a name for messages, each as one flat array of its parameters.
        fraction_bits: Of ring words.
    """

    def __init__(self, models: Mapping[str, np.ndarray], fraction_bits: Iterable[int] = (24,)) -> None:
        needles: list[_Needle] = []
        for name, values in models.items():
            needles += _runs(name, np.asarray(values, np.float64).reshape(-1), tuple(fraction_bits))
            needles += _numbers(name, np.asarray(values, np.float64).reshape(-1))
        self._needles = needles

    @cached_property
    def _by_key(self) -> dict[int, list[_Needle]]:
        found: dict[int, list[_Needle]] = {}
        for needle in self._needles:
            key = int.from_bytes(needle.data[needle.offset : needle.offset + 8], "little")
            found.setdefault(key, []).append(needle)
        return found

    @cached_property
    def _keys(self) -> np.ndarray:
        return np.array(sorted(self._by_key), dtype=np.uint64)

    @cached_property
    def _table(self) -> np.ndarray:
        table = np.zeros(1 << _HASH_BITS, dtype=bool)
        table[_hashes((self._keys & np.uint64(0xFFFFFFFF)).astype(np.uint32))] = True
        # A bit for each, so that it stays in the cache of a processor.
        return np.packbits(table, bitorder="little")

    def names_in(self, chunks: Iterable[bytes]) -> set[str]:
        """Return which encodings of which models are in pieces of memory."""
        found: dict[str, set[int]] = {}
        for chunk in chunks:
            for needle in self._hits(chunk):
                found.setdefault(needle.name, set()).add(needle.number)
        return {
            name for name, numbers in found.items() if "text" not in name or len(numbers) >= _FEWEST_TEXTS
        }

    def _hits(self, chunk: bytes) -> Iterator[_Needle]:
        data = np.frombuffer(chunk, dtype=np.uint8)
        places = _candidates(data, self._table)
        places = places[places <= len(chunk) - 8]
        if not places.size:
            return
        keys = np.ascontiguousarray(data[places[:, None] + np.arange(8)]).view("<u8")[:, 0]
        for place in places[np.isin(keys, self._keys)].tolist():
            key = int.from_bytes(chunk[place : place + 8], "little")
            for needle in self._by_key[key]:
                begin = place - needle.offset
                if begin >= 0 and chunk[begin : begin + len(needle.data)] == needle.data:
                    yield needle

    def in_process(self, pid: int) -> set[str]:
        """Return which encodings are in the memory of a process, which is stopped meanwhile."""
        with _stopped(pid):
            return self.names_in(memory_of(pid)) | self.names_in(_open_files(pid))

    def in_files(self, *folders: Path) -> dict[Path, set[str]]:
        """Return which encodings are in which files of these folders."""
        found = {}
        for folder in folders:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and not path.is_symlink() and (names := self.names_in(_chunks_of(path))):
                    found[path] = names
        return found


def _hashes(words: np.ndarray) -> np.ndarray:
    hashed: np.ndarray = words * _MULTIPLIER >> np.uint32(32 - _HASH_BITS)
    return hashed


@numba.njit
def _candidates(data: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return the places at which four bytes are in the table; the table is that of ``_hashes``."""
    found = np.empty(1024, dtype=np.int64)
    count, key = 0, np.uint32(0)
    for place in range(data.size):
        key = np.uint32(key >> np.uint32(8)) | np.uint32(np.uint32(data[place]) << np.uint32(24))
        hashed = np.uint32(key * _MULTIPLIER) >> np.uint32(32 - _HASH_BITS)
        if table[hashed >> np.uint32(3)] >> (hashed & np.uint32(7)) & 1 and place >= 3:
            if count == found.size:
                found = np.concatenate((found, np.empty(count, dtype=np.int64)))
            found[count] = place - 3
            count += 1
    return found[:count]


def _runs(name: str, values: np.ndarray, fraction_bits: tuple[int, ...]) -> Iterator[_Needle]:
    for encoding, encoded in encodings(values, fraction_bits).items():
        for start in range(0, values.size - RUN + 1, _STRIDE):
            run = encoded[start : start + RUN]
            # Zeros and constants are everywhere.
            if len(np.unique(run)) > RUN // 2:
                yield _Needle(f"{name}: {encoding}", start, run.tobytes(), _telling(run.tobytes()))


def _numbers(name: str, values: np.ndarray) -> Iterator[_Needle]:
    # Those that are no round numbers.
    chosen = [one for one in values[:: max(1, values.size // _TEXTS)] if len(str(np.float32(one))) >= 10]
    for encoding, written in texts(np.array(chosen)).items():
        for number, text in enumerate(written):
            yield _Needle(f"{name}: {encoding}", number, text, len(text) - 8)


def _telling(data: bytes) -> int:
    """Return where four bytes begin that are unlike others: memory is full of zeros and of small numbers."""
    return max(range(RUN), key=lambda place: len(set(data[place : place + 4]) - {0, 0xFF}))


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    if pid == os.getpid():
        yield
        return
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def memory_of(pid: int) -> Iterator[bytes]:
    """Yield all that can be read of a process' memory, in pieces that overlap.

    Left out are programs and libraries: mappings of files that the process may not write to.

    Raises:
        OSError: Nothing can be read at all, so that a scan would prove nothing.
    """
    read = 0
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, _, _, _, *name = line.split(maxsplit=5)
            kernels = bool(name) and name[0].startswith(("[vvar", "[vsyscall"))
            program = bool(name) and name[0].startswith("/") and "w" not in rights
            if not rights.startswith("r") or kernels or program:
                continue
            begin, end = (int(address, 16) for address in span.split("-"))
            for start in range(begin, end, _CHUNK):
                # Some mappings of devices and of the kernel cannot be read.
                with suppress(OSError, ValueError):
                    memory.seek(start)
                    chunk = memory.read(min(_CHUNK + _OVERLAP, end - start))
                    read += len(chunk)
                    yield chunk
    if read < 1 << 20:
        raise OSError(f"only {read} bytes of the memory of process {pid} can be read")


def _open_files(pid: int) -> Iterator[bytes]:
    """Yield the regular files that a process has open, also those without a name any more."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            if link.is_file():
                yield from _chunks_of(link)


def _chunks_of(path: Path) -> Iterator[bytes]:
    with suppress(FileNotFoundError), path.open("rb") as file:
        before = b""
        while chunk := file.read(_CHUNK):
            yield before + chunk
            before = chunk[-_OVERLAP:]
