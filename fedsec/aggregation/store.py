"""Durable state of one aggregator: SQLite (WAL, ``synchronous=FULL``) beside the part files.

Everything an aggregator says (an acknowledgement, a signature, a share) is committed here first, so that
after a crash it says the same again or nothing. No share is ever in the database but seeds under a cover.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from fedsec.aggregation.chain import GENESIS, MOST_MISSED, NOTHING_SEEN
from fedsec.aggregation.messages import ChainHead, ExcludedUpload, IncludedUpload, ListEntry, Signed
from fedsec.aggregation.signing import digest
from fedsec.durable import empty_log, open_database, transaction
from fedsec.errors import StateError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS rounds (
  key BLOB PRIMARY KEY, state TEXT NOT NULL, payload BLOB NOT NULL, signature BLOB NOT NULL,
  deadline REAL NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uploads (
  round BLOB NOT NULL, hospital TEXT NOT NULL, upload_id BLOB NOT NULL, header_digest BLOB NOT NULL,
  checksum BLOB, signature BLOB NOT NULL, included INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (round, hospital), UNIQUE (hospital, upload_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS seeds (
  round BLOB NOT NULL, hospital TEXT NOT NULL, seed BLOB NOT NULL,
  PRIMARY KEY (round, hospital)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS models (
  round BLOB NOT NULL, hospital TEXT NOT NULL, tag BLOB NOT NULL,
  PRIMARY KEY (round, hospital)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS excluded (
  round BLOB NOT NULL, hospital TEXT NOT NULL, reason TEXT NOT NULL,
  PRIMARY KEY (round, hospital)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS statements (
  round BLOB NOT NULL, kind TEXT NOT NULL, aggregator TEXT NOT NULL, payload BLOB NOT NULL,
  signature BLOB NOT NULL, PRIMARY KEY (round, kind, aggregator)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
  counter INTEGER PRIMARY KEY, event BLOB NOT NULL, head BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS seen (
  public_key BLOB PRIMARY KEY, payload BLOB NOT NULL, signature BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rollbacks (public_key BLOB PRIMARY KEY, reason TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS evidence (round BLOB NOT NULL, payload BLOB NOT NULL, signature BLOB NOT NULL);
"""


class State(StrEnum):
    """Where a round stands at one aggregator; the last two are final."""

    OPEN = "open"
    LISTED = "listed"
    SIGNED = "signed"
    AGREED = "agreed"
    FINISHED = "finished"
    ABORTED = "aborted"

    @property
    def final(self) -> bool:
        """Whether nothing but receipts is answered any more."""
        return self in {State.FINISHED, State.ABORTED}


@dataclass(frozen=True, slots=True)
class RoundRow:
    """One round as stored; ``deadline`` (seconds since the epoch) ends the present state."""

    key: bytes
    state: State
    announcement: Signed
    deadline: float
    reason: str


@dataclass(frozen=True, slots=True)
class UploadRow:
    """One complete upload as stored; ``signature`` is the acknowledgement that was given."""

    entry: ListEntry
    signature: bytes


class Store:
    """The database of one aggregator. One thread at a time: the aggregator's lock sees to that.

    Args:
        folder: The aggregator's state folder, made when missing (mode 0700).

    Raises:
        StateError: The folder cannot be used, or the database in it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.parts_root = folder / "rounds"
        with _sqlite_errors():
            try:
                self.parts_root.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise StateError(f"the state folder cannot be made: {error.strerror}") from error
            self._path = folder / "aggregator.sqlite"
            self._db = open_database(self._path)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def _prepare(self) -> None:
        self._db.execute("PRAGMA secure_delete=ON")
        (verdict,) = self._db.execute("PRAGMA quick_check").fetchone()
        if verdict != "ok":
            raise StateError("the aggregator's database is damaged; restore nothing older: enrol it anew")
        self._db.executescript(_SCHEMA)
        empty_log(self._db, self._path)

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit everything written inside durably, or nothing of it.

        Raises:
            StateError: The disk does not take it.
        """
        with _sqlite_errors(), transaction(self._db):
            yield

    # Rounds.

    def add_round(self, row: RoundRow) -> None:
        """Store a new round."""
        announcement = row.announcement
        values = (row.key, row.state, announcement.payload, announcement.signature, row.deadline, row.reason)
        self._write("INSERT INTO rounds VALUES (?, ?, ?, ?, ?, ?)", *values)

    def set_state(self, key: bytes, state: State, deadline: float, reason: str = "") -> None:
        """Move a round to another state."""
        self._write(
            "UPDATE rounds SET state=?, deadline=?, reason=? WHERE key=?", state, deadline, reason, key
        )

    def round(self, key: bytes) -> RoundRow | None:
        """Return a round, or None when it was never announced here."""
        rows = self._read(
            "SELECT key, state, payload, signature, deadline, reason FROM rounds WHERE key=?", key
        )
        return _round_row(rows[0]) if rows else None

    def rounds(self) -> list[RoundRow]:
        """Return every round that is not final."""
        query = (
            "SELECT key, state, payload, signature, deadline, reason FROM rounds WHERE state NOT IN (?, ?)"
        )
        return [_round_row(row) for row in self._read(query, State.FINISHED, State.ABORTED)]

    def add_evidence(self, key: bytes, announcement: Signed) -> None:
        """Keep a second announcement that the server signed for one round."""
        self._write(
            "INSERT INTO evidence VALUES (?, ?, ?)", key, announcement.payload, announcement.signature
        )

    # Uploads.

    def add_upload(self, key: bytes, entry: ListEntry, signature: bytes) -> None:
        """Store that a part is complete.

        Raises:
            StateError: The hospital has one in this round, or used this upload id before.
        """
        checksum = entry.checksum.to_bytes(8, "big")
        query = "INSERT INTO uploads VALUES (?, ?, ?, ?, ?, ?, 0)"
        values = (key, entry.hospital, entry.upload_id, entry.header_digest, checksum, signature)
        self._write(query, *values)

    def uploads(self, key: bytes) -> dict[str, UploadRow]:
        """Return the complete uploads of a round by hospital, sorted by name."""
        query = """SELECT hospital, upload_id, header_digest, checksum, signature
            FROM uploads WHERE round=? ORDER BY hospital"""
        return {row[0]: _upload_row(row) for row in self._read(query, key)}

    def upload(self, key: bytes, hospital: str) -> UploadRow | None:
        """Return one hospital's complete upload in a round."""
        query = """SELECT hospital, upload_id, header_digest, checksum, signature
            FROM uploads WHERE round=? AND hospital=?"""
        rows = self._read(query, key, hospital)
        return _upload_row(rows[0]) if rows else None

    def upload_id_used(self, hospital: str, upload_id: bytes) -> bool:
        """Tell whether a hospital used an upload id in any round; other hospitals' ids do not matter."""
        return bool(self._read("SELECT 1 FROM uploads WHERE hospital=? AND upload_id=?", hospital, upload_id))

    def add_seed(self, key: bytes, hospital: str, seed: bytes) -> None:
        """Store the seed that a hospital's part holds, under its cover."""
        self._write("INSERT INTO seeds VALUES (?, ?, ?)", key, hospital, seed)

    def seeds(self, key: bytes) -> dict[str, bytes]:
        """Return the seeds of a round by hospital, under their covers."""
        return dict(self._read("SELECT hospital, seed FROM seeds WHERE round=?", key))

    def erase_seeds(self, key: bytes) -> None:
        """Erase the seeds of a round."""
        self._write("DELETE FROM seeds WHERE round=?", key)

    def add_model(self, key: bytes, hospital: str, tag: bytes) -> None:
        """Store which sealed model an upload was trained from, as its tag."""
        self._write("INSERT INTO models VALUES (?, ?, ?)", key, hospital, tag)

    def models(self, key: bytes) -> dict[str, bytes]:
        """Return the tags of the models of a sealed round by hospital; none for other rounds."""
        return dict(self._read("SELECT hospital, tag FROM models WHERE round=?", key))

    def set_included(self, key: bytes, included: list[ListEntry], excluded: list[ExcludedUpload]) -> None:
        """Store S and who is not in it."""
        for entry in included:
            self._write("UPDATE uploads SET included=1 WHERE round=? AND hospital=?", key, entry.hospital)
        for one in excluded:
            self._write("INSERT INTO excluded VALUES (?, ?, ?)", key, one.hospital, one.reason)

    def included(self, key: bytes) -> tuple[IncludedUpload, ...]:
        """Return S in canonical order."""
        query = (
            "SELECT hospital, upload_id, header_digest FROM uploads WHERE round=? AND included=1 ORDER BY 1"
        )
        return tuple(IncludedUpload(*row) for row in self._read(query, key))

    def excluded(self, key: bytes) -> tuple[ExcludedUpload, ...]:
        """Return the hospitals of the roster that are not in S."""
        query = "SELECT hospital, reason FROM excluded WHERE round=? ORDER BY 1"
        return tuple(ExcludedUpload(*row) for row in self._read(query, key))

    # Statements of the agreement; kind is "list" or "set".

    def add_statement(self, key: bytes, kind: str, aggregator: str, statement: Signed) -> None:
        """Store a signed statement of this or another aggregator."""
        values = (key, kind, aggregator, statement.payload, statement.signature)
        self._write("INSERT INTO statements VALUES (?, ?, ?, ?, ?)", *values)

    def statements(self, key: bytes, kind: str) -> dict[str, Signed]:
        """Return the statements of one kind by aggregator."""
        query = "SELECT aggregator, payload, signature FROM statements WHERE round=? AND kind=?"
        return {row[0]: Signed(row[1], row[2]) for row in self._read(query, key, kind)}

    # History.

    def chain(self) -> ChainHead:
        """Return this aggregator's chain head."""
        rows = self._read("SELECT counter, head FROM events ORDER BY counter DESC LIMIT 1")
        return ChainHead(*rows[0]) if rows else GENESIS

    def head(self, counter: int) -> bytes | None:
        """Return the head of this aggregator's chain after an event, or None when it has not come so far."""
        rows = self._read("SELECT head FROM events WHERE counter=?", counter)
        return rows[0][0] if rows else GENESIS.head if counter == GENESIS.counter else None

    def events(self, after: int, before: int) -> tuple[bytes, ...]:
        """Return this aggregator's events between two counters, the newest of them if they are too many."""
        query = "SELECT event FROM events WHERE counter>? AND counter<? ORDER BY counter"
        return tuple(row[0] for row in self._read(query, max(after, before - 1 - MOST_MISSED), before))

    def add_event(self, head: ChainHead, event: bytes) -> None:
        """Store this aggregator's next event and the head after it."""
        self._write("INSERT INTO events VALUES (?, ?, ?)", head.counter, event, head.head)

    def seen(self, public_key: bytes) -> Signed:
        """Return the last chain head that the peer with a key has shown, as it signed it."""
        rows = self._read("SELECT payload, signature FROM seen WHERE public_key=?", public_key)
        return Signed(*rows[0]) if rows else NOTHING_SEEN

    def set_seen(self, public_key: bytes, head: Signed) -> None:
        """Store the newest chain head of the peer with a key."""
        self._write("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", public_key, head.payload, head.signature)

    def set_rollback(self, public_key: bytes, reason: str) -> None:
        """Store that the aggregator with a key, this one or a peer, was set back to an older state."""
        self._write("INSERT OR IGNORE INTO rollbacks VALUES (?, ?)", public_key, reason)

    def rollbacks(self) -> dict[bytes, str]:
        """Return why each key's aggregator can take part in no round any more."""
        return dict(self._read("SELECT public_key, reason FROM rollbacks"))

    def forget(self, key: bytes) -> None:
        """Erase what a final round no longer needs: lists with their checksum shares; a digest stays.

        Receipts stay possible; the pages are overwritten and the write-ahead log is emptied.
        """
        with self.transaction():
            for aggregator, statement in self.statements(key, "list").items():
                query = """UPDATE statements SET payload=?, signature=x''
                    WHERE round=? AND kind='list' AND aggregator=?"""
                self._write(query, _fingerprint(statement), key, aggregator)
            self._write("UPDATE uploads SET checksum=NULL WHERE round=?", key)
            self.erase_seeds(key)
        with _sqlite_errors():
            empty_log(self._db, self._path)

    def forget_final(self) -> None:
        """Do what :meth:`forget` does for every final round, after a crash in between."""
        query = """SELECT key FROM rounds WHERE state IN (?, ?) AND key IN (
            SELECT round FROM statements WHERE kind='list' AND signature != x''
            UNION SELECT round FROM uploads WHERE checksum IS NOT NULL UNION SELECT round FROM seeds)"""
        for (key,) in self._read(query, State.FINISHED, State.ABORTED):
            self.forget(key)

    def _write(self, query: str, *values: object) -> None:
        with _sqlite_errors():
            self._db.execute(query, values)

    def _read(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with _sqlite_errors():
            return self._db.execute(query, values).fetchall()


def _upload_row(row: tuple[Any, ...]) -> UploadRow:
    hospital, upload_id, header, checksum, signature = row
    entry = ListEntry(hospital, upload_id, header, int.from_bytes(checksum or b"", "big"))
    return UploadRow(entry, signature)


def same_statement(known: Signed, statement: Signed) -> bool:
    """Tell whether a statement is the one that was stored, or of which a digest was kept."""
    return known in {statement, Signed(_fingerprint(statement), b"")}


def _fingerprint(statement: Signed) -> bytes:
    return statement.payload if not statement.signature else digest("statement", statement.payload)


def _round_row(row: tuple[Any, ...]) -> RoundRow:
    key, state, payload, signature, deadline, reason = row
    return RoundRow(key, State(state), Signed(payload, signature), deadline, reason)


@contextlib.contextmanager
def _sqlite_errors() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        kind = type(error).__name__
        raise StateError(
            f"the aggregator's database cannot be read or written ({kind}); nothing was said"
        ) from error
