"""The parts of uploads at an aggregator: on disk, and summed. How a hospital makes them is in ``making``."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from fedsec.aggregation.announcement import Announcement
from fedsec.aggregation.checksum import Checksum
from fedsec.aggregation.disk import disk_errors, sync_folder
from fedsec.aggregation.messages import NONCE_BYTES
from fedsec.aggregation.planner import Layout
from fedsec.aggregation.signing import Buffer
from fedsec.errors import ProtocolError, StateError
from fedsec.ring import RingArray, ring_of
from fedsec.sharing import compressed

__all__ = [
    "CHUNK_BYTES",
    "PartChecksum",
    "PartFolder",
    "PartWriter",
    "erase_folder",
    "part_bytes",
    "sum_parts",
]

CHUNK_BYTES = 1 << 20
_STATE = "the aggregator's state"
_ERASED = ".erased"
_ERASE_ATTEMPTS = 10


def part_bytes(announcement: Announcement, hospital: str, aggregator: str) -> int:
    """Return the exact size of the part that ``hospital`` sends to ``aggregator``."""
    holds_vector = announcement.vector_holder(hospital) == aggregator
    body = announcement.layout.vector_bytes if holds_vector else compressed.SEED_BYTES
    return NONCE_BYTES + body


class PartWriter:
    """Writes one part to disk while it arrives; nothing of it is visible until :meth:`commit`.

    Args:
        path: Where the part will be, :meth:`PartFolder.part`.
        size: Its exact size in bytes.

    Raises:
        StateError: The disk does not take it.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._final = path
        self._draft = path.with_suffix(f".{secrets.token_hex(4)}.draft")
        self._expected, self._written, self._begun = size, 0, 0
        self._lock = threading.Lock()
        self._replaced = self._committed = False
        with disk_errors(_STATE):
            self._file = self._draft.open("xb", buffering=0)

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._file.close()
        self._draft.unlink(missing_ok=True)

    def give_way(self) -> None:
        """Free the draft's space at once and refuse what still arrives; any thread may say this.

        A part that is whole and has its final name stays.

        Raises:
            StateError: The disk does not take it.
        """
        with self._lock, disk_errors(_STATE):
            if self._committed:
                return
            self._replaced = True
            if not self._file.closed:
                self._file.truncate(0)
            self._draft.unlink(missing_ok=True)

    def write(self, chunk: Buffer) -> None:
        """Append bytes.

        Raises:
            ProtocolError: More bytes than the part may have, or a later attempt has taken its place.
            StateError: The disk does not take them.
        """
        view = memoryview(chunk)
        self._written += view.nbytes
        if self._written > self._expected:
            raise ProtocolError(f"a part of {self._expected} bytes was expected, more arrived: dropped")
        with self._lock, disk_errors(_STATE):
            self._require_mine()
            while view.nbytes:
                view = view[self._file.write(view) or 0 :]
            if self._written - self._begun >= CHUNK_BYTES:
                # Begins to write what is there, without waiting: the disk works while the rest arrives.
                os.posix_fadvise(
                    self._file.fileno(), self._begun, self._written - self._begun, os.POSIX_FADV_DONTNEED
                )
                self._begun = self._written

    def require_whole(self) -> None:
        """Check that nothing is missing.

        Raises:
            ProtocolError: Fewer bytes than expected arrived.
        """
        if self._written != self._expected:
            raise ProtocolError(f"a part of {self._expected} bytes was expected, {self._written} arrived")

    def sync(self) -> None:
        """Force the bytes to disk.

        Raises:
            ProtocolError: Fewer bytes than expected arrived.
            StateError: The disk does not take them.
        """
        self.require_whole()
        with disk_errors(_STATE):
            os.fdatasync(self._file.fileno())

    def commit(self) -> None:
        """Give the part its final name, durably.

        Raises:
            ProtocolError: A later attempt has taken its place.
            StateError: The disk does not take it.
        """
        with self._lock, disk_errors(_STATE):
            self._require_mine()
            self._draft.replace(self._final)
            self._committed = True
            sync_folder(self._final.parent)

    def withdraw(self) -> None:
        """Remove a part that was committed and is not to be kept after all."""
        self._final.unlink(missing_ok=True)

    def _require_mine(self) -> None:
        if self._replaced:
            raise ProtocolError("the hospital has begun this upload again: the earlier attempt was dropped")


class PartFolder:
    """The files of one round: parts until S is signed, the sum share until the outcome is known."""

    def __init__(self, root: Path, round_key: bytes) -> None:
        self.path = root / round_key.hex()

    def create(self) -> None:
        """Make the folder, readable by its owner only.

        Raises:
            StateError: The disk does not take it.
        """
        with disk_errors(_STATE):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_folder(self.path.parent)

    def part(self, header: bytes) -> Path:
        """Return the path of a committed part; no two hospitals share ``header``, the header digest."""
        return self.path / f"{header.hex()}.part"

    def write_sum(self, nonce: bytes, words: RingArray) -> None:
        """Store nonce || sum share durably, replacing one that was never signed."""
        draft = self.path / "sum.draft"
        with disk_errors(_STATE), draft.open("wb") as file:
            file.write(nonce)
            file.write(words.data.cast("B"))
            file.flush()
            os.fsync(file.fileno())
        with disk_errors(_STATE):
            draft.replace(self.path / "sum")
            sync_folder(self.path)

    def read_sum(self) -> bytes:
        """Return nonce || sum share.

        Raises:
            StateError: The file is gone or cannot be read.
        """
        with disk_errors(_STATE):
            return (self.path / "sum").read_bytes()

    def erase_parts(self, keep: Collection[bytes] = ()) -> None:
        """Remove every part but those with a header digest to keep; the sum share stays.

        Raises:
            StateError: The disk does not take it.
        """
        kept = {self.part(header) for header in keep}
        with disk_errors(_STATE):
            for file in [*self.path.glob("*.part"), *self.path.glob("*.draft")]:
                if file not in kept:
                    # An upload that ends at this moment removes its draft itself.
                    file.unlink(missing_ok=True)

    def erase(self) -> None:
        """Remove the folder with all that is in it, also while uploads are under way.

        Raises:
            StateError: Something is left; call again, or :func:`erase_folder` what bears another name now.
        """
        # Under its new name no upload finds it any more, to begin a draft in it or to remove one from it.
        aside = self.path.with_suffix(f".{secrets.token_hex(4)}{_ERASED}")
        with disk_errors(_STATE), contextlib.suppress(FileNotFoundError):
            self.path.rename(aside)
        for folder in self.path.parent.glob(f"{self.path.name}.*{_ERASED}"):
            erase_folder(folder)


def erase_folder(folder: Path) -> None:
    """Remove a folder with all that is in it.

    Raises:
        StateError: Something is left.
    """
    for _ in range(_ERASE_ATTEMPTS):
        # One file that vanishes meanwhile must not keep the others: the check is what is left at the end.
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
    raise StateError(f"the folder '{folder.name}' of a round that has ended cannot be removed from the disk")


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

    def difference(self) -> int:
        """Return the share of <rho, x> - t mod 2^k of the part that has arrived whole."""
        if not self._holds_vector:
            ring = self._layout.encoding.ring
            for piece in compressed.expand_pieces(self._rest, self._layout.words, ring):
                self._running.add(piece)
        return self._running.value


def sum_parts(layout: Layout, parts: Sequence[tuple[Path, bool]]) -> RingArray:
    """Add the parts of the included uploads, reading one piece at a time.

    Args:
        layout: The layout of the round.
        parts: Each part's file, and whether it holds the vector (otherwise a seed).

    Returns:
        The sum share, shape [layout.words]. Memory does not grow with the number of hospitals.

    Raises:
        StateError: A part is gone or has another size than when it was stored.
    """
    total: RingArray = np.zeros(layout.words, dtype=layout.encoding.ring.dtype)
    for path, holds_vector in parts:
        _add_part(total, path, holds_vector)
    return total


def _add_part(total: RingArray, path: Path, holds_vector: bool) -> None:
    expected = NONCE_BYTES + (total.nbytes if holds_vector else compressed.SEED_BYTES)
    with disk_errors(_STATE), path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size != expected or len(file.read(NONCE_BYTES)) != NONCE_BYTES:
            raise StateError(f"a stored part has {size} bytes, {expected} were stored: the state is damaged")
        at = 0
        own = _pieces(file.fileno(), total)
        for piece in (
            own if holds_vector else compressed.expand_pieces(file.read(), total.size, ring_of(total))
        ):
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
