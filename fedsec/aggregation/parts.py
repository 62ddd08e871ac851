"""The parts of uploads at an aggregator, on disk. How a hospital makes them is in ``making``.

A vector is a file of its own. A seed goes into the database with the row of its upload: one commit makes both
durable, where a file of 64 bytes had to be made, synced, renamed and its folder synced as well. It goes there
under a cover, whose key is a file beside the vectors: a database may keep copies of a row that was erased.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import shutil
import threading
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Self

from fedsec.aggregation.announcement import Announcement
from fedsec.aggregation.disk import disk_errors, sync_folder
from fedsec.aggregation.messages import NONCE_BYTES
from fedsec.aggregation.signing import Buffer
from fedsec.errors import ProtocolError, StateError
from fedsec.ring import RingArray, derive_key, fresh_key
from fedsec.sharing import compressed

CHUNK_BYTES = 1 << 20
STATE = "the aggregator's state"
_KEY = "key"
_ERASED = ".erased"
_ERASE_ATTEMPTS = 10


def part_bytes(announcement: Announcement, hospital: str, aggregator: str) -> int:
    """Return the exact size of the part that ``hospital`` sends to ``aggregator``."""
    holds_vector = announcement.vector_holder(hospital) == aggregator
    body = announcement.layout.vector_bytes if holds_vector else compressed.SEED_BYTES
    return NONCE_BYTES + body


class SeedWriter:
    """Takes a part that holds a seed, while it arrives; the row of its upload makes it durable.

    Args:
        size: Its exact size in bytes.

    Attributes:
        size: Its exact size in bytes.
    """

    def __init__(self, size: int) -> None:
        self.size, self._written = size, 0
        self._lock = threading.Lock()
        self._replaced = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def give_way(self) -> None:
        """Refuse what still arrives; any thread may say this."""
        with self._lock:
            self._replaced = True

    def write(self, chunk: Buffer) -> None:
        """Count bytes.

        Raises:
            ProtocolError: More bytes than the part may have, or a later attempt has taken its place.
        """
        self._count(memoryview(chunk).nbytes)
        with self._lock:
            self._require_mine()

    def require_whole(self) -> None:
        """Check that nothing is missing.

        Raises:
            ProtocolError: Fewer bytes than expected arrived.
        """
        if self._written != self.size:
            raise ProtocolError(f"a part of {self.size} bytes was expected, {self._written} arrived")

    def sync(self) -> None:
        """Check that nothing is missing; there is nothing on the disk yet."""
        self.require_whole()

    def commit(self) -> None:
        """Check that it is still the latest attempt.

        Raises:
            ProtocolError: A later attempt has taken its place.
        """
        with self._lock:
            self._require_mine()

    def withdraw(self) -> None:
        """Forget the part."""

    def _count(self, size: int) -> None:
        self._written += size
        if self._written > self.size:
            raise ProtocolError(f"a part of {self.size} bytes was expected, more arrived: dropped")

    def _require_mine(self) -> None:
        if self._replaced:
            raise ProtocolError("the hospital has begun this upload again: the earlier attempt was dropped")


class PartWriter(SeedWriter):
    """Writes a part that holds a vector to disk, while it arrives; nothing is visible until :meth:`commit`.

    Args:
        path: Where the part will be, :meth:`PartFolder.part`.
        size: Its exact size in bytes.

    Raises:
        StateError: The disk does not take it.
    """

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(size)
        self._final = path
        self._draft = path.with_suffix(f".{secrets.token_hex(4)}.draft")
        self._begun, self._committed = 0, False
        with disk_errors(STATE):
            self._file = self._draft.open("xb", buffering=0)

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
        with self._lock, disk_errors(STATE):
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
        self._count(view.nbytes)
        with self._lock, disk_errors(STATE):
            self._require_mine()
            while view.nbytes:
                view = view[self._file.write(view) or 0 :]
            if self._written - self._begun >= CHUNK_BYTES:
                # Begins to write what is there, without waiting: the disk works while the rest arrives.
                os.posix_fadvise(
                    self._file.fileno(), self._begun, self._written - self._begun, os.POSIX_FADV_DONTNEED
                )
                self._begun = self._written

    def sync(self) -> None:
        """Force the bytes to disk.

        Raises:
            ProtocolError: Fewer bytes than expected arrived.
            StateError: The disk does not take them.
        """
        self.require_whole()
        with disk_errors(STATE):
            os.fdatasync(self._file.fileno())

    def commit(self) -> None:
        """Give the part its final name, durably.

        Raises:
            ProtocolError: A later attempt has taken its place.
            StateError: The disk does not take it.
        """
        with self._lock, disk_errors(STATE):
            self._require_mine()
            self._draft.replace(self._final)
            self._committed = True
            sync_folder(self._final.parent)

    def withdraw(self) -> None:
        """Remove a part that was committed and is not to be kept after all."""
        self._final.unlink(missing_ok=True)


class PartFolder:
    """The files of one round: parts until S is signed, the sum share until the outcome is known."""

    def __init__(self, root: Path, round_key: bytes) -> None:
        self.path = root / round_key.hex()
        self._key = b""

    def create(self) -> None:
        """Make the folder, readable by its owner only, with the key for seeds and noise.

        Raises:
            StateError: The disk does not take it.
        """
        with disk_errors(STATE):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_folder(self.path.parent)
            if not (self.path / _KEY).exists():
                self._store(_KEY, fresh_key())

    def cover(self, header: bytes, seed: bytes) -> bytes:
        """Return a seed under its cover, or from under it, for the database.

        Args:
            header: The header digest, which belongs to one seed alone.
            seed: The seed, 32 bytes, or what this made of it.

        Raises:
            StateError: The key is erased or cannot be read.
        """
        pad = hmac.digest(self._secret(), header, "sha256")
        return bytes(one ^ other for one, other in zip(seed, pad, strict=True))

    def noise_key(self, announcement: bytes, root: bytes) -> bytes:
        """Return the key of the noise on the sum over one included set: always the same until it is erased.

        Args:
            announcement: The announcement digest.
            root: The root of the included set. Noise on the sum over another set is independent.

        Raises:
            StateError: The key it is derived from is erased or cannot be read.
        """
        return derive_key(self._secret(), purpose="aggregation/noise", context=announcement + root)

    def _secret(self) -> bytes:
        if not self._key:
            with disk_errors(STATE):
                self._key = (self.path / _KEY).read_bytes()
        return self._key

    def part(self, header: bytes) -> Path:
        """Return the path of a committed part; no two hospitals share ``header``, the header digest."""
        return self.path / f"{header.hex()}.part"

    def write_sum(self, nonce: bytes, words: RingArray) -> None:
        """Store nonce || sum share durably, replacing one that was never signed."""
        with disk_errors(STATE):
            self._store("sum", nonce, words.data.cast("B"))

    def _store(self, name: str, *contents: Buffer) -> None:
        draft = self.path / f"{name}.draft"
        with draft.open("wb") as file:
            for content in contents:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path / name)
        sync_folder(self.path)

    def read_sum(self) -> bytes:
        """Return nonce || sum share.

        Raises:
            StateError: The file is gone or cannot be read.
        """
        with disk_errors(STATE):
            return (self.path / "sum").read_bytes()

    def erase_parts(self, keep: Collection[bytes] | None = None) -> None:
        """Remove every part but those with a header digest to keep; the sum share stays.

        Args:
            keep: Header digests. Without any, the key for seeds and noise goes as well.

        Raises:
            StateError: The disk does not take it.
        """
        kept = {self.part(header) for header in keep or ()}
        with disk_errors(STATE):
            if keep is None:
                self._key = b""
                (self.path / _KEY).unlink(missing_ok=True)
            for file in [*self.path.glob("*.part"), *self.path.glob("*.draft")]:
                if file not in kept:
                    # An upload that ends at this moment removes its draft itself.
                    file.unlink(missing_ok=True)

    def erase(self) -> None:
        """Remove the folder with all that is in it, also while uploads are under way.

        Raises:
            StateError: Something is left; call again, or :func:`erase_folder` what bears another name now.
        """
        self._key = b""
        # Under its new name no upload finds it any more, to begin a draft in it or to remove one from it.
        aside = self.path.with_suffix(f".{secrets.token_hex(4)}{_ERASED}")
        with disk_errors(STATE), contextlib.suppress(FileNotFoundError):
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
