"""Rounds under random faults: what must hold does, and stops holding when a defence is taken out."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

import fault_schedules
import msgspec
import pytest
from fault_schedules import FAULTS, STEPS, run_seed

from fedsec.aggregation import agreement
from fedsec.aggregation import round as rounds
from fedsec.aggregation.aggregator import Aggregator
from fedsec.aggregation.messages import NONCE_BYTES, MissedEvents, Upload
from fedsec.aggregation.parts import PartFolder
from fedsec.aggregation.round import Round
from fedsec.aggregation.store import State
from fedsec.aggregation.summing import Holdings

SEEDS = 200
PORTION = 50


@pytest.fixture
def folder():
    """A folder in memory where there is one: nothing here is about the disk, and all would wait for it."""
    memory = Path("/dev/shm")  # noqa: S108 - a private folder is made in it
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as made:
        yield Path(made)


def test_the_steps_are_those_of_the_message_table(world):
    aggregator: Aggregator = world.network.aggregators["agg-0"]
    # Pages are for thousands of events that were missed; tests of the history have smaller ones.
    assert set(STEPS) | {MissedEvents} == {*aggregator._handlers, Upload}


@pytest.mark.parametrize("first", range(0, SEEDS, PORTION))
def test_threat_42_whatever_goes_wrong_the_sum_is_exact_or_the_round_ends_by_name(folder, first):
    """Lost, late, doubled and altered messages, killed aggregators, older disks, hospitals that lie."""
    fired, outcomes = Counter(), Counter()
    for seed in range(first, first + PORTION):
        schedule = run_seed(seed, folder)
        fired.update(schedule.fired)
        outcomes.update(one.result is not None for one in schedule.rounds)
    # The check must have seen what it is about.
    assert {fault for _, fault in fired} == set(FAULTS)
    assert len({kind for kind, _ in fired}) >= len(STEPS) - 2
    assert min(outcomes[True], outcomes[False]) >= PORTION / 4


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 6000, 500))
def test_threat_42_thousands_of_fault_schedules(folder, first):
    for seed in range(first, first + 500):
        run_seed(seed, folder)


def test_a_seed_draws_the_same_schedule_again(folder):
    """What a failure prints can be run again."""
    logs = []
    for attempt in ("first", "second"):
        said: list[str] = []
        run_seed(11, folder / attempt, said.append)
        logs.append(said)
    assert logs[0] == logs[1]
    assert len(logs[0]) > 40


# Without its defences.


def without_the_checksum():
    included_set = agreement.included_set

    def skipping(announcement, lists):
        blind = {
            name: msgspec.structs.replace(
                one, entries=tuple(msgspec.structs.replace(entry, checksum=0) for entry in one.entries)
            )
            for name, one in lists.items()
        }
        return included_set(announcement, blind)

    return mock.patch.object(rounds, "included_set", skipping)


def resuming_with_other_bytes():
    resume = Round.resume

    def redraw(self):
        resume(self)
        if self.state in {State.SIGNED, State.AGREED}:
            path = self.folder.path / "sum"
            path.write_bytes(os.urandom(NONCE_BYTES) + path.read_bytes()[NONCE_BYTES:])

    return mock.patch.object(Round, "resume", redraw)


def forgetting_what_was_signed():
    """After a crash the next process does not know of the list that was signed, and signs another."""
    loaded = Aggregator._load

    def forget(self, row):
        if row.state is State.LISTED:
            self._store._db.execute(
                "DELETE FROM statements WHERE round=? AND aggregator=?", (row.key, self.name)
            )
            self._store.set_state(row.key, State.OPEN, 0.0)
            row = self._store.round(row.key)
        return loaded(self, row)

    return mock.patch.object(Aggregator, "_load", forget)


@contextlib.contextmanager
def counting_whoever_somebody_has():
    """An upload that one aggregator lacks counts all the same: there, nothing is added for it."""
    included_set, sum_of = agreement.included_set, Holdings.sum

    def union(announcement, lists):
        found = included_set(announcement, lists)
        some = {entry.hospital: entry for one in lists.values() for entry in one.entries}
        return agreement.IncludedSet([some[name] for name in sorted(some)], found.excluded)

    def lenient(self, included):
        rows = self._store.uploads(self._announcement.id.key)
        return sum_of(self, [one for one in included if one.hospital in rows])

    with mock.patch.object(rounds, "included_set", union), mock.patch.object(Holdings, "sum", lenient):
        yield


def acknowledging_what_comes_too_late():
    return mock.patch.object(Round, "require_open", return_value=None)


def keeping_the_parts():
    return mock.patch.object(PartFolder, "erase", return_value=None)


# Each with a text of the check that fails, and a seed near which it does.
MUTANTS = {
    without_the_checksum: ("counts a hospital that lied|contradicts", 0),
    resuming_with_other_bytes: ("opened twice|sent another sum share", 58),
    forgetting_what_was_signed: ("signed two", 15),
    counting_whoever_somebody_has: ("counts a hospital that lied|not the integer sum|contradicts", 0),
    acknowledging_what_comes_too_late: ("and it is not in the sum", 120),
    keeping_the_parts: ("are left after the outcome", 0),
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_check_has_teeth(folder: Path, mutant):
    """With a defence taken out some seed fails, soon, and the failure says which."""
    text, first = MUTANTS[mutant]
    with mutant(), pytest.raises(AssertionError, match=rf"^seed \d+: .*({text})"):
        run_seeds(range(first, first + 100), folder)


def run_seeds(seeds, folder):
    for seed in seeds:
        run_seed(seed, folder)


def test_a_failure_says_how_to_see_its_steps():
    assert "python tests/helpers/fault_schedules.py SEED" in fault_schedules.__doc__
