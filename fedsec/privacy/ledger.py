"""What one owner's records have cost over all trainings, recorded before anything is spent."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from fedsec.errors import StateError
from fedsec.privacy.accounting import SampledGaussian

Plan = Callable[[tuple[SampledGaussian, ...]], SampledGaussian]
"""Gives, for what was spent so far, the steps to come; raises when they would cost too much."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS spent (
  place INTEGER PRIMARY KEY, noise_multiplier REAL NOT NULL, sampling_rate REAL NOT NULL,
  steps INTEGER NOT NULL);
"""
_WAIT_S = 120
"""Longest wait for another process of the same hospital, which may be calibrating its noise."""


class Ledger(Protocol):
    """Whatever keeps account of one owner's records."""

    def charge(self, plan: Plan) -> tuple[SampledGaussian, ...]:
        """Record the steps that a plan gives, before any of them is taken.

        Whether they are then taken does not matter: what was recorded counts.

        Args:
            plan: What is to come; nothing is recorded when it raises.

        Returns:
            Everything that was ever recorded, in order; what the plan gave is the last.
        """
        ...


class MemoryLedger:
    """An account of one process, for records that are used nowhere else."""

    def __init__(self) -> None:
        self._spent: tuple[SampledGaussian, ...] = ()

    def charge(self, plan: Plan) -> tuple[SampledGaussian, ...]:
        """See :meth:`Ledger.charge`."""
        self._spent = (*self._spent, plan(self._spent))
        return self._spent


class DurableLedger:
    """An account on disk: it outlives processes, and two that charge at once do so one after the other.

    Args:
        folder: The state folder of the records' owner, made when missing (mode 0700).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def charge(self, plan: Plan) -> tuple[SampledGaussian, ...]:
        """See :meth:`Ledger.charge`; what is returned is on the disk.

        Raises:
            StateError: The disk does not take it.
        """
        with self._connection() as database:
            with _errors():
                # The lock is held while planning: two rounds at once must not both have the last of it.
                database.execute("BEGIN IMMEDIATE")
                query = "SELECT noise_multiplier, sampling_rate, steps FROM spent ORDER BY place"
                spent = tuple(SampledGaussian(*row) for row in database.execute(query))
            one = plan(spent)
            with _errors():
                query = "INSERT INTO spent (noise_multiplier, sampling_rate, steps) VALUES (?, ?, ?)"
                database.execute(query, (one.noise_multiplier, one.sampling_rate, one.steps))
                database.execute("COMMIT")
        return (*spent, one)

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with _errors():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self._folder / "privacy.sqlite"
            database = sqlite3.connect(path, isolation_level=None, timeout=_WAIT_S)
        # What was not committed is rolled back by closing.
        with contextlib.closing(database):
            with _errors():
                path.chmod(0o600)
                database.execute("PRAGMA synchronous=EXTRA")
                database.executescript(_SCHEMA)
            yield database


def together(mechanisms: Iterable[SampledGaussian]) -> tuple[SampledGaussian, ...]:
    """Return the same steps with those of one kind in one entry, in the order of their first ones."""
    steps: dict[SampledGaussian, int] = {}
    for one in mechanisms:
        kind = replace(one, steps=0)
        steps[kind] = steps.get(kind, 0) + one.steps
    return tuple(replace(kind, steps=count) for kind, count in steps.items())


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        text = f"what the records have cost cannot be read or written ({type(error).__name__})"
        raise StateError(f"{text}; nothing was trained") from error
