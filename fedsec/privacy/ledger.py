"""What one owner's records have cost over all trainings, recorded before anything is spent.

There are two accounts, which are never added up, since they protect different things: that of records, whose
steps of DP-SGD are listed, and that of the hospital as a whole, whose noisy sums are.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, replace
from pathlib import Path
from typing import Protocol

from fedsec.durable import transaction
from fedsec.errors import StateError, UsageError
from fedsec.privacy.accounting import SampledGaussian
from fedsec.privacy.skellam_accounting import SkellamSum

Check = Callable[[tuple[SkellamSum, ...]], None]
"""Raises when a sum would cost too much after those that were recorded before."""
Plan = Callable[[tuple[SampledGaussian, ...]], SampledGaussian]
"""Gives, for what was spent so far, the steps to come; raises when they would cost too much."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS spent (
  place INTEGER PRIMARY KEY, noise_multiplier REAL NOT NULL, sampling_rate REAL NOT NULL,
  steps INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS sums (
  place INTEGER PRIMARY KEY, label TEXT NOT NULL UNIQUE, l2_sensitivity REAL NOT NULL,
  l1_sensitivity REAL NOT NULL, variance REAL NOT NULL, rounds INTEGER NOT NULL);
"""
"""Tables are only ever added: what an older fedsec has written is read, and it reads what it knows."""
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
        # The lock is held while planning: two rounds at once must not both have the last of it.
        with _opened(self._folder) as database, transaction(database):
            spent = _spent(database)
            one = plan(spent)
            query = "INSERT INTO spent (noise_multiplier, sampling_rate, steps) VALUES (?, ?, ?)"
            database.execute(query, (one.noise_multiplier, one.sampling_rate, one.steps))
        return (*spent, one)

    def spent(self) -> tuple[SampledGaussian, ...]:
        """Return everything that was ever recorded, in order.

        Raises:
            StateError: The disk does not give it.
        """
        with _opened(self._folder) as database:
            return _spent(database)


class SumLedger(Protocol):
    """Whatever keeps account of the sums that a hospital as a whole has contributed to."""

    def charge(self, label: str, one: SkellamSum, check: Check) -> tuple[SkellamSum, ...]:
        """Record a sum before anything is contributed to it.

        Args:
            label: Names the release. One that was recorded is not recorded again, nor checked: resending the
                same contribution to the same sum tells nothing more.
            one: What it is.
            check: Gets what was recorded before; nothing is recorded when it raises.

        Returns:
            Everything that was ever recorded, in order.

        Raises:
            StateError: The label was recorded for another sum.
        """
        ...

    def spent(self) -> tuple[SkellamSum, ...]:
        """Return everything that was ever recorded, in order."""
        ...


class MemorySumLedger:
    """An account of one process, for a hospital that takes part in nothing else."""

    def __init__(self) -> None:
        self._sums: dict[str, SkellamSum] = {}

    def charge(self, label: str, one: SkellamSum, check: Check) -> tuple[SkellamSum, ...]:
        """See :meth:`SumLedger.charge`."""
        if not _recorded(self._sums, label, one):
            check(self.spent())
            self._sums[label] = one
        return self.spent()

    def spent(self) -> tuple[SkellamSum, ...]:
        """See :meth:`SumLedger.spent`."""
        return tuple(self._sums.values())


class DurableSumLedger:
    """An account on disk, in the file of :class:`DurableLedger` and as safe.

    Args:
        folder: The hospital's state folder, made when missing (mode 0700).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def charge(self, label: str, one: SkellamSum, check: Check) -> tuple[SkellamSum, ...]:
        """See :meth:`SumLedger.charge`; what is returned is on the disk.

        Raises:
            StateError: The disk does not take it, or the label was recorded for another sum.
        """
        with _opened(self._folder) as database, transaction(database):
            sums = _sums(database)
            if _recorded(sums, label, one):
                return tuple(sums.values())
            check(tuple(sums.values()))
            query = (
                "INSERT INTO sums (label, l2_sensitivity, l1_sensitivity, variance, rounds)"
                " VALUES (?, ?, ?, ?, ?)"
            )
            database.execute(query, (label, *astuple(one)))
        return (*sums.values(), one)

    def spent(self) -> tuple[SkellamSum, ...]:
        """See :meth:`SumLedger.spent`.

        Raises:
            StateError: The disk does not give it.
        """
        with _opened(self._folder) as database:
            return tuple(_sums(database).values())


def together(mechanisms: Iterable[SampledGaussian]) -> tuple[SampledGaussian, ...]:
    """Return the same steps with those of one kind in one entry, in the order of their first ones."""
    steps: dict[SampledGaussian, int] = {}
    for one in mechanisms:
        kind = replace(one, steps=0)
        steps[kind] = steps.get(kind, 0) + one.steps
    return tuple(replace(kind, steps=count) for kind, count in steps.items())


def _recorded(sums: Mapping[str, SkellamSum], label: str, one: SkellamSum) -> bool:
    if sums.get(label, one) != one:
        raise StateError(
            "this release was recorded with other sensitivities or another noise; it is not contributed to"
        )
    return label in sums


def _spent(database: sqlite3.Connection) -> tuple[SampledGaussian, ...]:
    query = "SELECT noise_multiplier, sampling_rate, steps FROM spent ORDER BY place"
    with _sound("the account of what training on these records has cost"):
        return tuple(SampledGaussian(*row) for row in database.execute(query))


def _sums(database: sqlite3.Connection) -> dict[str, SkellamSum]:
    query = "SELECT label, l2_sensitivity, l1_sensitivity, variance, rounds FROM sums ORDER BY place"
    with _sound("the account of what this hospital has contributed to"):
        return {label: SkellamSum(*row) for label, *row in database.execute(query)}


@contextlib.contextmanager
def _sound(account: str) -> Iterator[None]:
    """Turn the refusal of a recorded row into a damaged account, which nothing is charged to."""
    try:
        yield
    except (UsageError, TypeError) as error:  # a number out of its range, or no number
        raise StateError(f"{account} is damaged") from error


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[sqlite3.Connection]:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / "privacy.sqlite"
        with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=_WAIT_S)) as database:
            path.chmod(0o600)
            database.execute("PRAGMA synchronous=EXTRA")
            database.executescript(_SCHEMA)
            yield database
    except (sqlite3.Error, OSError) as error:
        text = f"the account of privacy cannot be read or written ({type(error).__name__})"
        raise StateError(f"{text}; nothing was trained or sent") from error
