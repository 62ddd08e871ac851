"""Durable state of one hospital: which announcement it accepted and which upload it made, round by round."""

from __future__ import annotations

import contextlib
import hmac
import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from fedsec.aggregation.announcement import RoundId
from fedsec.aggregation.messages import Signed
from fedsec.aggregation.signing import Buffer
from fedsec.durable import open_database, transaction
from fedsec.errors import ProtocolError, StateError, TrustError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS secret (one INTEGER PRIMARY KEY CHECK (one = 1), key BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS announcements (
  session BLOB NOT NULL, position INTEGER NOT NULL, digest BLOB NOT NULL, payload BLOB NOT NULL,
  signature BLOB NOT NULL, PRIMARY KEY (session, position, digest)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uploads (
  session BLOB NOT NULL, position INTEGER NOT NULL, digest BLOB NOT NULL, upload_id BLOB NOT NULL,
  header_digest BLOB NOT NULL, tag BLOB NOT NULL UNIQUE, receipt INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (session, position)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS origins (session BLOB PRIMARY KEY, origin BLOB NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Submitted:
    """What was submitted in a round: the announcement's digest, the upload id and the header's digest."""

    announcement: bytes
    upload_id: bytes
    header_digest: bytes


class Verdict(IntEnum):
    """What came of an upload, as far as the hospital knows."""

    UNKNOWN = 0
    COUNTED = 1
    NOT_COUNTED = 2


class HospitalState:
    """The hospital's record, committed before the first byte of an upload leaves.

    Args:
        folder: The state folder of the trust file, made when missing (mode 0700).

    Attributes:
        key: 32 random bytes of this hospital, which never leave it.

    Raises:
        StateError: The folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        with _errors():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Calls come from one thread at a time, but in a simulation not always from the same one.
            self._db = open_database(folder / "hospital.sqlite")
            self._db.executescript(_SCHEMA)
            self._db.execute("INSERT OR IGNORE INTO secret VALUES (1, ?)", (secrets.token_bytes(32),))
            (self.key,) = self._db.execute("SELECT key FROM secret").fetchone()

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def accept(self, round_id: RoundId, digest: bytes, announcement: Signed) -> None:
        """Record an announcement that passed the trust file.

        After a second announcement for a round neither of them is accepted any more.

        Raises:
            TrustError: Another announcement was accepted for this round (both are kept as evidence), or
                the round is not above the last one this hospital uploaded to.
        """
        # Nothing has left yet: before anything does, :meth:`record` syncs this as well.
        with self._transaction(synced=False):
            query = "SELECT digest FROM announcements WHERE session=? AND position=?"
            known = self._db.execute(query, (round_id.session, round_id.position)).fetchall()
            query = "INSERT OR IGNORE INTO announcements VALUES (?, ?, ?, ?, ?)"
            values = (digest, announcement.payload, announcement.signature)
            self._db.execute(query, (round_id.session, round_id.position, *values))
        if any(other != digest for (other,) in known):
            raise TrustError(f"the server signed two announcements for {round_id}; both are kept as proof")
        query = "SELECT max(position) FROM uploads WHERE session=?"
        (last,) = self._db.execute(query, (round_id.session,)).fetchone()
        if last is not None and round_id.position < last:
            raise TrustError(f"{round_id} is not above the last round this hospital took part in")

    def require_origin(self, session: bytes, origin: bytes) -> None:
        """Keep the initial parameters of a session's first sealed round; refuse those of a later one.

        Args:
            session: The session.
            origin: What :func:`fedsec.aggregation.sealed.terms.origin_of` makes of an announcement.

        Raises:
            TrustError: They are others than in the session's first sealed round here. Nothing was sent.
        """
        query = "SELECT origin FROM origins WHERE session=?"
        with _errors():
            known = self._db.execute(query, (session,)).fetchone()
        if known is None:
            with self._transaction():
                self._db.execute("INSERT OR IGNORE INTO origins VALUES (?, ?)", (session, origin))
                known = self._db.execute(query, (session,)).fetchone()
        if known != (origin,):
            raise TrustError(
                f"session {session.hex()[:8]} began from other initial parameters, clips or fraction bits "
                "than this round announces; nothing was sent. With others in each round a server could read "
                "the sealed model off who refuses it"
            )

    def announcements(self, session: bytes) -> list[Signed]:
        """Return what was accepted of a session, the latest exchange first."""
        query = "SELECT payload, signature FROM announcements WHERE session=? ORDER BY position DESC"
        with _errors():
            return [Signed(*row) for row in self._db.execute(query, (session,)).fetchall()]

    def accepted(self, round_id: RoundId, digest: bytes) -> bool:
        """Tell whether exactly this announcement, and no other for its round, was accepted."""
        query = "SELECT digest FROM announcements WHERE session=? AND position=?"
        with _errors():
            rows = self._db.execute(query, (round_id.session, round_id.position)).fetchall()
        return [(digest,)] == rows

    def submitted(self, round_id: RoundId) -> Submitted | None:
        """Return what was submitted in a round, in this or an earlier process."""
        query = "SELECT digest, upload_id, header_digest FROM uploads WHERE session=? AND position=?"
        with _errors():
            row = self._db.execute(query, (round_id.session, round_id.position)).fetchone()
        return Submitted(*row) if row else None

    def tag(self, purpose: str, contents: Iterable[Buffer]) -> bytes:
        """Return a keyed tag of some contents in any order; only this hospital can make or compare it.

        The order is left out because it is the server's to choose: another one must not make another tag.
        """
        digests = sorted(hmac.digest(self.key, content, "sha256") for content in contents)
        return hmac.digest(self.key, b"\0".join([purpose.encode(), *digests]), "sha256")

    def used(self, round_id: RoundId, tag: bytes) -> bool:
        """Tell whether something with this tag went out under another round id, in any session."""
        query = "SELECT 1 FROM uploads WHERE tag=? AND NOT (session=? AND position=?)"
        with _errors():
            row = self._db.execute(query, (tag, round_id.session, round_id.position)).fetchone()
        return row is not None

    def record(self, round_id: RoundId, submitted: Submitted, tag: bytes) -> None:
        """Record an upload before its first byte leaves.

        Args:
            round_id: The round.
            submitted: The upload.
            tag: What :meth:`tag` made of the update, or of the evaluated model.

        Raises:
            ProtocolError: This went out under another round id: it is used once.
        """
        values = (submitted.announcement, submitted.upload_id, submitted.header_digest, tag)
        try:
            with self._transaction():
                query = "INSERT INTO uploads VALUES (?, ?, ?, ?, ?, ?, 0)"
                self._db.execute(query, (round_id.session, round_id.position, *values))
        except sqlite3.IntegrityError:
            text = "this update or evaluation went out before under another round id; it is used once"
            raise ProtocolError(f"{text}: two sums that differ by one hospital would open it") from None

    def add_verdict(self, round_id: RoundId, verdict: Verdict) -> None:
        """Record what came of an upload."""
        with self._transaction(synced=False):
            query = "UPDATE uploads SET receipt=? WHERE session=? AND position=?"
            self._db.execute(query, (verdict, round_id.session, round_id.position))

    def unconfirmed(self, most: int) -> list[Signed]:
        """Return the announcements of some uploads of which nothing is known yet."""
        query = """SELECT payload, signature FROM uploads JOIN announcements USING (session, position, digest)
            WHERE receipt=? ORDER BY session, position LIMIT ?"""
        with _errors():
            return [Signed(*row) for row in self._db.execute(query, (Verdict.UNKNOWN, most))]

    def announcement(self, round_id: RoundId, digest: bytes) -> Signed:
        """Return an announcement that was accepted, as the server signed it.

        Raises:
            StateError: It is not there.
        """
        query = "SELECT payload, signature FROM announcements WHERE session=? AND position=? AND digest=?"
        with _errors():
            row = self._db.execute(query, (round_id.session, round_id.position, digest)).fetchone()
        if row is None:
            raise StateError(f"the announcement of {round_id} is not in the hospital's state")
        return Signed(*row)

    @contextlib.contextmanager
    def _transaction(self, *, synced: bool = True) -> Iterator[None]:
        with _errors():
            # What is not synced survives the process; the next commit that is makes it survive the machine.
            self._db.execute(f"PRAGMA synchronous={'FULL' if synced else 'NORMAL'}")
            with transaction(self._db):
                yield


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except (sqlite3.Error, OSError) as error:
        kind = type(error).__name__
        raise StateError(
            f"the hospital's state cannot be read or written ({kind}); nothing was sent"
        ) from error
