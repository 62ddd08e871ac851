"""Rounds whose hospitals are processes of their own: all well, dying, late, too few; and dying aggregators.

Whatever a hospital or an aggregator does to itself, the round either opens the integer sum over one agreed
set, bit for bit, or ends within its deadline by the name of whoever is missing.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from fedsec.aggregation.collector import RoundResult
from fedsec.aggregation.links import TlsLinks
from fedsec.aggregation.messages import CollectSum, SumShare
from fedsec.errors import FedsecError, PeerLostError, ProtocolError, RoundAbortedError
from fedsec.transport import Deadline, connect, read_meter

# Test modules are no package here, so what several of them share is found by path.
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from aggregation_site import SMALL, Round, Site, counts_of, everyone_takes_part, until, uploaded_bytes

LARGE = 1_000_003
VICTIM = "hospital-03"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Three aggregators for tests that must not hurt them: afterwards a round with everyone is exact."""
    with ExitStack() as stack:
        made = Site(tmp_path_factory.mktemp("site"), stack)
        yield made
        everyone_takes_part(made)


@pytest.fixture(scope="module")
def fragile_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        made = Site(tmp_path_factory.mktemp("fragile"), stack, hospitals=4)
        yield made
        everyone_takes_part(made)


@pytest.fixture
def fragile(fragile_site: Site) -> Iterator[Site]:
    """Three aggregators that may be killed: each is started again with what it had on disk."""
    yield fragile_site
    for party in fragile_site.file.parties:
        state = Path(f"/proc/{fragile_site.pid(party.name)}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":
            fragile_site.restart(party.name)


# All is well.


def test_a_million_parameters_from_five_hospital_processes(site: Site) -> None:
    before = site.meters()
    everyone_takes_part(site, LARGE)
    after = site.meters()
    for name in site.names:
        received = [after[one].by_peer[name][3] - counts_of(before[one].by_peer, name)[3] for one in after]
        assert sum(size > LARGE for size in received) == 1, (
            "one aggregator gets the vector, the others a seed"
        )
        assert 4 * LARGE < sum(received) < 4 * LARGE + 10_000


@pytest.mark.parametrize("parties", [2, 5])
def test_other_numbers_of_aggregators(tmp_path: Path, parties: int) -> None:
    with ExitStack() as stack:
        site = Site(tmp_path, stack, parties, hospitals=4)
        assert len(site.pids) == parties
        everyone_takes_part(site)


# Hospitals that die.


@pytest.mark.parametrize(
    ("place", "expected"),
    [("accept", "missing"), (0, "missing"), (1, "incomplete"), (2, "incomplete"), ("half", "missing")],
)
def test_threat_42_a_hospital_killed_before_or_in_its_upload_costs_only_itself(
    site: Site, place: int | str, expected: str
) -> None:
    # The long part goes first, so that half of it is all that any aggregator has.
    turn = {"round": 3} if VICTIM == "hospital-03" else {}
    round_ = site.open(500_000 if place == "half" else SMALL, **turn)
    assert round_.announcement.vector_holder(VICTIM) == site.file.parties[0].name
    victim = site.hospital(VICTIM)
    victim.do("accept", round=str(round_.folder))
    assert victim.hear() == {"did": "accept"}
    if place != "accept":
        victim.do("submit", stop=place, **round_.contribution(VICTIM))
        assert victim.hear() == {"did": "stop"}
    others = [name for name in site.names if name != VICTIM]
    site.submit(round_, others[:2])
    drafts = [file for file in site.stored("party-0", round_) if file.suffix == ".draft"]
    assert len(drafts) == (place == "half")
    assert victim.kill() == -signal.SIGKILL
    assert until(lambda: not any(file.exists() for file in drafts), 30), (
        "half a part goes with its connection"
    )
    site.submit(round_, others[2:])
    round_.check(site.collect(round_), others, {VICTIM: expected})
    assert site.verdicts(round_) == {**dict.fromkeys(others, "included"), VICTIM: expected}
    assert site.keeps_nothing(round_)


def test_threat_42_a_hospital_killed_after_its_upload_is_counted_once(site: Site) -> None:
    round_ = site.open()
    site.submit(round_, site.names)
    assert site.hospital(VICTIM).kill() == -signal.SIGKILL
    round_.check(site.collect(round_), site.names, {})
    again = site.hospital(VICTIM)
    again.do("accept", round=str(round_.folder))
    assert again.hear() == {"did": "accept"}
    # What it knows of its upload is on disk: the receipt is still to be had, another upload is not.
    again.do("receipt")
    assert again.hear() == {"did": "receipt", "of": len(site.names)}
    again.do("submit", **round_.contribution(VICTIM))
    code, text = again.ended()
    assert code == ProtocolError.exit_code
    assert "was begun before a restart; train in the next round" in text


# Hospitals that come too late.


def test_a_hospital_that_comes_after_the_closing_is_refused_and_told_so(site: Site) -> None:
    round_ = site.open()
    late = site.hospital(VICTIM)
    late.do("accept", round=str(round_.folder))
    assert late.hear() == {"did": "accept"}
    others = [name for name in site.names if name != VICTIM]
    site.submit(round_, others)
    result = site.collect(round_)
    late.do("submit", **round_.contribution(VICTIM))
    code, text = late.ended()
    assert code == ProtocolError.exit_code
    assert text.count("\n") == 1
    assert "party-0" in text
    assert "takes no more uploads: this one came too late" in text
    round_.check(result, others, {VICTIM: "missing"})
    assert site.verdicts(round_)[VICTIM] == "missing"


def test_a_hospital_that_sleeps_past_the_time_for_uploads_sends_nothing_and_is_told_so(site: Site) -> None:
    for name in site.names:
        site.hospital(name).ready()
    round_ = site.open(upload_seconds=6.0)
    before = site.meters()
    late = site.hospital(VICTIM)
    late.do("accept", round=str(round_.folder))
    late.do("submit", sleep=6.1, **round_.contribution(VICTIM))
    others = [name for name in site.names if name != VICTIM]
    site.submit(round_, others)
    # Nobody closes: the aggregators do by their own clocks.
    assert late.hear() == {"did": "accept"}
    code, text = late.ended()
    assert code == PeerLostError.exit_code
    assert text.count("\n") == 1
    assert "the 6 s for uploads" in text
    assert "nothing was sent" in text
    assert "party" not in text, "no aggregator is to blame"
    round_.check(site.collect(round_), others, {VICTIM: "missing"})
    assert uploaded_bytes(site.meters(), VICTIM) == uploaded_bytes(before, VICTIM)


# Too few hospitals.


@pytest.mark.parametrize(("uploads", "cohort"), [(1, 2), (3, 4)])
def test_threat_22_below_the_minimum_cohort_nothing_is_opened(site: Site, uploads: int, cohort: int) -> None:
    round_ = site.open(minimum_cohort=cohort)
    present = site.names[:uploads]
    site.submit(round_, present)
    received = counts_of(site.collector.meter.by_label(), "collect_sum")[3]
    begun = time.monotonic()
    with pytest.raises(
        RoundAbortedError, match=rf"{uploads} complete uploads, the minimum cohort is {cohort}"
    ):
        site.collect(round_)
    assert time.monotonic() - begun < 28
    answers = counts_of(site.collector.meter.by_label(), "collect_sum")[3] - received
    assert answers < 4 * SMALL, "no sum share has come"
    assert site.keeps_nothing(round_)
    message = CollectSum(round_.announcement.id)
    with closing(TlsLinks(site.file.parties, site.server)) as links:
        for party in site.file.parties:
            # The server ends the round everywhere once one of them has counted; the others may not have yet.
            with pytest.raises(RoundAbortedError, match=r"minimum cohort|the server ended the round"):
                links.call(party.name, message, SumShare, deadline=Deadline.after(30), max_body_bytes=10**6)
    for name in present:
        site.hospital(name).do("receipt", go_on=True)
        answer = site.hospital(name).hear()
        assert answer["error"] == RoundAbortedError.code
        assert "was aborted; its update is void" in answer["text"]


# Aggregators that die.


def test_threat_42_an_aggregator_killed_before_the_collection_is_named(fragile: Site) -> None:
    round_ = fragile.open()
    fragile.submit(round_, fragile.names[:3])
    fragile.signal("party-1", signal.SIGKILL)
    _ends_by_name(fragile, round_, "party-1")
    # The others have ended the round as well and keep nothing; a hospital learns that its update is void.
    assert until(lambda: not fragile.stored("party-0", round_) + fragile.stored("party-2", round_), 30)
    hospital = fragile.hospital("hospital-00")
    hospital.do("receipt")
    code, text = hospital.ended()
    assert code == RoundAbortedError.exit_code
    assert "was aborted; its update is void" in text


def test_threat_42_an_aggregator_killed_before_the_uploads_is_named_to_the_hospital(fragile: Site) -> None:
    round_ = fragile.open()
    fragile.signal("party-2", signal.SIGKILL)
    hospital = fragile.hospital("hospital-00")
    hospital.do("accept", round=str(round_.folder))
    hospital.do("submit", **round_.contribution("hospital-00"))
    assert hospital.hear() == {"did": "accept"}
    code, text = hospital.ended(60)
    assert code == PeerLostError.exit_code
    assert "party-2" in text
    assert "Traceback" not in text
    _ends_by_name(fragile, round_, "party-2")


@pytest.mark.parametrize("victim", ["party-0", "party-2"])
def test_threat_43_an_aggregator_killed_while_the_collector_waits_is_named(
    fragile: Site, victim: str
) -> None:
    round_ = fragile.open()
    fragile.submit(round_, fragile.names[:3])
    seen = _lists(fragile, "party-1")
    # Without the last one there is no agreement: the collector and the other two wait.
    fragile.signal("party-2", signal.SIGSTOP)
    with _Collecting(fragile, round_) as collecting:
        assert until(lambda: _lists(fragile, "party-1") > seen, 30), "party-0 has closed and told party-1"
        assert collecting.waits
        begun = time.monotonic()
        fragile.signal(victim, signal.SIGKILL)
        if victim != "party-2":
            fragile.signal("party-2", signal.SIGCONT)
        error = collecting.error()
        assert time.monotonic() - begun < 28
    assert isinstance(error, PeerLostError)
    assert victim in str(error)


@pytest.mark.parametrize("when", ["between uploads and collection", "in the agreement"])
def test_threat_42_an_aggregator_that_comes_back_changes_nothing(fragile: Site, when: str) -> None:
    round_ = fragile.open()
    names = fragile.names[:3]
    fragile.submit(round_, names)
    if when == "in the agreement":
        seen, closed = _lists(fragile, "party-1"), _answered(fragile, "party-1", "close_uploads")
        fragile.signal("party-2", signal.SIGSTOP)
        with _Collecting(fragile, round_) as collecting:
            assert until(lambda: _lists(fragile, "party-1") > seen, 30)
            # Killed before it is told that uploads are closed, it would be named to the collector instead.
            assert until(lambda: _answered(fragile, "party-1", "close_uploads") > closed, 30)
            fragile.signal("party-1", signal.SIGKILL)
            fragile.restart("party-1")
            fragile.signal("party-2", signal.SIGCONT)
            result = collecting.result()
    else:
        fragile.signal("party-1", signal.SIGKILL)
        fragile.restart("party-1")
        result = fragile.collect(round_)
    round_.check(result, names, {"hospital-03": "missing"})
    assert fragile.verdicts(round_) == {**dict.fromkeys(names, "included"), "hospital-03": "missing"}
    assert fragile.keeps_nothing(round_)


def test_threat_18_42_a_hospital_that_tries_again_after_a_restart_is_counted_once(fragile: Site) -> None:
    round_ = fragile.open()
    fragile.signal("party-1", signal.SIGKILL)
    persistent = fragile.hospital("hospital-00")
    persistent.do("accept", round=str(round_.folder))
    details = round_.contribution("hospital-00")
    persistent.do("submit", go_on=True, **details)
    assert persistent.hear() == {"did": "accept"}
    answer = persistent.hear()
    assert answer["error"] == "peer_lost"
    assert "party-1" in answer["text"]
    fragile.restart("party-1")
    persistent.do("submit", **details)
    round_.ids["hospital-00"] = bytes.fromhex(persistent.hear()["id"])
    fragile.submit(round_, ["hospital-01"])
    excluded = {"hospital-02": "missing", "hospital-03": "missing"}
    round_.check(fragile.collect(round_), ["hospital-00", "hospital-01"], excluded)
    fragile.receipts(["hospital-00", "hospital-01"], of=2)


def _ends_by_name(site: Site, round_: Round, victim: str) -> None:
    begun = time.monotonic()
    with pytest.raises(PeerLostError, match=victim):
        site.collect(round_)
    assert time.monotonic() - begun < 28


def _lists(site: Site, party: str) -> int:
    """Return how many lists of uploads an aggregator has got from its peers."""
    return _counts(site, party, "upload_list")[2]


def _answered(site: Site, party: str, kind: str) -> int:
    """Return how many requests of a kind an aggregator has answered."""
    return _counts(site, party, kind)[0]


def _counts(site: Site, party: str, kind: str) -> Any:
    deadline = Deadline.after(30)
    with connect(site.file.party(party), site.server, deadline=deadline) as channel:
        return counts_of(read_meter(channel, deadline).by_label, kind)


class _Collecting:
    """The collector at work in another thread."""

    def __init__(self, site: Site, round_: Round) -> None:
        self._outcome: list[RoundResult | FedsecError] = []
        self._thread = threading.Thread(target=self._run, args=(site, round_))
        self._site = site

    def _run(self, site: Site, round_: Round) -> None:
        try:
            self._outcome.append(site.collect(round_))
        except FedsecError as error:
            self._outcome.append(error)

    @property
    def waits(self) -> bool:
        return self._thread.is_alive()

    def _ended(self) -> RoundResult | FedsecError:
        self._thread.join(40)
        assert not self._thread.is_alive(), "the collector's deadline is 30 s"
        (outcome,) = self._outcome
        return outcome

    def error(self) -> FedsecError:
        outcome = self._ended()
        assert isinstance(outcome, FedsecError)
        return outcome

    def result(self) -> RoundResult:
        outcome = self._ended()
        assert isinstance(outcome, RoundResult), outcome
        return outcome

    def __enter__(self) -> _Collecting:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for party in self._site.file.parties:
            self._site.signal(party.name, signal.SIGCONT)
        self._thread.join(40)
