"""The aggregation's state machines: every event in every state, every order of messages of a small round."""

import itertools
import os

import pytest
from aggregation_world import FakeIdentity, World, contribution, replaced, soon

from fedsec.aggregation import HospitalClient
from fedsec.aggregation.encoding import encode_update
from fedsec.aggregation.making import make_parts
from fedsec.aggregation.messages import (
    AbortRound,
    Announce,
    Announced,
    ChainHead,
    CloseUploads,
    CollectSum,
    FinishRound,
    GetReceipt,
    Receipt,
    Received,
    SetSignature,
    SetStatement,
    Stored,
    SumShare,
    Upload,
    UploadList,
    seal,
)
from fedsec.aggregation.store import State
from fedsec.errors import FedsecError, ProtocolError, RoundAbortedError, StateError, TrustError, UsageError
from fedsec.transport import Role

STATES = ["unknown", "open", "listed", "signed", "agreed", "finished", "aborted"]


class OneAggregator:
    """Aggregator agg-0 of two, with its peer's messages at hand, brought to a state."""

    def __init__(self, folder, state):
        # Three hospitals, of which two upload; the third is for the first upload in each state.
        self.world = World(folder, aggregator_count=2, hospital_count=3)
        world = self.world
        self.announcement = world.announcement()
        self.signed = world.sign(self.announcement)
        self.parts = []
        for seed, hospital in enumerate(world.hospitals):
            one = contribution(seed)
            words = encode_update(self.announcement.layout, one.update, one.num_examples, one.metrics)
            self.parts.append(make_parts(self.announcement, hospital, words))
        self.me = world.network.aggregators["agg-0"]
        self.peer = world.network.aggregators["agg-1"]
        self._to(state)

    def ask(self, who, name, message, body=b""):
        return self.world.network.aggregators[name].handle(who.peer, message, [body])[0]

    def upload(self, index, name):
        parts = self.parts[index]
        return self.ask(self.world.hospitals[index], name, Upload(parts.header), parts.parts[name])

    def statement(self, name, kind):
        key = self.announcement.id.key
        store = self.world.network.aggregators[name]._store
        missed = store.events(0, store.chain().counter if kind == "set" else 1)
        return {"list": UploadList, "set": SetSignature}[kind](store.statements(key, kind)[name], missed)

    def _to(self, state):
        world, steps = self.world, STATES.index(state) if state != "aborted" else 1
        server, (_, other) = world.server, world.parties
        if steps == 0:
            return
        self.ask(server, "agg-0", Announce(self.signed))
        self.ask(server, "agg-1", Announce(self.signed))
        for index in (0, 1):
            for name in ("agg-0", "agg-1"):
                self.upload(index, name)
        if state == "aborted":
            self.ask(server, "agg-0", FinishRound(self.announcement.id))
            return
        if steps >= 2:
            self._close("agg-0", "agg-1")
        if steps >= 3:
            self.ask(other, "agg-0", self.statement("agg-1", "list"))
            self.me.advance()
        if steps >= 4:
            self.ask(world.parties[0], "agg-1", self.statement("agg-0", "list"))
            self.peer.advance()
            self.ask(other, "agg-0", self.statement("agg-1", "set"))
            self.me.advance()
        if steps >= 5:
            self.ask(server, "agg-0", FinishRound(self.announcement.id))
            self.me.advance()

    def _close(self, *names):
        for name in names:
            self.ask(self.world.server, name, CloseUploads(self.announcement.id))
            self.world.network.aggregators[name].advance()

    @property
    def state(self):
        row = self.me._store.round(self.announcement.id.key)
        return "unknown" if row is None else str(row.state)


EVENTS = {
    "announce": lambda one: one.ask(one.world.server, "agg-0", Announce(one.signed)),
    "announce another": lambda one: one.ask(
        one.world.server, "agg-0", Announce(one.world.sign(replaced(one.announcement, upload_seconds=61.0)))
    ),
    "first upload": lambda one: one.upload(2, "agg-0"),
    "repeated upload": lambda one: one.upload(0, "agg-0"),
    "close": lambda one: one.ask(one.world.server, "agg-0", CloseUploads(one.announcement.id)),
    "collect": lambda one: one.ask(one.world.server, "agg-0", CollectSum(one.announcement.id)),
    "collect by a hospital": lambda one: one.ask(
        one.world.hospitals[0], "agg-0", CollectSum(one.announcement.id)
    ),
    "receipt": lambda one: one.ask(
        one.world.hospitals[0], "agg-0", GetReceipt(one.announcement.id, one.parts[0].upload_id)
    ),
    "finish": lambda one: one.ask(one.world.server, "agg-0", FinishRound(one.announcement.id)),
    "peer aborts": lambda one: one.ask(one.world.parties[1], "agg-0", AbortRound(one.announcement.id, "why")),
    "peer list": lambda one: one.ask(one.world.parties[1], "agg-0", peer_statement(one, "list")),
    "peer set": lambda one: one.ask(one.world.parties[1], "agg-0", peer_statement(one, "set")),
    "own list comes back": lambda one: one.ask(one.world.parties[0], "agg-0", peer_statement(one, "list")),
}


def peer_statement(one, kind):
    """The peer's true statement, made in a copy of the round when the state has none yet."""
    key = one.announcement.id.key
    if "agg-1" in one.peer._store.statements(key, kind):
        return one.statement("agg-1", kind)
    rest = {"unknown": ["announce", "close"], "open": ["close"], "aborted": ["close"]}.get(one.state, [])
    if "announce" in rest:
        one.ask(one.world.server, "agg-1", Announce(one.signed))
        for index in (0, 1):
            one.upload(index, "agg-1")
    if "close" in rest:
        one._close("agg-1")
    if kind == "set":
        own = one.me._store.statements(key, "list").get("agg-0")
        one.peer.advance()
        if own is None:
            return forged_set(one)
        one.ask(one.world.parties[0], "agg-1", UploadList(own))
        one.peer.advance()
    return one.statement("agg-1", kind)


def forged_set(one):
    """A set statement that an honest peer cannot have signed yet."""
    statement = SetStatement(
        one.announcement.id,
        one.announcement.digest,
        "agg-1",
        2,
        bytes(32),
        bytes(32),
        seal(one.world.parties[1], ChainHead(5, bytes(32))),
    )
    return SetSignature(seal(one.world.parties[1], statement))


A, P, T, S = RoundAbortedError, ProtocolError, TrustError, StateError
TABLE = {
    #                         unknown    open      listed    signed    agreed    finished  aborted
    "announce":              (Announced, Announced, Announced, Announced, Announced, Announced, A),
    "announce another":      (Announced, T,        T,        T,        T,        T,        T),
    "first upload":          (P,         Stored,   P,        P,        P,        P,        A),
    "repeated upload":       (P,         Stored,   Stored,   Stored,   Stored,   Stored,   Stored),
    "close":                 (P,         Received, Received, Received, Received, Received, Received),
    "collect":               (P,         SumShare, SumShare, SumShare, SumShare, A,        A),
    "collect by a hospital": (P,         T,        T,        T,        T,        T,        T),
    "receipt":               (P,         Receipt,  Receipt,  Receipt,  Receipt,  Receipt,  Receipt),
    "finish":                (P,         Received, Received, Received, Received, Received, Received),
    "peer aborts":           (P,         Received, Received, Received, Received, Received, Received),
    "peer list":             (P,         Received, Received, Received, Received, Received, A),
    "peer set":              (P,         P,        Received, Received, Received, Received, A),
    "own list comes back":   (P,         T,        T,        T,        T,        T,        T),
}  # fmt: skip
AFTER = {
    ("announce", "unknown"): "open", ("announce another", "unknown"): "open",
    ("close", "open"): "listed",
    ("peer list", "listed"): "signed",
    # The peer can only have signed the set when it has both lists; ours may come late.
    ("peer set", "signed"): "agreed",
    ("finish", "open"): "aborted", ("finish", "listed"): "aborted", ("finish", "signed"): "aborted",
    ("finish", "agreed"): "finished",
    ("peer aborts", "open"): "aborted", ("peer aborts", "listed"): "aborted",
    ("peer aborts", "signed"): "aborted",
}  # fmt: skip


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("event", EVENTS)
def test_every_event_in_every_state(tmp_path, state, event):
    one = OneAggregator(tmp_path, state)
    with one.world:
        assert one.state == state
        expected = TABLE[event][STATES.index(state)]

        if issubclass(expected, FedsecError):
            with pytest.raises(expected):
                EVENTS[event](one)
        else:
            reply = EVENTS[event](one)
            assert isinstance(reply, expected)
            if isinstance(reply, SumShare):
                assert reply.ready == (state == "agreed")

        one.me.advance()
        assert one.state == AFTER.get((event, state), state)


def test_the_tables_name_every_event_and_state():
    assert set(TABLE) == set(EVENTS)
    assert set(STATES) == {"unknown", *map(str, State)}


@pytest.mark.parametrize("role", ["another server", "another party", "another hospital"])
def test_every_request_of_a_stranger_is_refused_in_every_state(tmp_path, role):
    one = OneAggregator(tmp_path, "agreed")
    with one.world:
        name = {"another server": "server", "another party": "agg-1", "another hospital": "h00"}[role]
        stranger = FakeIdentity(name, Role.HOSPITAL)
        messages = [
            Announce(one.signed), CloseUploads(one.announcement.id), FinishRound(one.announcement.id),
            CollectSum(one.announcement.id), AbortRound(one.announcement.id, ""),
            one.statement("agg-1", "list"), one.statement("agg-1", "set"),
            GetReceipt(one.announcement.id, one.parts[0].upload_id), Upload(one.parts[0].header),
        ]  # fmt: skip
        for message in messages:
            with pytest.raises((TrustError, ProtocolError)):
                one.ask(stranger, "agg-0", message)
        assert one.state == "agreed"


def drive(one, order):
    """Deliver the events of a round in one order, as far as each is possible; return the opened sets."""
    shares = {}
    for event in order:
        kind, *rest = event
        try:
            if kind == "upload":
                one.upload(*rest)
            elif kind == "close":
                one.ask(one.world.server, rest[0], CloseUploads(one.announcement.id))
            elif kind == "collect":
                reply = one.ask(one.world.server, rest[0], CollectSum(one.announcement.id))
                if reply.ready:
                    shares.setdefault(rest[0], set()).add(reply.included)
            elif kind == "pump":
                one.world.network.pump()
        except FedsecError:
            continue
        for aggregator in one.world.network.aggregators.values():
            aggregator.advance()
    return shares


ORDERED = [
    ("upload", 0, "agg-0"), ("upload", 1, "agg-0"), ("upload", 1, "agg-1"),
    ("close", "agg-0"), ("close", "agg-1"), ("pump",),
]  # fmt: skip


@pytest.mark.parametrize("first", range(len(ORDERED)))
def test_threat_21_no_order_of_messages_opens_two_sets_or_a_small_one(tmp_path_factory, monkeypatch, first):
    """All 720 orders of a small round: whatever is opened is one set, of at least the minimum cohort."""
    rest = [event for index, event in enumerate(ORDERED) if index != first]
    orders = list(itertools.permutations(rest))
    opened_in_all = 0
    one = OneAggregator(tmp_path_factory.mktemp("orders"), "unknown")
    monkeypatch.setattr(os, "fsync", lambda _: None)  # nothing crashes here
    with one.world:
        for aggregator in (one.me, one.peer):
            aggregator._store._db.execute("PRAGMA synchronous=OFF")
        for number, order in enumerate(orders):
            fresh_round(one, number + 1)
            one.upload(0, "agg-1")
            tail = [("pump",), ("collect", "agg-0"), ("collect", "agg-1"), ("pump",)]
            shares = drive(one, [ORDERED[first], *order, *tail])
            sets = set().union(*shares.values()) if shares else set()
            assert len(sets) <= 1
            assert all(len(included) >= 2 for included in sets)
            opened_in_all += bool(sets)
            for name in ("agg-0", "agg-1"):
                one.ask(one.world.server, name, FinishRound(one.announcement.id))
            one.world.network.pump()
    assert opened_in_all < len(orders)
    assert opened_in_all or first in {3, 4}, "the check must also see rounds that succeed"


def fresh_round(one, number):
    world = one.world
    one.announcement = world.announcement(round=number)
    one.signed = world.sign(one.announcement)
    one.parts = []
    for seed, hospital in enumerate(world.hospitals[:2]):
        item = contribution(seed)
        words = encode_update(one.announcement.layout, item.update, item.num_examples, item.metrics)
        one.parts.append(make_parts(one.announcement, hospital, words))
    for name in ("agg-0", "agg-1"):
        one.ask(world.server, name, Announce(one.signed))


def test_a_hospital_in_every_state(tmp_path):
    """accept, submit and receipt in every order: only accept, submit, receipt works."""
    with World(tmp_path) as world:
        announcement = world.announcement()
        signed = world.open(announcement)
        client: HospitalClient = world.client(world.hospitals[0])
        one = contribution(0)

        def submit():
            return client.submit(announcement, one.update, one.num_examples, one.metrics)

        with pytest.raises(UsageError):
            submit()
        with pytest.raises(UsageError):
            client.receipt(announcement, soon())
        world.submit(world.hospitals[0], announcement, signed, one)
        assert submit() == submit()
        for seed in (1, 2):
            world.submit(world.hospitals[seed], announcement, signed, contribution(seed))
        world.collect(announcement)
        assert client.receipt(announcement, soon()) == client.receipt(announcement, soon())


def test_a_collector_in_every_state(tmp_path):
    """collect before announce, twice, and after an abort: refused each time, nothing is opened twice."""
    with World(tmp_path) as world:
        announcement = world.announcement()
        with pytest.raises(ProtocolError, match="not told"):
            world.collect(announcement)
        signed = world.open(announcement)
        for seed, hospital in enumerate(world.hospitals):
            world.submit(hospital, announcement, signed, contribution(seed))
        world.collect(announcement)
        with pytest.raises(RoundAbortedError, match="erased"):
            world.collect(announcement)
