"""Databases of which only the owner reads, and transactions that happen whole or not at all."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fedsec.durable import empty_log, open_database, transaction


@pytest.fixture
def loose_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("loose_umask")
@pytest.mark.parametrize("there", [False, True])
def test_only_the_owner_may_read_what_is_written(tmp_path: Path, there: bool) -> None:
    path = tmp_path / "one.sqlite"
    if there:
        path.touch(0o644)
    with closing(open_database(path)) as database:
        database.execute("CREATE TABLE numbers (one INTEGER)")
        for file in tmp_path.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


def test_a_commit_is_on_the_disk(tmp_path: Path) -> None:
    # https://sqlite.org/pragma.html#pragma_synchronous: 2 is FULL; with less a power cut takes commits along.
    with closing(open_database(tmp_path / "one.sqlite")) as database:
        assert database.execute("PRAGMA synchronous").fetchone() == (2,)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


LEAVE_THE_LOG = """
import sqlite3, sys
print(sqlite3.connect(sys.argv[1], timeout=0).execute("PRAGMA journal_mode=DELETE").fetchone()[0])
"""


def test_opening_a_database_again_leaves_its_locks(tmp_path: Path) -> None:
    """A process that takes the file for unused would remove the log that others write to."""
    path = tmp_path / "one.sqlite"
    with closing(open_database(path)) as database:
        database.execute("CREATE TABLE numbers (one INTEGER)")
        open_database(path).close()
        command = [sys.executable, "-c", LEAVE_THE_LOG, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "database is locked" in done.stderr, done.stdout


def insert(database: sqlite3.Connection, *numbers: object, error: BaseException | None = None) -> None:
    with transaction(database):
        for number in numbers:
            database.execute("INSERT INTO numbers VALUES (?)", (number,))
        if error is not None:
            raise error


def test_a_transaction_happens_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "one.sqlite"
    with closing(open_database(path)) as database, closing(open_database(path)) as other:
        database.execute("CREATE TABLE numbers (one INTEGER UNIQUE)")
        with transaction(database):
            database.execute("INSERT INTO numbers VALUES (1)")
            assert other.execute("SELECT one FROM numbers").fetchall() == []
        with pytest.raises(sqlite3.IntegrityError):
            insert(database, 2, 1)
        with pytest.raises(KeyboardInterrupt):
            insert(database, 3, error=KeyboardInterrupt())
        insert(database, 4)
        assert other.execute("SELECT one FROM numbers ORDER BY one").fetchall() == [(1,), (4,)]


def test_an_error_that_ended_the_transaction_itself_is_the_one_that_is_told(tmp_path: Path) -> None:
    with closing(open_database(tmp_path / "one.sqlite")) as database:
        # As a full disk does: https://sqlite.org/lang_transaction.html, section 3.
        database.execute("CREATE TABLE numbers (one INTEGER UNIQUE ON CONFLICT ROLLBACK)")
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
            insert(database, 1, 1)
        assert not database.in_transaction
        assert database.execute("SELECT one FROM numbers").fetchall() == []


def test_an_emptied_log_holds_zeros_and_takes_commits_without_growing(tmp_path: Path) -> None:
    path, crashed = tmp_path / "one.sqlite", tmp_path / "crashed"
    log = tmp_path / "one.sqlite-wal"

    def after_a_crash() -> list[tuple[object, ...]]:
        shutil.rmtree(crashed, ignore_errors=True)
        crashed.mkdir()
        for file in (path, log):
            shutil.copy(file, crashed)
        with closing(open_database(crashed / path.name)) as database:
            return database.execute("SELECT one FROM numbers ORDER BY one").fetchall()

    with closing(open_database(path)) as database:
        database.execute("CREATE TABLE numbers (one UNIQUE)")
        insert(database, "what is to be erased")
        assert b"to be erased" in log.read_bytes()
        insert(database, 1)
        database.execute("DELETE FROM numbers WHERE one != 1")
        empty_log(database, path)
        length = log.stat().st_size
        assert log.read_bytes() == bytes(length)
        assert after_a_crash() == [(1,)]
        for number in range(2, 30):
            insert(database, number)
        assert after_a_crash() == [(number,) for number in range(1, 30)]
        assert log.stat().st_size == length > 30 * 4096
        empty_log(database, path)
        assert log.read_bytes() == bytes(length)
    assert not log.exists()
    with closing(open_database(path)) as database:
        assert len(database.execute("SELECT one FROM numbers").fetchall()) == 29


def test_a_log_that_somebody_reads_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "one.sqlite"
    with closing(open_database(path)) as database, closing(open_database(path)) as reader:
        database.execute("PRAGMA busy_timeout=0")
        database.execute("CREATE TABLE numbers (one UNIQUE)")
        reader.execute("BEGIN")
        assert reader.execute("SELECT one FROM numbers").fetchall() == []
        insert(database, 1)
        empty_log(database, path)
        assert path.with_name("one.sqlite-wal").read_bytes().strip(b"\0")
        assert reader.execute("SELECT one FROM numbers").fetchall() == []
        reader.execute("COMMIT")
        assert reader.execute("SELECT one FROM numbers").fetchall() == [(1,)]
