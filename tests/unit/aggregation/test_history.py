"""What aggregators remember of each other: only what somebody has signed counts, for it and against it."""

from __future__ import annotations

import shutil

import msgspec
import pytest
from aggregation_world import World, contribution, replaced

from fedsec.aggregation import chain, history, statements, store
from fedsec.aggregation.chain import GENESIS, continues, follow
from fedsec.aggregation.messages import (
    Announce,
    ChainHead,
    CloseUploads,
    Greeted,
    Hello,
    ListStatement,
    MissedEvents,
    SetSignature,
    SetStatement,
    Signed,
    UploadList,
    read,
    seal,
)
from fedsec.errors import PeerLostError, RoundAbortedError, StateError, TrustError


def whole_round(world, number):
    announcement = world.announcement(round=number)
    signed = world.open(announcement)
    for seed, hospital in enumerate(world.hospitals):
        world.submit(hospital, announcement, signed, contribution(100 * number + seed))
    return world.collect(announcement)


def rounds_that_only_one_hears_of(world, name, numbers):
    """The server announces rounds to one aggregator only: it lists, waits in vain and aborts."""
    for number in numbers:
        announcement = world.announcement(round=number)
        world.network.ask(world.server.peer, name, Announce(world.sign(announcement)))
        world.now += announcement.upload_seconds + 1
        world.network.pump()
        world.now += world.policy.agreement_s + 1
        world.network.pump()


def set_back(world, name, backup):
    world.network.aggregators[name].close()
    shutil.rmtree(world.state_of(name))
    shutil.copytree(backup, world.state_of(name))
    (party,) = (one for one in world.parties if one.name == name)
    world.network.aggregators[name] = world.start(party)
    return world.network.aggregators[name]


CLAIMS = {
    "signed by the claimant": lambda world: seal(world.parties[1], ChainHead(99, bytes(32))),
    "signed by nobody": lambda _: Signed(msgspec.msgpack.encode(ChainHead(99, bytes(32))), bytes(64)),
    "another statement of ours": lambda world: world.network.aggregators["agg-0"]._store.statements(
        world.announcement(round=1).id.key, "set"
    )["agg-0"],
    "no bytes with a signature": lambda _: Signed(b"", bytes(64)),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_threat_29_a_forged_claim_to_have_seen_more_retires_nobody(world, claim):
    """One aggregator must not be able to put an honest one out of service for ever."""
    whole_round(world, 1)
    ask = world.network.ask

    def lie(peer, name, message, body=b""):
        if isinstance(message, Hello) and name == "agg-1":
            return msgspec.msgpack.encode(Greeted(CLAIMS[claim](world))), b""
        return ask(peer, name, message, body)

    world.network.ask = lie
    world.restart("agg-0")
    # It is asked for an honest answer again and again; only the network of this test knows no pause.
    with pytest.raises(PeerLostError, match="'agg-1' answers the greeting of 'agg-0' with a history that"):
        greet_and_require(world, "agg-0")
    assert world.network.aggregators["agg-0"]._store.rollbacks() == {}
    world.network.ask = ask
    world.network.pump()
    assert whole_round(world, 2).included_count == 4


def greet_and_require(world, name):
    for _ in range(3):
        for sender, receiver in world.network._pairs():
            world.network._deliver(sender, receiver)
    world.network.aggregators[name]._history.require_current()


def test_threat_29_a_true_claim_is_proven_by_ones_own_signature(world, tmp_path):
    shutil.copytree(world.state_of("agg-1"), tmp_path / "backup")
    whole_round(world, 1)
    aggregator = set_back(world, "agg-1", tmp_path / "backup")
    world.network.pump()
    (reason,) = aggregator._store.rollbacks().values()
    assert reason.startswith("'agg-1' is behind what 'agg-0' saw of it")
    assert list(aggregator._store.rollbacks()) == [world.parties[1].public_key]


def test_threat_29_a_rollback_of_several_steps_that_hides_from_the_greeting_is_noticed(world, tmp_path):
    """It goes on alone until its counter is higher than all that its peers saw; its heads do not follow."""
    shutil.copytree(world.state_of("agg-1"), tmp_path / "backup")
    whole_round(world, 1)
    whole_round(world, 2)
    aggregator = set_back(world, "agg-1", tmp_path / "backup")
    aggregator._history._to_greet.clear()
    rounds_that_only_one_hears_of(world, "agg-1", range(10, 15))
    assert aggregator._store.chain().counter == 5, "more than its peers saw of it"

    with pytest.raises(
        RoundAbortedError, match="'agg-1' does not show how its event 6 follows from the event 4"
    ):
        whole_round(world, 20)
    # No proof, so it is not remembered; but no statement of it is taken any more either.
    with pytest.raises(RoundAbortedError, match="'agg-1' does not show how its event 7 follows"):
        whole_round(world, 21)


@pytest.mark.parametrize("alone", [3, 34])
def test_events_that_a_peer_missed_are_made_up_for(world, alone):
    rounds_that_only_one_hears_of(world, "agg-1", range(10, 10 + alone))
    assert world.network.aggregators["agg-0"]._store.seen(world.parties[1].public_key) == Signed(b"", b"")
    assert whole_round(world, 100).included_count == 4
    world.restart("agg-1")
    world.network.pump()
    assert whole_round(world, 101).included_count == 4


PAGE = 8


@pytest.fixture
def small_pages(monkeypatch):
    """Pages of a few events, so that a test need not sign thousands."""
    for module in (chain, history, store):
        monkeypatch.setattr(module, "MOST_MISSED", PAGE)
    monkeypatch.setattr(statements, "OVERLAP", PAGE // 2)


@pytest.fixture
def told(world):
    """Every message that an aggregator gave to another, with both names."""
    found, ask = [], world.network.ask

    def note(peer, name, message, body=b""):
        reply = ask(peer, name, message, body)
        found.append((peer.name, name, message))
        return reply

    world.network.ask = note
    return found


@pytest.mark.parametrize("restarted", [None, "agg-1", "agg-0"])
def test_threat_29_a_gap_of_any_width_is_caught_up_with(world, small_pages, told, restarted):
    """A server that speaks to one aggregator only must not put it out of service for ever."""
    whole_round(world, 1)
    rounds_that_only_one_hears_of(world, "agg-1", range(10, 10 + 4 * PAGE))
    if restarted:
        world.restart(restarted)
        world.network.pump()
    assert whole_round(world, 100).included_count == 4
    lengths = [len(message.missed) for *_, message in told if hasattr(message, "missed")]
    assert max(lengths) == PAGE, "one message never makes up for more"
    pages = [message for *_, message in told if isinstance(message, MissedEvents)]
    assert len(pages) >= 2 * 3, "three at least for each of the two that were not told"


def test_a_page_never_goes_past_a_statement_that_is_still_to_be_said(world, small_pages):
    """Otherwise the statement, which comes later, would seem to be a step back."""
    first = world.announcement(round=5)
    for name in ("agg-0", "agg-1"):
        world.network.ask(world.server.peer, name, Announce(world.sign(first)))
    aggregator = world.network.aggregators["agg-1"]
    aggregator.handle(world.server.peer, CloseUploads(first.id))
    aggregator.advance()
    for number in range(10, 10 + 2 * PAGE):
        later = world.announcement(round=number)
        aggregator.handle(world.server.peer, Announce(world.sign(later)))
        aggregator.handle(world.server.peer, CloseUploads(later.id))
        aggregator.advance()
    said = [(one.counter, type(one.message)) for one in aggregator.outgoing("agg-0")]
    assert said[0] == (1, UploadList)
    assert said[-1] == (PAGE, MissedEvents)


def test_threat_29_a_hidden_rollback_is_noticed_page_by_page(world, tmp_path, small_pages):
    whole_round(world, 1)
    whole_round(world, 2)
    shutil.copytree(world.state_of("agg-1"), tmp_path / "backup")
    whole_round(world, 3)
    aggregator = set_back(world, "agg-1", tmp_path / "backup")
    aggregator._history._to_greet.clear()
    rounds_that_only_one_hears_of(world, "agg-1", range(10, 10 + 3 * PAGE))
    text = "'agg-1' does not show how its event 8 follows from the event 6"
    with pytest.raises(RoundAbortedError, match=text):
        whole_round(world, 100)
    seen = world.network.aggregators["agg-0"]._store.seen(world.parties[1].public_key)
    assert read(seen, ChainHead).counter == 6


def test_a_page_counts_only_from_where_the_peer_was_seen_and_under_its_own_signature(world, small_pages):
    whole_round(world, 1)
    aggregator, (_, peer, other) = world.network.aggregators["agg-0"], world.parties
    seen = read(aggregator._store.seen(peer.public_key), ChainHead)
    events = [bytes([number]) * 32 for number in range(PAGE + 1)]

    def page(events, head=None, signer=peer, since=seen):
        return MissedEvents(seal(signer, head or follow(since, events)), tuple(events))

    with pytest.raises(TrustError):
        aggregator.handle(peer.peer, page(events[:3], signer=other))
    for refused in (
        page(events),
        page(events[:3], since=GENESIS, head=follow(GENESIS, events[:3])),
        page([], head=ChainHead(seen.counter + 1, bytes(32))),
        page(events[:2], head=follow(seen, events[:3])),
        page([*events[:2], events[2][:31]]),
    ):
        with pytest.raises(StateError, match="does not show how its event"):
            aggregator.handle(peer.peer, refused)
    assert read(aggregator._store.seen(peer.public_key), ChainHead) == seen
    for _ in range(2):
        aggregator.handle(peer.peer, page(events[:3]))
        aggregator.handle(peer.peer, page([], head=seen))
        assert read(aggregator._store.seen(peer.public_key), ChainHead) == follow(seen, events[:3])
    assert aggregator._store.rollbacks() == {}
    with pytest.raises(StateError, match="'agg-1' is behind: it showed another event 5 before"):
        aggregator.handle(peer.peer, page(events[3:6]))
    assert list(aggregator._store.rollbacks()) == [peer.public_key]


def test_a_head_counts_only_with_the_events_that_lead_to_it():
    events = [bytes([number]) * 32 for number in range(6)]
    seen, shown = follow(GENESIS, events[:2]), follow(GENESIS, events)
    assert continues(seen, shown, events[2:5], events[5])
    assert continues(seen, shown, events[:5], events[5]), "more than was missed does no harm"
    assert continues(follow(GENESIS, events[:5]), shown, [], events[5])
    for missed, last in (
        (events[3:5], events[5]), (events[2:5], events[4]), ([*events[2:4], bytes(32)], events[5]),
        (events[2:4], events[5]), ([*events[2:4], events[4][:31]], events[5]), (events[2:5], bytes(32)),
    ):  # fmt: skip
        assert not continues(seen, shown, missed, last)
    assert not continues(shown, shown, events, events[5]), "one head is one statement"
    assert not continues(shown, seen, events, events[1])
    assert not continues(GENESIS, ChainHead(2**62, bytes(32)), events, events[5])


def test_a_head_of_another_aggregator_does_not_pass(world):
    """A statement is under one signature, the head in it under another: both must be the sender's."""
    announcement = world.announcement()
    signed = world.open(announcement)
    for seed, hospital in enumerate(world.hospitals):
        world.submit(hospital, announcement, signed, contribution(seed))
    ask = world.network.ask

    def swap(peer, name, message, body=b""):
        if isinstance(message, UploadList) and peer.name == "agg-2" and name == "agg-0":
            statement = read(message.statement, ListStatement)
            head = seal(world.parties[1], read(statement.chain, ChainHead))
            message = UploadList(seal(world.parties[2], replaced(statement, chain=head)), message.missed)
        return ask(peer, name, message, body)

    world.network.ask = swap
    world.close_uploads(announcement)
    assert "agg-2" not in world.network.aggregators["agg-0"]._store.statements(announcement.id.key, "list")


def test_what_was_signed_twice_under_one_head_is_refused(world):
    """The event is made of the statement: a second one cannot borrow the head of the first."""
    announcement = world.announcement()
    signed = world.open(announcement)
    for seed, hospital in enumerate(world.hospitals):
        world.submit(hospital, announcement, signed, contribution(seed))
    ask = world.network.ask

    def alter(peer, name, message, body=b""):
        if isinstance(message, SetSignature) and peer.name == "agg-2" and name == "agg-0":
            statement = read(message.statement, SetStatement)
            other = seal(world.parties[2], replaced(statement, commitment=bytes(32)))
            message = SetSignature(other, message.missed)
        return ask(peer, name, message, body)

    world.network.ask = alter
    with pytest.raises(
        RoundAbortedError, match="'agg-2' does not show how its event 2 follows from the event 1"
    ):
        world.collect(announcement)


def test_threat_42_the_end_of_uploads_survives_a_crash(world):
    """The server says it once; without it the aggregator would wait for the deadline, its peers for it."""
    announcement = world.announcement()
    signed = world.open(announcement)
    for seed, hospital in enumerate(world.hospitals):
        world.submit(hospital, announcement, signed, contribution(seed))
    for name in world.network.aggregators:
        world.network.aggregators[name].handle(world.server.peer, CloseUploads(announcement.id))
        world.restart(name)
    world.network.pump()  # at the same time: nothing but what is on disk closes the uploads
    states = {one._rounds[announcement.id.key].state for one in world.network.aggregators.values()}
    assert states == {"agreed"}
    assert world.collect(announcement).included_count == 4


def test_a_silent_peer_gets_nothing_but_greetings(tmp_path):
    """What it has heard is not known before it has answered; it could not follow."""
    with World(tmp_path) as world:
        announcement = world.announcement()
        world.open(announcement)
        aggregator = world.restart("agg-0")
        aggregator.handle(world.server.peer, CloseUploads(announcement.id))
        aggregator.advance()
        assert [type(one.message) for one in aggregator.outgoing("agg-1")] == [Hello]
        world.network._deliver("agg-0", "agg-1")
        assert [type(one.message) for one in aggregator.outgoing("agg-1")] == [UploadList]
