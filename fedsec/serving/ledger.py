"""The durable book of charges of one party: who asked for how much, across restarts.

A charge is committed (SQLite, WAL, ``synchronous=FULL``) before the batch is computed, so a crash
can lose an answer but never a charge. A charge whose output this party never gave out is *voided*:
it frees the service's count of answers, because no one can reconstruct without this party's share,
but it stays charged to the certificate. What a crash leaves behind counts as answered.

The file holds fingerprints, ids and counts; no share, key, image or weight.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsec.errors import StateError, UsageError
from fedsec.serving.agreement import RequestKey, key_of
from fedsec.serving.messages import Entry

_SCHEMA = """
CREATE TABLE IF NOT EXISTS service (
    id BLOB PRIMARY KEY, model BLOB NOT NULL, num_requests INTEGER, quota INTEGER, answered INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS usage (
    model BLOB, fingerprint BLOB, images INTEGER NOT NULL, PRIMARY KEY (model, fingerprint)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS charge (
    model BLOB, fingerprint BLOB, request BLOB, service BLOB NOT NULL, images INTEGER NOT NULL,
    void INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (model, fingerprint, request)
) WITHOUT ROWID;
"""
_VERSION = 1


class Ledger:
    """One party's charges in one SQLite file; safe to use from several threads.

    Raises:
        StateError: the file cannot be opened, is damaged, or is of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            # Made by us first: SQLite would create it readable for others under a loose umask.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(path, timeout=5.0, check_same_thread=False, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise StateError(f"the ledger {path} cannot be opened: {error}") from error
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        """Set durability, check the version and the file's soundness, create the tables."""
        with self._errors("opened"):
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            sound = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if sound == "ok" and version in {0, _VERSION}:
                self._db.executescript(_SCHEMA)
                self._db.execute(f"PRAGMA user_version={_VERSION}")
                return
        raise StateError(
            f"the ledger {self.path} is damaged or of version {version}, not {_VERSION}: "
            "the party serves nothing before it is restored, since quotas would be forgotten"
        )

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Turn SQLite's errors into ours: the caller fails closed."""
        try:
            yield
        except sqlite3.Error as error:
            raise StateError(f"the ledger {self.path} cannot be {what}: {error}; serving ends") from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit all of a block durably, or nothing of it."""
        with self._lock, self._errors("written"):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def open_service(
        self,
        service: bytes,
        model: bytes,
        *,
        num_requests: int | None,
        quota: int | None,
        answered: int = 0,
    ) -> ServiceBook:
        """Enter a new service and return its book.

        Args:
            service: a fresh id.
            model: which model; quotas belong to it.
            num_requests: images that the service may answer.
            quota: images that one certificate may ask of the model.
            answered: images that earlier runs of the service have answered.

        Raises:
            UsageError: a service of this id ran before; its session must not come back.
            StateError: the entry could not be written.
        """
        with self._transaction() as db:
            if db.execute("SELECT 1 FROM service WHERE id = ?", (service,)).fetchone() is not None:
                raise UsageError("a service of this id ran here before: draw a fresh id for every service")
            row = (service, model, num_requests, quota, answered)
            db.execute("INSERT INTO service VALUES (?, ?, ?, ?, ?)", row)
        return ServiceBook(self, service, model, num_requests, quota)

    def read_one(self, query: str, values: tuple[bytes, ...]) -> int | None:
        """Return the single integer that a query finds, or None."""
        with self._lock, self._errors("read"):
            row = self._db.execute(query, values).fetchone()
        return None if row is None else int(row[0])

    def charge(self, book: ServiceBook, entries: Sequence[Entry]) -> None:
        """Charge a whole batch, durably; on error nothing of it is charged.

        Raises:
            StateError: an entry was charged before, or the disk refuses.
        """
        with self._transaction() as db:
            for entry in entries:
                db.execute(
                    "INSERT INTO charge VALUES (?, ?, ?, ?, ?, 0)",
                    (book.model, entry.fingerprint, entry.request, book.service, entry.images),
                )
                db.execute(
                    "INSERT INTO usage VALUES (?, ?, ?)"
                    " ON CONFLICT DO UPDATE SET images = images + excluded.images",
                    (book.model, entry.fingerprint, entry.images),
                )
                self._count(db, book, entry.images)

    def void(self, book: ServiceBook, entries: Sequence[Entry]) -> None:
        """Note that this party gave out no output share for these charged requests."""
        with self._transaction() as db:
            for entry in entries:
                cursor = db.execute(
                    "UPDATE charge SET void = 1"
                    " WHERE model = ? AND fingerprint = ? AND request = ? AND void = 0",
                    (book.model, *key_of(entry)),
                )
                if cursor.rowcount == 1:
                    self._count(db, book, -entry.images)

    @staticmethod
    def _count(db: sqlite3.Connection, book: ServiceBook, images: int) -> None:
        """Change the number of images that the service has answered."""
        db.execute("UPDATE service SET answered = answered + ? WHERE id = ?", (images, book.service))

    def close(self) -> None:
        """Close the file; nothing may be charged afterwards."""
        with self._lock:
            self._db.close()


@dataclass(frozen=True, slots=True)
class ServiceBook:
    """The charges of one service, as :class:`fedsec.serving.agreement.Book` asks for them."""

    ledger: Ledger
    service: bytes
    model: bytes
    num_requests: int | None
    quota: int | None

    def used(self, key: RequestKey) -> bool:
        """Whether this request was charged before, also by an earlier run of this party."""
        query = "SELECT 1 FROM charge WHERE model = ? AND fingerprint = ? AND request = ?"
        return self.ledger.read_one(query, (self.model, *key)) is not None

    def answered(self) -> int:
        """Images answered by this service; what a crash interrupted counts as answered."""
        return self.ledger.read_one("SELECT answered FROM service WHERE id = ?", (self.service,)) or 0

    def left(self) -> int | None:
        """Images that the service may still answer; None means no limit."""
        return None if self.num_requests is None else self.num_requests - self.answered()

    def left_for(self, fingerprint: bytes) -> int | None:
        """Images that this certificate may still ask for; None means no limit."""
        if self.quota is None:
            return None
        query = "SELECT images FROM usage WHERE model = ? AND fingerprint = ?"
        return max(0, self.quota - (self.ledger.read_one(query, (self.model, fingerprint)) or 0))

    def charge(self, entries: Sequence[Entry]) -> None:
        """Charge a whole batch, durably."""
        self.ledger.charge(self, entries)

    def void(self, entries: Sequence[Entry]) -> None:
        """Note that these charges were never answered by this party."""
        self.ledger.void(self, entries)
