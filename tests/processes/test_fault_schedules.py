"""Aggregators that are killed at every numbered step of a round, and started again: over TLS, with SIGKILL.

The same promises as in tests/states/test_fault_schedules.py, with real processes and disks: the opened sum is
the integer sum over one agreed set, or the round ends by name within its deadline; nothing opens twice.
"""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsec.aggregation.client import HospitalClient
from fedsec.aggregation.collector import RoundResult
from fedsec.aggregation.encoding import encode_update
from fedsec.aggregation.links import TlsLinks
from fedsec.aggregation.making import make_parts
from fedsec.aggregation.messages import CollectSum, GetReceipt, Receipt, Stored, SumShare, Upload
from fedsec.aggregation.trust import TrustFile
from fedsec.errors import FedsecError, PeerLostError, ProtocolError, RoundAbortedError
from fedsec.transport import Deadline, Identity

# Test modules are no package here, so what several of them share is found by path.
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from aggregation_site import CONFIG, Round, Site, until
from crashing_aggregator import AGREEMENT_S, REQUESTS, STEPS
from crashing_aggregator import COLLECT_S as ERASE_S

PROGRAM = Path(__file__).parents[1] / "helpers" / "crashing_aggregator.py"
NAMED = re.compile(r"party-\d|minimum cohort|the server ended")
COLLECT_S, UPLOAD_S = 25.0, 20.0
# Of each kind one: what is said, what is signed, what is erased.
QUICK = ("CloseUploads after", "Store.add_statement after", "PartFolder.erase before")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        command = (sys.executable, str(PROGRAM))
        yield Site(tmp_path_factory.mktemp("schedules"), stack, hospitals=4, command=command)


@dataclass
class Keeper:
    """Starts a party again a while after it was killed, as an operator or systemd would."""

    site: Site
    away_s: float
    thread: threading.Thread | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    revived: list[str] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)

    def __enter__(self) -> Keeper:
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        assert self.thread
        self.thread.join()
        self._revive()
        assert self.failures == []

    def _run(self) -> None:
        while not self.ended.wait(0.02):
            if self._dead():
                self.ended.wait(self.away_s)
                self._revive()

    def _dead(self) -> bool:
        processes = self.site.cluster._processes.values()
        return any(process.exit_code() is not None for process in processes)

    def _revive(self) -> None:
        try:
            if self._dead():
                self.revived += self.site.cluster.revive()
        except FedsecError as error:
            self.failures.append(error)


class Schedule:
    """One round in which a party is killed at a step; everything else is drawn from the seed."""

    def __init__(self, site: Site, seed: int, step: str) -> None:
        self.site, self.step = site, step
        self.rng = np.random.default_rng(seed)
        parties = [one.name for one in site.file.parties]
        self.victim = str(self.rng.choice(parties))
        self.away_s = float(self.rng.choice([0.0, 0.0, 1.0]))
        self.crash = site.cluster.folder / "parties" / self.victim / "crash"
        self.acknowledged: set[str] = set()
        self.errors: list[FedsecError] = []
        self.result: RoundResult | None = None
        self.liar = str(self.rng.choice(site.names)) if self.rng.random() < 0.5 else ""

    def run(self) -> bool:
        """Run it and check it; returns whether the step was reached."""
        self.crash.write_text(self.step)
        with Keeper(self.site, self.away_s) as keeper:
            if self.step.startswith("Hello"):
                # It greets the victim when it is back.
                other = next(one.name for one in self.site.file.parties if one.name != self.victim)
                self.site.signal(other, signal.SIGKILL)
                assert until(lambda: other in keeper.revived, 30)
            begun = time.monotonic()
            round_ = self._announced()
            if round_ is not None:
                self._uploads(round_)
                self._collect(round_)
                assert time.monotonic() - begun < UPLOAD_S + 2 * COLLECT_S
                for party in self.site.file.parties:
                    for name in sorted(round_.ids):
                        self._receipt(round_, party, name)
        reached = not self.crash.exists()
        self.crash.unlink(missing_ok=True)
        if round_ is not None:
            self.check(round_)
        return reached

    def _announced(self) -> Round | None:
        announcement, model = self.site.announcement(upload_seconds=UPLOAD_S)
        signed = self._tried(lambda: self.site.collector.announce(announcement, Deadline.after(10)))
        return None if signed is None else self.site.lay_out(announcement, signed, model)

    def _tried(self, attempt: Callable[[], Any], times: int = 4) -> Any:
        for number in range(times):
            try:
                return attempt()
            except FedsecError as error:
                self.errors.append(error)
                time.sleep(0.0 if number == times - 1 else 0.4)
        return None

    def _uploads(self, round_: Round) -> None:
        # One alone is below the cohort: the round is aborted, and told so to each other.
        names = self.site.names[:1] if self.step.startswith("AbortRound") else self.site.names
        threads = [threading.Thread(target=self._hospital, args=(round_, name)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _hospital(self, round_: Round, name: str) -> None:
        details = round_.contribution(name)
        update, metrics = np.load(details["update"]), {"loss": details["loss"]}
        trust = TrustFile.load(self.site.cluster.trust_file(name))
        if name == self.liar:
            self._some_only(round_, trust, update, details)
            return
        model = np.load(round_.folder / "model.npy")
        with HospitalClient(trust) as client:
            payload, signature = round_.signed.payload, round_.signed.signature
            announcement = client.accept(payload, signature, [model], CONFIG)
            upload_id = self._tried(
                lambda: client.submit(announcement, [update], details["examples"], metrics)
            )
            if upload_id is not None:
                self.acknowledged.add(name)
                round_.ids[name] = upload_id

    def _some_only(self, round_: Round, trust: TrustFile, update: Any, details: dict[str, Any]) -> None:
        """Vanish after the first part."""
        identity = Identity.load(trust.identity)
        words = encode_update(
            round_.announcement.layout, [update], details["examples"], {"loss": details["loss"]}
        )
        parts = make_parts(round_.announcement, identity, words)
        name = str(np.random.default_rng(len(details)).choice(sorted(parts.parts)))
        with closing(TlsLinks(trust.aggregators, identity)) as links, contextlib.suppress(FedsecError):
            links.call(
                name, Upload(parts.header), Stored, body=parts.parts[name], deadline=Deadline.after(10)
            )

    def _collect(self, round_: Round) -> None:
        self.result = self._tried(lambda: self.site.collect(round_, COLLECT_S), times=2)

    def check(self, round_: Round) -> None:
        """Check what is promised of a round, whatever has happened in it."""
        for error in self.errors:
            assert NAMED.search(str(error)), f"an error without a name: {error}"
            assert not re.search("sent another|signed two|behind|contradicts|does not show", str(error))
        if self.result is not None:
            included = set(self.result.included)
            assert included >= self.acknowledged, "acknowledged by all and not counted"
            assert self.liar not in included
            round_.check(self.result, included, self.result.excluded)
        # Whoever was away when the round ended learns of it by its own deadlines, at the latest.
        longest = UPLOAD_S + 2 * AGREEMENT_S + ERASE_S + 5
        assert self.site.keeps_nothing(round_, longest), "parts are left after the outcome"
        self._check_sets(round_)
        self._check_opened_once(round_)

    def _check_sets(self, round_: Round) -> None:
        """Every aggregator that has an included set has the same; it is that of the sum."""
        sets = {}
        for party in self.site.file.parties:
            replies = {name: self._receipt(round_, party, name) for name in sorted(round_.ids)}
            known = [name for name, reply in replies.items() if reply and reply.status == "included"]
            if known:
                sets[party.name] = known
        assert len(set(map(tuple, sets.values()))) <= 1, sets
        if self.result is not None:
            assert list(sets.values()) == [sorted(set(self.result.included) & set(round_.ids))] * 3

    def _receipt(self, round_: Round, party: Any, name: str) -> Receipt | None:
        identity = Identity.load(self.site.cluster.identity(name))
        message = GetReceipt(round_.announcement.id, round_.ids[name])
        with closing(TlsLinks([party], identity)) as links:
            try:
                return links.call(party.name, message, Receipt, deadline=Deadline.after(10))[0]
            except (ProtocolError, PeerLostError):  # it was never told of the round, or dies of the question
                return None

    def _check_opened_once(self, round_: Round) -> None:
        message, size = CollectSum(round_.announcement.id), 10**6
        with closing(TlsLinks(self.site.file.parties, self.site.server)) as links:
            for party in self.site.file.parties:
                with contextlib.suppress(RoundAbortedError, ProtocolError):
                    reply, body = links.call(
                        party.name, message, SumShare, deadline=Deadline.after(10), max_body_bytes=size
                    )
                    assert not reply.ready, "the sum share is still given away after the outcome"
                    assert not body


def run(site: Site, seed: int, step: str) -> bool:
    schedule = Schedule(site, seed, step)
    try:
        return schedule.run()
    except Exception as error:
        text = f"seed {seed}, {schedule.victim} killed at '{step}', away {schedule.away_s:g} s: {error}"
        raise AssertionError(f"{text}; {[str(one) for one in schedule.errors]}") from error


@pytest.mark.parametrize("step", QUICK)
def test_threat_42_a_party_killed_at_a_step_costs_at_most_the_round(site: Site, step: str) -> None:
    assert run(site, STEPS.index(step), step), "the step was not reached"


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_threat_42_a_party_killed_at_any_step_costs_at_most_the_round(site: Site, step: str) -> None:
    assert run(site, 100 + STEPS.index(step), step), "the step was not reached"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_threat_42_a_random_schedule_with_a_killed_party(site: Site, seed: int) -> None:
    """Any party, any step, any time away, with hospitals that vanish; some steps are not reached."""
    rng = np.random.default_rng(seed)
    run(site, seed, STEPS[int(rng.integers(len(STEPS)))])


def test_the_steps_name_every_request_of_the_message_table() -> None:
    from fault_schedules import STEPS as TABLE  # noqa: PLC0415 - only for its names

    assert {kind.__name__ for kind in TABLE} == set(REQUESTS)
