"""The account of whole hospitals: durable, apart from that of records, and never beyond its target."""

from __future__ import annotations

import math
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fedsec.errors import StateError, UsageError
from fedsec.privacy.accounting import SampledGaussian
from fedsec.privacy.hospital_budget import HospitalBudget
from fedsec.privacy.ledger import DurableLedger, DurableSumLedger, MemorySumLedger, SumLedger
from fedsec.privacy.skellam_accounting import SkellamSum, epsilon_of_sums, variance_for

DELTA = 1e-5
TARGET = 3.0
ROUND = SkellamSum.of(1e5, 1000, variance_for(TARGET, DELTA, 1e5, 1e5 * math.sqrt(1000), 4))
"""Of which four are affordable."""


def nothing_to_say(spent: tuple[SkellamSum, ...]) -> None:
    pass


@pytest.fixture(params=["memory", "durable"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> SumLedger:
    return MemorySumLedger() if request.param == "memory" else DurableSumLedger(tmp_path / "state")


def test_the_run_stops_before_the_budget_is_exceeded(ledger: SumLedger) -> None:
    budget = HospitalBudget(TARGET, DELTA, ledger)
    for number in range(4):
        assert budget.affordable(ROUND) == 4 - number
        report = budget.charge(f"round {number}", ROUND)
        assert report.epsilon == epsilon_of_sums([ROUND] * (number + 1), DELTA) <= TARGET
        assert sum(one.rounds for one in report.sums) == number + 1
    assert budget.affordable(ROUND) == 0
    with pytest.raises(
        UsageError, match=r"would make epsilon 3\.\d+ .* has spent 3\.000 of the 3 that it allows"
    ):
        budget.charge("round 4", ROUND)
    assert budget.report() == report
    assert str(report).startswith("epsilon 3.000 at delta 1e-05: for one whole hospital")


def test_a_smaller_release_may_still_fit(ledger: SumLedger) -> None:
    budget = HospitalBudget(TARGET, DELTA, ledger)
    for number in range(3):
        budget.charge(f"round {number}", ROUND)
    with pytest.raises(UsageError, match="takes part no more"):
        budget.charge("bigger", SkellamSum.of(2e5, 1000, ROUND.variance))
    noisy = SkellamSum.of(1e5, 1000, 4 * ROUND.variance)
    assert budget.affordable(noisy) == 4
    assert len(budget.charge("noisy", noisy).sums) == 2


def test_no_noise_is_never_affordable(ledger: SumLedger) -> None:
    budget = HospitalBudget(1e6, DELTA, ledger)
    assert budget.affordable(SkellamSum(1, 1, 0.0)) == 0
    with pytest.raises(UsageError, match="would make epsilon unbounded"):
        budget.charge("exact", SkellamSum(1, 1, 0.0))
    assert ledger.spent() == ()


def test_one_release_costs_once_however_often_it_is_sent(ledger: SumLedger) -> None:
    budget = HospitalBudget(TARGET, DELTA, ledger)
    first = budget.charge("round", ROUND)
    assert budget.charge("round", ROUND) == first
    assert ledger.spent() == (ROUND,)
    # Also when nothing else is affordable.
    for number in range(3):
        budget.charge(f"other {number}", ROUND)
    assert budget.charge("round", ROUND).epsilon > first.epsilon


def test_one_release_cannot_become_another(ledger: SumLedger) -> None:
    budget = HospitalBudget(TARGET, DELTA, ledger)
    budget.charge("round", ROUND)
    with pytest.raises(StateError, match="other sensitivities or another noise"):
        budget.charge("round", SkellamSum.of(1e5, 1000, 2 * ROUND.variance))
    assert ledger.spent() == (ROUND,)


def test_it_is_on_the_disk_before_anything_is_sent(tmp_path: Path) -> None:
    HospitalBudget(TARGET, DELTA, DurableSumLedger(tmp_path)).charge("round", ROUND)
    path = tmp_path / "privacy.sqlite"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert DurableSumLedger(tmp_path).spent() == (ROUND,)
    assert HospitalBudget(TARGET, DELTA, DurableSumLedger(tmp_path)).affordable(ROUND) == 3


OLD = """
CREATE TABLE spent (place INTEGER PRIMARY KEY, noise_multiplier REAL NOT NULL, sampling_rate REAL NOT NULL,
  steps INTEGER NOT NULL);
INSERT INTO spent (noise_multiplier, sampling_rate, steps) VALUES (1.5, 0.25, 9);
"""


def test_an_account_of_before_there_were_sums_is_read_and_continued(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "privacy.sqlite") as database:
        database.executescript(OLD)
    database.close()
    old, new = SampledGaussian(1.5, 0.25, 9), SampledGaussian(1.5, 0.5, 1)
    assert DurableSumLedger(tmp_path).spent() == ()
    DurableSumLedger(tmp_path).charge("round", ROUND, nothing_to_say)
    assert DurableLedger(tmp_path).charge(lambda _: new) == (old, new)
    # Apart: neither account is in the other.
    assert DurableSumLedger(tmp_path).spent() == (ROUND,)


def test_two_at_once_get_no_more_than_there_is(tmp_path: Path) -> None:
    """Six ask for what is enough for four, each over a connection of its own as processes have."""
    refused: list[str] = []

    def ask(number: int) -> None:
        try:
            HospitalBudget(TARGET, DELTA, DurableSumLedger(tmp_path)).charge(f"round {number}", ROUND)
        except UsageError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 2
    assert len(DurableSumLedger(tmp_path).spent()) == 4


KILLED = """
import os, signal, sys
from pathlib import Path
from fedsec.privacy.ledger import DurableSumLedger
from fedsec.privacy.skellam_accounting import SkellamSum
ledger, one = DurableSumLedger(Path(sys.argv[1])), SkellamSum(3.0, 9.0, 1000.0)
ledger.charge("done", one, lambda spent: None)
ledger.charge("begun", one, lambda spent: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_a_process_that_is_killed_leaves_what_it_had_recorded_and_no_lock(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False, timeout=60)
    assert ended.returncode == -9
    one = SkellamSum(3.0, 9.0, 1000.0)
    assert DurableSumLedger(tmp_path).spent() == (one,)
    assert DurableSumLedger(tmp_path).charge("begun", one, nothing_to_say) == (one, one)


def test_a_damaged_account_stops_everything(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "privacy.sqlite").write_bytes(b"no database, and not empty either" * 40)
    ledger = DurableSumLedger(tmp_path)
    ledger.charge("round", ROUND, nothing_to_say)
    with sqlite3.connect(tmp_path / "privacy.sqlite") as database:
        database.execute("UPDATE sums SET variance = -1")
    database.close()
    for folder, text in ((tmp_path, "is damaged"), (tmp_path / "other", "nothing was trained or sent")):
        for attempt in (
            DurableSumLedger(folder).spent,
            lambda at=folder: DurableSumLedger(at).charge("next", ROUND, nothing_to_say),
        ):
            with pytest.raises(StateError, match=text):
                attempt()


def test_targets_that_make_no_sense_are_refused() -> None:
    for target, delta in ((0.0, DELTA), (math.inf, DELTA), (math.nan, DELTA), (1.0, 0.0), (1.0, 1.0)):
        with pytest.raises(UsageError):
            HospitalBudget(target, delta, MemorySumLedger())
