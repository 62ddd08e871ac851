"""What an aggregator computes over parts: each one's checksum while it arrives, the sum of those included."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from fedsec.aggregation.announcement import Announcement
from fedsec.aggregation.checksum import Checksum
from fedsec.aggregation.disk import disk_errors
from fedsec.aggregation.messages import NONCE_BYTES, ListEntry
from fedsec.aggregation.parts import CHUNK_BYTES, STATE, PartFolder, PartWriter, SeedWriter, part_bytes
from fedsec.aggregation.planner import Layout
from fedsec.aggregation.signing import Buffer
from fedsec.aggregation.store import Store, UploadRow
from fedsec.errors import StateError
from fedsec.ring import RingArray
from fedsec.sharing import compressed


class PartChecksum:
    """A part's share of the checksum difference, formed while the part arrives.

    Args:
        checksum: That of the round.
        layout: The layout of the round.
        holds_vector: Whether the part holds the vector (otherwise a seed).
    """

    def __init__(self, checksum: Checksum, layout: Layout, *, holds_vector: bool) -> None:
        self._running, self._layout, self._holds_vector = checksum.running(), layout, holds_vector
        self._nonce_left = NONCE_BYTES
        self._rest = b""

    def add(self, chunk: Buffer) -> None:
        """Take the next bytes of the part, nonce first."""
        view = memoryview(chunk)
        skipped = min(self._nonce_left, view.nbytes)
        self._nonce_left -= skipped
        data: Buffer = b"".join((self._rest, view[skipped:])) if self._rest else view[skipped:]
        self._rest = b""
        if not self._holds_vector:
            self._rest = bytes(data[: compressed.SEED_BYTES])
            return
        ring = self._layout.encoding.ring
        whole = len(data) - len(data) % ring.element_bytes
        self._running.add(np.frombuffer(data[:whole], dtype=ring.dtype))
        self._rest = bytes(data[whole:])

    @property
    def seed(self) -> bytes:
        """The seed of a part that has arrived whole; empty if it holds the vector."""
        return b"" if self._holds_vector else self._rest

    def difference(self) -> int:
        """Return the share of <rho, x> - t mod 2^k of the part that has arrived whole."""
        if not self._holds_vector:
            ring = self._layout.encoding.ring
            for piece in compressed.expand_pieces(self._rest, self._layout.words, ring):
                self._running.add(piece)
        return self._running.value


class Holdings:
    """The parts that one aggregator holds in a round: a file each vector, and the seeds in the database.

    Args:
        announcement: The round.
        me: The aggregator.
        folder: Where the files are.
        store: The database with the seeds.
    """

    def __init__(self, announcement: Announcement, me: str, folder: PartFolder, store: Store) -> None:
        self._announcement, self._me, self._folder, self._store = announcement, me, folder, store
        self._vector_hospitals = announcement.vector_hospitals(me)
        self._checksum: Checksum | None = None

    def holds_vector(self, hospital: str) -> bool:
        """Tell whether this aggregator gets the hospital's full vector; the others get a seed."""
        return hospital in self._vector_hospitals

    def writer(self, hospital: str, header: bytes) -> SeedWriter:
        """Return what takes a hospital's part while it arrives; ``header`` is the header digest."""
        size = part_bytes(self._announcement, hospital, self._me)
        if self.holds_vector(hospital):
            return PartWriter(self._folder.part(header), size)
        return SeedWriter(size)

    def checksum(self, hospital: str) -> PartChecksum:
        """Return what forms this aggregator's share of the checksum difference while a part arrives."""
        layout = self._announcement.layout
        if self._checksum is None:
            self._checksum = Checksum(layout, self._announcement.digest, keep=True)
        return PartChecksum(self._checksum, layout, holds_vector=self.holds_vector(hospital))

    def forget_checksum(self) -> None:
        """Free what forms checksums: no more parts will come."""
        self._checksum = None

    def sum(self, included: Sequence[ListEntry]) -> RingArray:
        """Return the sum of the included parts; see :func:`sum_parts`."""
        stored = self._store.seeds(self._announcement.id.key)
        vectors, seeds = [], []
        for one in included:
            if self.holds_vector(one.hospital):
                vectors.append(self._folder.part(one.header_digest))
            elif one.hospital in stored:
                seeds.append(self._folder.cover(one.header_digest, stored[one.hospital]))
            else:
                raise StateError("the seed of a stored part is gone: the state is damaged")
        return sum_parts(self._announcement.layout, vectors, seeds)

    def erase(self, keep: Mapping[str, UploadRow] | None = None) -> None:
        """Erase all parts, or those without a row in ``keep``.

        Raises:
            StateError: The disk does not take it.
        """
        self._folder.erase_parts(None if keep is None else {row.entry.header_digest for row in keep.values()})
        if keep is None:
            self._store.erase_seeds(self._announcement.id.key)


def sum_parts(layout: Layout, vectors: Iterable[Path], seeds: Iterable[bytes]) -> RingArray:
    """Add the parts of the included uploads, one piece at a time.

    Args:
        layout: The layout of the round.
        vectors: The files of the parts that hold a vector.
        seeds: The seeds of the others.

    Returns:
        The sum share, shape [layout.words]. Memory does not grow with the number of hospitals.

    Raises:
        StateError: A part is gone or has another size than when it was stored.
    """
    ring = layout.encoding.ring
    total: RingArray = np.zeros(layout.words, dtype=ring.dtype)
    for path in vectors:
        _add_vector(total, path)
    for seed in seeds:
        _add(total, compressed.expand_pieces(seed, total.size, ring))
    return total


def _add_vector(total: RingArray, path: Path) -> None:
    expected = NONCE_BYTES + total.nbytes
    with disk_errors(STATE), path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size != expected or len(file.read(NONCE_BYTES)) != NONCE_BYTES:
            raise StateError(f"a stored part has {size} bytes, {expected} were stored: the state is damaged")
        _add(total, _pieces(file.fileno(), total))


def _add(total: RingArray, pieces: Iterable[RingArray]) -> None:
    at = 0
    for piece in pieces:
        total[at : at + piece.size] += piece
        at += piece.size


def _pieces(descriptor: int, like: RingArray) -> Iterator[RingArray]:
    buffer: RingArray = np.empty(max(1, min(CHUNK_BYTES // like.itemsize, like.size)), dtype=like.dtype)
    left = like.size
    while left:
        piece = buffer[: min(left, buffer.size)]
        view = piece.data.cast("B")
        while view.nbytes:
            taken = os.readv(descriptor, [view])
            if not taken:
                raise StateError("a stored part ended early: the state is damaged")
            view = view[taken:]
        left -= piece.size
        yield piece
