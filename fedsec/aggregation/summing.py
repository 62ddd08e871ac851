"""What an aggregator computes over parts: each one's checksum while it arrives, the sum of those included."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from fedsec.aggregation.announcement import Announcement
from fedsec.aggregation.checksum import Checksum
from fedsec.aggregation.messages import NONCE_BYTES, ListEntry
from fedsec.aggregation.parts import PartFolder, PartWriter, SeedWriter, part_bytes
from fedsec.aggregation.planner import Layout
from fedsec.aggregation.running import Part, RunningSum
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
        expand: Hands the pieces of an expanded seed on; None if the part holds the vector.
    """

    def __init__(
        self,
        checksum: Checksum,
        layout: Layout,
        expand: Callable[[bytes, Callable[[RingArray], None]], None] | None,
    ) -> None:
        self._running, self._layout, self._expand = checksum.running(), layout, expand
        self._nonce_left = NONCE_BYTES
        self._rest = b""

    def add(self, chunk: Buffer) -> None:
        """Take the next bytes of the part, nonce first."""
        view = memoryview(chunk)
        skipped = min(self._nonce_left, view.nbytes)
        self._nonce_left -= skipped
        data: Buffer = b"".join((self._rest, view[skipped:])) if self._rest else view[skipped:]
        self._rest = b""
        if self._expand is not None:
            self._rest = bytes(data[: compressed.SEED_BYTES])
            return
        ring = self._layout.encoding.ring
        whole = len(data) - len(data) % ring.element_bytes
        self._running.add(np.frombuffer(data[:whole], dtype=ring.dtype))
        self._rest = bytes(data[whole:])

    @property
    def seed(self) -> bytes:
        """The seed of a part that has arrived whole; empty if it holds the vector."""
        return b"" if self._expand is None else self._rest

    def difference(self) -> int:
        """Return the share of <rho, x> - t mod 2^k of the part that has arrived whole."""
        if self._expand is not None:
            self._expand(self._rest, self._running.add)
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
        self._running = RunningSum(announcement.layout, len(announcement.roster))

    def holds_vector(self, hospital: str) -> bool:
        """Tell whether this aggregator gets the hospital's full vector; the others get a seed."""
        return hospital in self._vector_hospitals

    def writer(self, hospital: str, header: bytes) -> SeedWriter:
        """Return what takes a hospital's part while it arrives; ``header`` is the header digest."""
        size = part_bytes(self._announcement, hospital, self._me)
        if self.holds_vector(hospital):
            return PartWriter(self._folder.part(header), size)
        return SeedWriter(size)

    def checksum(self, hospital: str, header: bytes) -> PartChecksum:
        """Return what forms this aggregator's share of the checksum difference while a part arrives."""
        layout = self._announcement.layout
        if self._checksum is None:
            self._checksum = Checksum(layout, self._announcement.digest, keep=True)
        expand = None if self.holds_vector(hospital) else partial(self._running.expand, header)
        return PartChecksum(self._checksum, layout, expand)

    def forget_checksum(self) -> None:
        """Free what forms checksums: no more parts will come."""
        self._checksum = None

    def forget(self) -> None:
        """Free everything in memory: the round has ended."""
        self.forget_checksum()
        self._running.forget()

    def sum(self, included: Sequence[ListEntry]) -> RingArray:
        """Return the sum of the included parts.

        Raises:
            StateError: A part is gone or has another size than when it was stored.
        """
        return self._running.take(self._parts(included))

    def _parts(self, entries: Sequence[ListEntry]) -> dict[bytes, Part]:
        seeds = self._store.seeds(self._announcement.id.key)
        found: dict[bytes, Part] = {}
        for one in entries:
            header = one.header_digest
            if self.holds_vector(one.hospital):
                found[header] = self._folder.part(header)
            elif one.hospital in seeds:
                found[header] = self._folder.cover(header, seeds[one.hospital])
            else:
                raise StateError("the seed of a stored part is gone: the state is damaged")
        return found

    def erase(self, keep: Mapping[str, UploadRow] | None = None) -> None:
        """Erase all parts, or those without a row in ``keep``.

        Raises:
            StateError: The disk does not take it.
        """
        self._folder.erase_parts(None if keep is None else {row.entry.header_digest for row in keep.values()})
        if keep is None:
            self._store.erase_seeds(self._announcement.id.key)
