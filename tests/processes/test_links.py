"""A hospital asks all aggregators at the same time: over TLS, with servers in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from fedsec.aggregation.links import TlsLinks
from fedsec.aggregation.messages import Signed, Stored, Upload
from fedsec.cluster.keys import LocalKeys, make_local_keys
from fedsec.errors import PeerLostError, ProtocolError
from fedsec.transport import Deadline, Endpoint, Identity, Role
from fedsec.transport.server import Server
from fedsec.transport.service import Call, Reply, Route

NAMES = ("party-0", "party-1", "party-2")
MESSAGE = Upload(Signed(b"header", bytes(64)))
BODIES = {"party-0": b"a" * 64, "party-1": bytes(range(256)) * 40_000, "party-2": b"c" * 64}
"""One is longer than what sockets take while nobody reads."""


class Aggregators:
    """Three servers that keep what they are sent."""

    def __init__(self, keys: LocalKeys) -> None:
        self.keys = keys
        self.identities = {name: Identity.load(keys.identity(name)) for name in NAMES}
        self.heard: list[tuple[str, bytes]] = []
        self.meet = threading.Barrier(1)
        self.refusing = ""
        self.silent: dict[str, str] = {}
        self.speak = threading.Event()
        self.servers = {name: self._start(name, 0) for name in NAMES}
        self.ports = {name: server.port for name, server in self.servers.items()}

    def _start(self, name: str, port: int) -> Server:
        def take(call: Call) -> Reply:
            if self.silent.get(name) == "before its body":
                self.speak.wait(60)
            body = bytes(call.body.read())
            if self.silent.get(name) == "after it":
                self.speak.wait(60)
            self.meet.wait(60)
            self.heard.append((name, body))
            if name == self.refusing:
                raise ProtocolError("the round takes no more uploads")
            return Reply(Stored(name, bytes(64)))

        route = Route(Upload, frozenset({Role.HOSPITAL}), take, 10**8)
        server = Server(("127.0.0.1", port), self.identities[name], [route])
        server.start()
        return server

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint(name, "127.0.0.1", port, self.identities[name].public_key)
            for name, port in self.ports.items()
        ]

    def restart(self, name: str) -> None:
        self.servers[name].stop()
        self.servers[name] = self._start(name, self.ports[name])


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> LocalKeys:
    return make_local_keys(tmp_path_factory.mktemp("keys"), list(NAMES), 1)


@pytest.fixture
def aggregators(keys: LocalKeys) -> Iterator[Aggregators]:
    made = Aggregators(keys)
    yield made
    for server in made.servers.values():
        server.stop()


@pytest.fixture
def links(aggregators: Aggregators) -> Iterator[TlsLinks]:
    made = TlsLinks(aggregators.endpoints(), Identity.load(aggregators.keys.identity("hospital-00")))
    yield made
    made.close()


def ask(links: TlsLinks, seconds: float = 60.0) -> dict[str, Stored]:
    return links.call_each(MESSAGE, BODIES, Stored, deadline=Deadline.after(seconds))


def test_every_aggregator_gets_its_own_body_while_the_others_are_at_work(
    aggregators: Aggregators, links: TlsLinks
) -> None:
    # Nobody answers before all three have their part: asked one after the other, this would never end.
    aggregators.meet = threading.Barrier(3)
    replies = ask(links)
    assert {name: reply.aggregator for name, reply in replies.items()} == {name: name for name in NAMES}
    assert dict(aggregators.heard) == BODIES
    ask(links)
    assert len(aggregators.heard) == 6


def test_connections_opened_ahead_are_those_that_are_used(aggregators: Aggregators, links: TlsLinks) -> None:
    links.connect(Deadline.after(60))
    before = dict(links._channels)
    assert set(before) == set(NAMES)
    ask(links)
    assert links._channels == before


@pytest.mark.parametrize("lost", NAMES)
def test_an_aggregator_that_is_lost_is_named_and_the_others_have_their_parts(
    aggregators: Aggregators, links: TlsLinks, lost: str
) -> None:
    aggregators.servers[lost].stop()
    with pytest.raises(PeerLostError, match=lost):
        ask(links)
    assert dict(aggregators.heard) == {name: body for name, body in BODIES.items() if name != lost}
    aggregators.restart(lost)
    # Again, and identical bytes.
    ask(links)
    assert {body for name, body in aggregators.heard if name == lost} == {BODIES[lost]}
    assert all(body == BODIES[name] for name, body in aggregators.heard)


@pytest.mark.parametrize("restarted", NAMES)
def test_a_kept_connection_that_is_dead_is_made_again(
    aggregators: Aggregators, links: TlsLinks, restarted: str
) -> None:
    ask(links)
    aggregators.restart(restarted)
    assert set(ask(links)) == set(NAMES)
    assert sorted(aggregators.heard) == sorted(2 * list(BODIES.items()))


def test_a_refusal_is_the_aggregators_own_and_leaves_all_connections_in_step(
    aggregators: Aggregators, links: TlsLinks
) -> None:
    aggregators.refusing = "party-1"
    with pytest.raises(ProtocolError, match="party-1: the round takes no more uploads"):
        ask(links)
    before = dict(links._channels)
    aggregators.refusing = ""
    assert set(ask(links)) == set(NAMES)
    assert links._channels == before


@pytest.mark.parametrize(
    ("silent", "when"),
    [
        ("party-0", "before its body"),
        ("party-1", "before its body"),
        ("party-1", "after it"),
        ("party-2", "after it"),
    ],
)
def test_one_that_says_nothing_costs_the_deadline_and_is_named(
    aggregators: Aggregators, links: TlsLinks, silent: str, when: str
) -> None:
    links.connect(Deadline.after(60))
    aggregators.silent = {silent: when}
    with pytest.raises(PeerLostError, match=f"from {silent} within"):
        ask(links, 2.0)
    aggregators.speak.set()
    assert {name for name, _ in aggregators.heard} >= set(NAMES) - {silent}
    aggregators.silent = {}
    assert set(ask(links)) == set(NAMES)


def test_an_interrupt_leaves_no_answer_behind_for_the_next_request(
    aggregators: Aggregators, links: TlsLinks, monkeypatch: pytest.MonkeyPatch
) -> None:
    links.connect(Deadline.after(60))
    with monkeypatch.context() as patch:
        patch.setattr(links, "_hear", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ask(links)
    assert not links._channels, "an answer would be heard by the next request"
    assert set(ask(links)) == set(NAMES)
