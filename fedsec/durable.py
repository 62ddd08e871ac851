"""SQLite files whose commits are on the disk: what was committed is there after a crash, of the machine too.

Errors stay SQLite's and the system's own: only the caller knows what could not be read or written, and what
does not happen because of it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

WAIT_S = 5.0
"""Longest wait for another process that writes."""
_MAKING = threading.Lock()
_FEWEST_LOG_BYTES, _MOST_LOG_BYTES = 1 << 20, 1 << 23
_ZEROS = bytes(1 << 16)


def open_database(path: Path) -> sqlite3.Connection:
    """Open a database that only its owner may read; made when missing, in a folder that is there.

    Transactions are begun and ended by hand, see :func:`transaction`. Any thread may use the connection, one
    at a time.

    Raises:
        OSError, sqlite3.Error: The file cannot be used.
    """
    _make_private(path)
    database = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
    try:
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            database.execute(f"PRAGMA {pragma}")
    except BaseException:
        database.close()
        raise
    return database


def _make_private(path: Path) -> None:
    """Make a file that only its owner may read: SQLite would make it readable for others under a loose umask.

    Whoever closes a descriptor of a database drops all locks that its process has on the file, those of other
    connections too (https://sqlite.org/howtocorrupt.html, section 2.2). So it is opened here only while it is
    missing, and nobody connects to it meanwhile.
    """
    with _MAKING:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            path.chmod(0o600)


@contextlib.contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Commit everything written inside durably, or nothing of it; other writers wait from the beginning.

    Raises:
        sqlite3.Error: The disk does not take it.
    """
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        # What has failed may have ended the transaction by itself.
        with contextlib.suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        raise


def empty_log(database: sqlite3.Connection, path: Path) -> None:
    """Move what is in the write-ahead log into the database; zeros take its place.

    The file keeps its length. A commit that makes a file longer waits for the file system's journal, and for
    whatever else goes out before it; one that overwrites what is there waits for its own bytes.

    Args:
        database: The only connection, with no transaction begun.
        path: Its file.

    Raises:
        sqlite3.Error: The disk does not take it.
    """
    log = path.with_name(f"{path.name}-wal")
    length = log.stat().st_size if log.exists() else 0
    (busy, *_) = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    # Zeros are no header, so SQLite sees an empty log. Without them, on a full disk, it has one, too.
    with contextlib.suppress(OSError), log.open("r+b", buffering=0) as file:
        if not busy and not log.stat().st_size:
            for _ in range(0, min(max(length, _FEWEST_LOG_BYTES), _MOST_LOG_BYTES), len(_ZEROS)):
                file.write(_ZEROS)
