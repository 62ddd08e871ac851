"""The durable book of charges of one party: who asked for how much, when, across restarts.

A charge is committed (SQLite, WAL, ``synchronous=FULL``) before the batch is computed, so a crash
can lose an answer but never a charge. A party may charge *ahead*, while it waits for the decision on what it
has voted for: then the disk works while the others talk. What is not decided in the end is taken back; what a
crash leaves behind stays charged. A charge whose output this party never gave out is *voided*:
it frees the service's count of answers, because no one can reconstruct without this party's share,
but it stays charged to the certificate. What a crash leaves behind counts as answered.

The file holds names, fingerprints, ids, times and counts; no share, key, image, answer or weight.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import msgspec

from fedsec.durable import open_database, transaction
from fedsec.errors import StateError, UsageError
from fedsec.serving.agreement import RequestKey, key_of
from fedsec.serving.book import ServiceBook
from fedsec.serving.messages import Entry, QueryRecord
from fedsec.serving.spending import MILLION, Price

_SCHEMA = """
CREATE TABLE IF NOT EXISTS service (
    id BLOB PRIMARY KEY, model BLOB NOT NULL, num_requests INTEGER, quota INTEGER, answered INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS charge (
    number INTEGER PRIMARY KEY, at REAL NOT NULL, name TEXT NOT NULL, model BLOB NOT NULL,
    fingerprint BLOB NOT NULL, request BLOB NOT NULL, service BLOB NOT NULL, images INTEGER NOT NULL,
    reveal TEXT NOT NULL, void INTEGER NOT NULL DEFAULT 0, epsilon INTEGER NOT NULL DEFAULT 0,
    UNIQUE (model, fingerprint, request)
);
"""
_CHARGE = "INSERT INTO charge VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?)"
_VERSION = 3
_WITHOUT_EPSILON = 2
"""The version before answers could be noisy: its charges spent no epsilon that anyone counted."""
_LOG_PAGES = 256
"""SQLite starts over in its write-ahead log after so many pages of 4 kB: some 80 charges."""


class Ledger:
    """One party's charges in one SQLite file; safe to use from several threads.

    Raises:
        StateError: the file cannot be opened, is damaged, or is of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            self._db = open_database(path)
        except (OSError, sqlite3.Error) as error:
            raise StateError(f"the ledger {path} cannot be opened: {error}") from error
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        """Set the length of the log, check the version and the file's soundness, create the tables."""
        with self._errors("opened"):
            self._db.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            sound = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if sound == "ok" and version in {0, _WITHOUT_EPSILON, _VERSION}:
                self._db.executescript(_SCHEMA)
                if version == _WITHOUT_EPSILON:
                    self._db.execute("ALTER TABLE charge ADD COLUMN epsilon INTEGER NOT NULL DEFAULT 0")
                self._db.execute(f"PRAGMA user_version={_VERSION}")
                self._stretch_log()
                return
        raise StateError(
            f"the ledger {self.path} is damaged or of version {version}, not {_VERSION}: the party serves "
            "nothing with it, since quotas and spent epsilon would be forgotten; restore it, or "
            "put it aside and both begin at zero"
        )

    def _stretch_log(self) -> None:
        """Give the write-ahead log its full length now: a commit that extends it takes twice as long."""
        self._db.execute("CREATE TABLE IF NOT EXISTS filler (bytes BLOB)")
        self._db.execute("INSERT INTO filler VALUES (zeroblob(?))", (_LOG_PAGES * 4096,))
        self._db.execute("DROP TABLE filler")
        self._db.execute("PRAGMA wal_checkpoint(RESTART)")

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
        with self._lock, self._errors("written"), transaction(self._db):
            yield self._db

    def open_service(
        self,
        service: bytes,
        model: bytes,
        *,
        num_requests: int | None,
        quota: int | None,
        answered: int = 0,
        price: Price | None = None,
    ) -> ServiceBook:
        """Enter a new service and return its book.

        Args:
            service: a fresh id.
            model: which model; quotas belong to it.
            num_requests: images that the service may answer.
            quota: images that one certificate may ask of the model.
            answered: images that earlier runs of the service have answered.
            price: what an answer spends of the model's epsilon, and the limits; None if nothing is noisy.

        Raises:
            UsageError: a service of this id ran before; its session must not come back.
            StateError: the entry could not be written.
        """
        with self._transaction() as db:
            if db.execute("SELECT 1 FROM service WHERE id = ?", (service,)).fetchone() is not None:
                raise UsageError("a service of this id ran here before: draw a fresh id for every service")
            row = (service, model, num_requests, quota, answered)
            db.execute("INSERT INTO service VALUES (?, ?, ?, ?, ?)", row)
        return ServiceBook(self, service, model, num_requests, quota, answered=answered, price=price)

    def read_one(self, query: str, values: tuple[bytes, ...]) -> int | None:
        """Return the single integer that a query finds, or None."""
        with self._lock, self._errors("read"):
            row = self._db.execute(query, values).fetchone()
        return None if row is None else int(row[0])

    def answered(self, service: bytes) -> int | None:
        """Images answered by a service, those of its earlier runs included; None if it never ran here."""
        return self.read_one(
            # A crash may leave charges behind of requests that would not have been answered beside others.
            "SELECT MIN(answered + (SELECT COALESCE(SUM(images), 0) FROM charge"
            " WHERE charge.service = service.id AND NOT void), COALESCE(num_requests, 1 << 53))"
            " FROM service WHERE id = ?",
            (service,),
        )

    def used_by(self, model: bytes, fingerprint: bytes) -> int:
        """Images charged to a certificate for a model, over all services."""
        query = "SELECT COALESCE(SUM(images), 0) FROM charge WHERE model = ? AND fingerprint = ?"
        return self.read_one(query, (model, fingerprint)) or 0

    def spent_on(self, model: bytes, fingerprint: bytes | None = None) -> int:
        """Millionths of epsilon charged for a model over all services: to a certificate, or in all.

        What was charged and not answered in the end is spent all the same.
        """
        query = "SELECT COALESCE(SUM(epsilon), 0) FROM charge WHERE model = ?"
        if fingerprint is None:
            return self.read_one(query, (model,)) or 0
        return self.read_one(f"{query} AND fingerprint = ?", (model, fingerprint)) or 0

    def queries(self, before: int | None, most: int) -> list[QueryRecord]:
        """Return the newest charges, the last one first.

        Args:
            before: only those with a lower number; all by default.
            most: how many.
        """
        query = (
            "SELECT number, at, name, fingerprint, model, images, reveal, NOT void, epsilon FROM charge"
            " WHERE ? IS NULL OR number < ? ORDER BY number DESC LIMIT ?"
        )
        with self._lock, self._errors("read"):
            rows = self._db.execute(query, (before, before, most)).fetchall()
        return [
            QueryRecord(
                number, at, name, fingerprint, model, images, reveal, bool(answered), epsilon / MILLION
            )
            for number, at, name, fingerprint, model, images, reveal, answered, epsilon in rows
        ]

    def charge(self, book: ServiceBook, entries: Sequence[Entry]) -> None:
        """Charge a whole batch, durably; on error nothing of it is charged.

        Raises:
            StateError: an entry was charged before, or the disk refuses.
        """
        now = time.time()
        rows = [
            (
                *(now, book.name_of(fingerprint), book.model, fingerprint, request, book.service),
                *(images, reveal, book.millionths(images)),
            )
            for fingerprint, request, images, reveal in map(msgspec.structs.astuple, entries)
        ]
        if len(rows) == 1:
            # A statement by itself is a transaction, with a third of the calls.
            with self._lock, self._errors("written"):
                self._db.execute(_CHARGE, rows[0])
            return
        with self._transaction() as db:
            db.executemany(_CHARGE, rows)

    def take_back(self, book: ServiceBook, keys: Collection[RequestKey]) -> None:
        """Forget charges of requests that were never decided on."""
        with self._transaction() as db:
            db.executemany(
                "DELETE FROM charge WHERE model = ? AND fingerprint = ? AND request = ?",
                [(book.model, *key) for key in keys],
            )

    def void(self, book: ServiceBook, entries: Sequence[Entry]) -> int:
        """Note that this party gave out no output share for these charged requests.

        Returns:
            How many images that were.
        """
        images = 0
        with self._transaction() as db:
            for entry in entries:
                cursor = db.execute(
                    "UPDATE charge SET void = 1"
                    " WHERE model = ? AND fingerprint = ? AND request = ? AND void = 0",
                    (book.model, *key_of(entry)),
                )
                images += entry.images if cursor.rowcount == 1 else 0
        return images

    def close(self) -> None:
        """Close the file; nothing may be charged afterwards."""
        with self._lock:
            self._db.close()
