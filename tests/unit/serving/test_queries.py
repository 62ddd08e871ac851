"""Users' connections that the compute thread looks after: users that hang up, and users that do not wait."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Any

import pytest

from fedsec.errors import DeadlineError, ProtocolError
from fedsec.nn import Plan, Weights
from fedsec.ring import Ring
from fedsec.serving import parts
from fedsec.serving.ledger import Ledger
from fedsec.serving.limits import Limits
from fedsec.serving.messages import ID_BYTES, Answer, Entry, Query
from fedsec.serving.queries import Queries
from fedsec.serving.waiting import WaitingRoom
from fedsec.transport import Deadline, Peer, Role, Route, SocketChannel, serve_channel
from fedsec.transport.calling import Calling
from fedsec.transport.service import Occupation
from fedsec.transport.several import wait_any

SERVICE = b"s" * ID_BYTES


class House:
    """One party's side of a service, of which the test's own thread is the compute thread."""

    def __init__(self, plan: Plan, state: Path, stack: ExitStack) -> None:
        book = Ledger(state / "ledger.sqlite").open_service(SERVICE, b"m" * 32, num_requests=None, quota=None)
        self.book = book
        self.room = WaitingRoom(max_images=64, max_per_user=16, max_images_per_user=32, longest_s=60)
        limits = Limits(part_s=0.2)
        self.queries = Queries(
            2, SERVICE, plan, heads={"logits": plan}, book=book, room=self.room, limits=limits
        )
        self.threads: list[threading.Thread] = []
        self._body = os.urandom(parts.body_bytes(2, prod(plan.input_shape), Ring(plan.ring_bits)))
        self._stack = stack

    def user(self, name: str) -> SocketChannel:
        """Return a user's end of a connection that is with the host."""
        near, far = socket.socketpair()
        client = SocketChannel(near, name, Peer("p", Role.PARTY, b"p", "p"))
        channel = SocketChannel(far, "p", Peer(name, Role.USER, b"u", os.urandom(32).hex()))
        route = Route(Query, frozenset({Role.USER}), self.queries.answer, self.queries.body_bytes)
        occupation = Occupation(host=self.queries.guests)
        thread = threading.Thread(
            target=serve_channel, args=(channel, [route], None, occupation), name="connection"
        )
        before = len(self.queries.guests.channels)
        thread.start()
        self.threads.append(thread)
        self._stack.callback(client.close)
        until(lambda: len(self.queries.guests.channels) == before + 1)
        return client

    def ask(self, client: SocketChannel, request: bytes) -> Calling[Answer]:
        query = Query(service=SERVICE, request=request, images=1)
        return Calling(
            client, query, Answer, body=self._body, deadline=Deadline.after(30), max_body_bytes=100
        )

    def receive(self, seconds: float = 30.0) -> None:
        for channel in wait_any(list(self.queries.guests.channels), seconds):
            self.queries.guests.receive(channel)

    def vote(self) -> None:
        """Decide as the service's loop does when another party got no part of anything."""
        for key in self.room.held():
            self.room.put_off(key, "party-1 got no part of it")
        self.room.release()


def until(condition: Callable[[], bool]) -> None:
    deadline = Deadline.after(60)
    while not condition():
        deadline.remaining("the other thread")
        time.sleep(0.002)


@pytest.fixture
def house(model: tuple[Plan, Weights], tmp_path: Path) -> Iterator[House]:
    with ExitStack() as stack:
        made = House(model[0], tmp_path, stack)
        yield made
        made.queries.guests.close()
    for thread in made.threads:
        thread.join(60)
        assert not thread.is_alive()


def test_threat_37_a_user_that_hangs_up_leaves_no_request_behind(house: House) -> None:
    for number in range(3):
        client = house.user(f"u{number}")
        house.ask(client, os.urandom(ID_BYTES))
        house.receive()
        client.close()
        house.receive(0.05)
    assert house.room.occupied == 3
    house.vote()
    until(lambda: not house.room.occupied)
    for thread in house.threads:
        thread.join(60)
        assert not thread.is_alive()


def test_threat_37_a_request_whose_connection_is_not_here_any_more_is_given_up_at_the_next_vote(
    house: House,
) -> None:
    house.ask(house.user("u"), os.urandom(ID_BYTES))
    house.receive()
    house.queries.guests.close()
    assert house.room.occupied == 1
    house.vote()
    assert house.room.occupied == 0


def test_threat_37_a_user_that_does_not_wait_gets_its_answers_one_after_the_other(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    writers: list[str] = []
    start = SocketChannel.start

    def noted(channel: SocketChannel, label: str, *args: Any, **options: Any) -> Any:
        if channel.me == "p":
            writers.append(threading.current_thread().name)
        return start(channel, label, *args, **options)

    monkeypatch.setattr(SocketChannel, "start", noted)
    client, request = house.user("u"), os.urandom(ID_BYTES)
    first = house.ask(client, request)
    house.receive()
    # The same id again: refused, which the connection's own thread tells.
    second = house.ask(client, request)
    house.receive(0.05)
    (key,) = house.room.held()
    house.book.charge([Entry(*key, 1)])
    house.room.resolve(key, b"\0" * 80)
    assert first.hear() is not None
    host = threading.current_thread().name
    assert writers == [host]
    house.receive()
    with pytest.raises(ProtocolError, match="request id"):
        second.hear()
    assert writers == [host, "connection"]


def test_a_request_that_is_never_decided_holds_up_those_behind_it_only(house: House) -> None:
    client, other = house.user("u"), house.user("v")
    first = house.ask(client, os.urandom(ID_BYTES))
    house.receive()
    second = house.ask(client, os.urandom(ID_BYTES))
    house.receive(0.05)
    assert house.room.occupied == 1
    house.ask(other, os.urandom(ID_BYTES))
    house.receive()
    assert house.room.occupied == 2
    house.vote()
    with pytest.raises(DeadlineError, match="party-1 got no part"):
        first.hear()
    # Both users' connections, or what is heard next may be the other's.
    until(lambda: len(house.queries.guests.channels) == 2)
    house.receive()
    house.vote()
    with pytest.raises(DeadlineError, match="party-1 got no part"):
        second.hear()
