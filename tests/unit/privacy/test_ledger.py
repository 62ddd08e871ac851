"""The durable account of what records have cost."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from fedsec.errors import StateError, UsageError
from fedsec.privacy.accounting import SampledGaussian
from fedsec.privacy.ledger import DurableLedger, Ledger, MemoryLedger, together

ONE, OTHER = SampledGaussian(1.25, 1 / 3, 7), SampledGaussian(1.25, 0.5, 2)


@pytest.mark.parametrize("kind", ["memory", "durable"])
def test_what_was_charged_comes_back_in_order_and_exactly(kind: str, tmp_path: Path) -> None:
    ledger: Ledger = MemoryLedger() if kind == "memory" else DurableLedger(tmp_path / "state")
    seen = []

    def plan(spent: Sequence[SampledGaussian]) -> SampledGaussian:
        seen.append(tuple(spent))
        return (ONE, OTHER, ONE)[len(spent)]

    for count in (1, 2, 3):
        assert ledger.charge(plan) == (ONE, OTHER, ONE)[:count]
    assert seen == [(), (ONE,), (ONE, OTHER)]
    assert together((ONE, OTHER, ONE)) == (SampledGaussian(1.25, 1 / 3, 14), OTHER)


def test_it_is_on_the_disk_before_anybody_trains(tmp_path: Path) -> None:
    DurableLedger(tmp_path).charge(lambda _: ONE)
    path = tmp_path / "privacy.sqlite"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT noise_multiplier, sampling_rate, steps FROM spent").fetchall()
    assert rows == [(1.25, 1 / 3, 7)]
    assert DurableLedger(tmp_path).spent() == (ONE,)
    assert DurableLedger(tmp_path / "another").spent() == ()


def test_a_plan_that_refuses_charges_nothing(tmp_path: Path) -> None:
    ledger = DurableLedger(tmp_path)
    ledger.charge(lambda _: ONE)

    def refuse(spent: Sequence[SampledGaussian]) -> SampledGaussian:
        raise UsageError("too much")

    with pytest.raises(UsageError, match="too much"):
        ledger.charge(refuse)
    assert DurableLedger(tmp_path).charge(lambda _: OTHER) == (ONE, OTHER)


def test_two_at_once_see_each_other(tmp_path: Path) -> None:
    """A server may begin two runs at the same time: both must not get what is enough for one."""
    seen: list[int] = []

    def plan(spent: Sequence[SampledGaussian]) -> SampledGaussian:
        seen.append(len(spent))
        time.sleep(0.1)
        return ONE

    threads = [threading.Thread(target=DurableLedger(tmp_path).charge, args=(plan,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == [0, 1, 2, 3]


def test_a_ledger_that_cannot_be_written_stops_the_training(tmp_path: Path) -> None:
    (tmp_path / "privacy.sqlite").write_bytes(b"no database, and not empty either" * 40)
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(StateError, match="nothing was trained"):
            DurableLedger(folder).charge(lambda _: ONE)


@pytest.mark.parametrize("entry", [(1.25, 2.0, 7), (1.25, 0.5, -1), ("much", 0.5, 7)])
def test_a_damaged_entry_stops_the_training(tmp_path: Path, entry: tuple[object, ...]) -> None:
    ledger = DurableLedger(tmp_path)
    ledger.charge(lambda _: ONE)
    with contextlib.closing(sqlite3.connect(tmp_path / "privacy.sqlite")) as database, database:
        database.execute("UPDATE spent SET noise_multiplier = ?, sampling_rate = ?, steps = ?", entry)
    for attempt in (ledger.spent, lambda: ledger.charge(lambda _: ONE)):
        with pytest.raises(StateError, match="is damaged"):
            attempt()
