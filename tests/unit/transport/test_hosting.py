"""Connections that another thread looks after: what it takes, what it gives back, and that it never waits."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec
import pytest

from fedsec.errors import DeadlineError, FedsecError, PeerLostError, ProtocolError, UsageError
from fedsec.transport import (
    Call,
    Deadline,
    Limits,
    Peer,
    Reply,
    Role,
    Route,
    SocketChannel,
    call,
    serve_channel,
)
from fedsec.transport.hosting import MOST_GUESTS, Guest, Guests
from fedsec.transport.service import Occupation
from fedsec.transport.several import Bell, wait_any

BODY_BYTES = 200_000


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    number: int


class Told(msgspec.Struct, frozen=True, tag="told"):
    number: int
    by: str


def soon() -> Deadline:
    return Deadline.after(30)


@dataclass
class House:
    """A server's thread for one connection, and the host: the test's own thread."""

    client: SocketChannel
    guests: Guests
    occupation: Occupation
    thread: threading.Thread
    bell: Bell
    taken: list[tuple[Guest, Call]] = field(default_factory=list)

    def ask(self, number: int, body: bytes = b"", most: int = 0) -> Callable[[], tuple[Told, bytes]]:
        """Send a request from a thread of its own; returns what waits for the answer."""
        answers: list[object] = []

        def asking() -> None:
            try:
                answers.append(
                    call(self.client, Ask(number), Told, body=body, deadline=soon(), max_body_bytes=most)
                )
            except FedsecError as error:
                answers.append(error)

        thread = threading.Thread(target=asking)
        thread.start()

        def answer() -> tuple[Told, bytes]:
            thread.join(30)
            (outcome,) = answers
            if isinstance(outcome, Exception):
                raise outcome
            told, inside = outcome  # type: ignore[misc]
            return told, bytes(inside)

        return answer

    def lodge(self) -> None:
        """Have the first request answered by the own thread, which leaves the connection to the host."""
        assert self.ask(0)()[0] == Told(0, "own")
        self.until(lambda: len(self.guests.channels) == 1)

    def receive(self) -> None:
        """Be the host once."""
        began = time.monotonic()
        for channel in wait_any(list(self.guests.channels), 30.0):
            self.guests.receive(channel)
        assert time.monotonic() - began < 25

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = soon()
        while not condition():
            deadline.remaining("the other thread")
            time.sleep(0.002)


@pytest.fixture
def house() -> Iterator[House]:
    near, far = socket.socketpair()
    client = SocketChannel(near, "u", Peer("p", Role.PARTY, b"p", "p"))
    channel = SocketChannel(far, "p", Peer("u", Role.USER, b"u", "u"))
    bell = Bell()
    made: list[House] = []

    def handle(request: Call) -> Reply:
        if request.message.number == -13:
            raise UsageError("refused unread")
        size = len(request.body.read())
        if request.message.number < 0:
            raise UsageError("a negative number")
        return Reply(Told(request.message.number + size, "own"), host=made[0].guests)

    def begin(guest: Guest, request: Call) -> None:
        if request.message.number == 13:
            raise UsageError("an unlucky number")
        if request.message.number == 14:
            raise KeyError("a mistake of ours")
        made[0].taken.append((guest, request))

    route = Route(Ask, frozenset({Role.USER}), handle, max_body_bytes=BODY_BYTES)
    occupation = Occupation()
    thread = threading.Thread(
        target=serve_channel, args=(channel, [route], Limits(idle_s=60, request_s=30), occupation)
    )
    made.append(House(client, Guests(route, begin, bell, 30.0), occupation, thread, bell))
    thread.start()
    yield made[0]
    made[0].guests.close()
    client.close()
    thread.join(30)
    assert not thread.is_alive()


def test_the_host_takes_a_request_and_answers_it(house: House) -> None:
    house.lodge()
    for number in range(1, 4):
        answer = house.ask(number, b"body")
        house.receive()
        guest, request = house.taken.pop()
        assert (request.message, bytes(request.body.read())) == (Ask(number), b"body")
        assert house.occupation.busy
        house.guests.answer(guest, Reply(Told(number, "host")))
        assert answer()[0] == Told(number, "host")
        assert not house.occupation.busy
    assert len(house.guests.channels) == 1


@pytest.mark.parametrize("number", [13, 14])
def test_an_error_goes_out_from_the_connections_own_thread(
    house: House, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    house.lodge()
    keep, errors_told = house.guests.keep, threading.Event()

    def keep_later(
        channel: SocketChannel, occupation: Occupation, idle_s: float
    ) -> Callable[[], None] | None:
        errors_told.wait(30)
        return keep(channel, occupation, idle_s)

    # The own thread is to bring its connection back only when it was looked whether it has left.
    monkeypatch.setattr(house.guests, "keep", keep_later)
    answer = house.ask(number)
    house.receive()
    assert house.guests.channels == ()
    with pytest.raises(FedsecError, match={13: "unlucky", 14: "internal error"}[number]):
        answer()
    errors_told.set()
    house.until(lambda: len(house.guests.channels) == 1)


def test_a_long_body_is_read_by_the_connections_own_thread(house: House) -> None:
    house.lodge()
    answer = house.ask(5, bytes(BODY_BYTES))
    house.receive()
    assert answer()[0] == Told(5 + BODY_BYTES, "own")
    assert house.taken == []


@pytest.mark.parametrize("hosted", [True, False])
def test_a_long_body_that_nobody_wants_is_dropped_before_the_next_request(house: House, hosted: bool) -> None:
    if hosted:
        house.lodge()
    answer = house.ask(-13, bytes(BODY_BYTES))
    if hosted:
        house.receive()
    with pytest.raises(UsageError, match="refused unread"):
        answer()
    if hosted:
        # A refusal does not end the stay: the connection comes back to its host.
        house.until(lambda: len(house.guests.channels) == 1)
        answer = house.ask(6)
        house.receive()
        house.guests.answer(house.taken.pop()[0], Reply(Told(6, "host")))
    else:
        answer = house.ask(6)
    assert answer()[0] == Told(6, "host" if hosted else "own")


def test_a_request_that_may_not_be_is_refused_by_the_connections_own_thread(house: House) -> None:
    house.lodge()
    answer = house.ask(5, bytes(BODY_BYTES + 1))
    house.receive()
    with pytest.raises(ProtocolError, match=f"at most {BODY_BYTES} bytes"):
        answer()
    assert house.taken == []


@pytest.mark.parametrize("first", [1, 23, 24, 30])
def test_threat_37_a_request_in_pieces_costs_the_host_no_wait(house: House, first: int) -> None:
    house.lodge()
    body = len(b"body").to_bytes(8, "big")
    inside = (int.from_bytes(body, "big") | 1 << 63).to_bytes(8, "big")
    payload = inside + msgspec.msgpack.encode(Ask(7)) + b"body"
    frame = house.client.outgoing.seal("ask/request", payload) + payload
    house.client._sock.send(frame[:first])
    house.receive()
    assert house.guests.channels == ()
    house.client._sock.send(frame[first:])
    reply = house.client.receive("ask/reply", max_bytes=100, deadline=soon())
    assert msgspec.msgpack.decode(reply[9:], type=Told) == Told(11, "own")


def test_an_answer_that_is_not_read_costs_the_host_no_wait(house: House) -> None:
    house.lodge()
    house.client._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    payload = bytes(8) + msgspec.msgpack.encode(Ask(1))
    sent, most = 0, 60_000
    while house.guests.channels and sent < 200:
        house.client.send("ask/request", payload, soon())
        house.receive()
        began = time.monotonic()
        house.guests.answer(house.taken.pop()[0], Reply(Told(1, "host"), bytes(most)))
        assert time.monotonic() - began < 25
        sent += 1
    assert 0 < sent < 200
    for _ in range(sent):
        assert len(house.client.receive("ask/reply", max_bytes=most + 100, deadline=soon())) > most


def test_an_answer_may_be_found_by_the_connections_own_thread(house: House) -> None:
    house.lodge()
    answer, go_on = house.ask(3), threading.Event()
    house.receive()

    def find() -> Reply:
        go_on.wait(30)
        return Reply(Told(3, "late"), bytes(100_000))

    house.guests.hand_over(house.taken.pop()[0], find)
    go_on.set()
    with pytest.raises(ProtocolError, match="at most 0 bytes"):
        answer()


def test_an_answer_that_is_none_is_told_as_an_error_of_ours(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.lodge()
    answer = house.ask(3)
    house.receive()
    house.guests.hand_over(house.taken.pop()[0], lambda: None)
    with pytest.raises(FedsecError, match="internal error"):
        answer()
    assert "ask of user u got no answer from its handler" in caplog.text


def test_a_closed_house_returns_everyone_and_takes_nobody(house: House) -> None:
    house.lodge()
    house.guests.close()
    assert house.guests.channels == ()
    assert house.ask(1)()[0] == Told(1, "own")
    assert house.ask(2)()[0] == Told(2, "own")


def test_a_connection_that_is_to_end_ends_after_its_answer(house: House) -> None:
    house.lodge()
    answer = house.ask(4)
    house.receive()
    house.occupation.ending = True
    house.guests.answer(house.taken.pop()[0], Reply(Told(4, "host")))
    assert answer()[0] == Told(4, "host")
    house.thread.join(30)
    assert not house.thread.is_alive()


def test_the_end_of_a_connection_is_given_back(house: House) -> None:
    house.lodge()
    house.client.close()
    house.receive()
    house.thread.join(30)
    assert not house.thread.is_alive()


def test_threat_37_a_connection_without_requests_is_closed() -> None:
    near, far = socket.socketpair()
    client = SocketChannel(near, "u", Peer("p", Role.PARTY, b"p", "p"))
    channel = SocketChannel(far, "p", Peer("u", Role.USER, b"u", "u"))
    guests = Guests(Route(Ask, frozenset(), lambda _call: None), lambda _guest, _call: None, Bell(), 30.0)
    thread = threading.Thread(
        target=serve_channel, args=(channel, [], Limits(idle_s=0.05), Occupation(host=guests))
    )
    thread.start()
    while not guests.channels:
        time.sleep(0.002)
    # Its own thread shuts it down, and the host gives it back.
    for ended in wait_any(list(guests.channels), 30.0):
        guests.receive(ended)
    with pytest.raises(PeerLostError):
        client.receive("ask/reply", max_bytes=10, deadline=soon())
    thread.join(30)
    assert not thread.is_alive()
    client.close()


def test_no_more_guests_than_there_is_room_for() -> None:
    guests = Guests(Route(Ask, frozenset(), lambda _call: None), lambda _guest, _call: None, Bell(), 1.0)
    pairs = [socket.socketpair() for _ in range(MOST_GUESTS + 1)]
    peer = Peer("u", Role.USER, b"u", "u")
    channels = [SocketChannel(one, "p", peer) for one, _ in pairs]
    threads = [
        threading.Thread(target=guests.keep, args=(channel, Occupation(), 60.0)) for channel in channels
    ]
    for thread in threads:
        thread.start()
    while sum(thread.is_alive() for thread in threads) > MOST_GUESTS:
        time.sleep(0.002)
    assert len(guests.channels) == MOST_GUESTS
    guests.close()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    for one, other in pairs:
        one.close()
        other.close()


def test_threat_37_one_request_at_a_time_is_taken_from_a_connection(house: House) -> None:
    house.lodge()
    (channel,) = house.guests.channels
    payload = bytes(8) + msgspec.msgpack.encode(Ask(1))
    house.client.send("ask/request", payload, soon())
    house.receive()
    # The second one would be refused, and that would be told by the connection's own thread.
    house.client.send("ask/request", bytes(8) + msgspec.msgpack.encode(Ask(13)), soon())
    assert house.guests.channels == ()
    house.guests.receive(channel)
    ((guest, request),) = house.taken
    assert request.message == Ask(1)
    assert house.occupation.busy
    house.guests.answer(guest, Reply(Told(1, "host")))
    reply = house.client.receive("ask/reply", max_bytes=100, deadline=soon())
    assert msgspec.msgpack.decode(reply[9:], type=Told) == Told(1, "host")
    assert house.guests.channels == (channel,)
    house.receive()
    assert b"unlucky" in house.client.receive("ask/reply", max_bytes=100, deadline=soon())


def test_threat_37_nothing_is_written_on_a_connection_that_was_given_back(house: House) -> None:
    house.lodge()
    answer = house.ask(1)
    house.receive()
    guest, _ = house.taken.pop()
    assert house.guests.hand_over(guest, lambda: Reply(Told(1, "late"), host=house.guests))
    assert answer()[0] == Told(1, "late")
    house.until(lambda: len(house.guests.channels) == 1)
    # The connection is with the host again, as another guest: the first one has no say over it.
    house.guests.answer(guest, Reply(Told(2, "host")))
    assert not house.guests.give_back(guest)
    assert not house.guests.hand_over(guest, lambda: Reply(Told(3, "late")))
    assert len(house.guests.channels) == 1
    answer = house.ask(4)
    house.receive()
    house.guests.answer(house.taken.pop()[0], Reply(Told(4, "host")))
    assert answer()[0] == Told(4, "host")


@pytest.mark.parametrize("handed_over", [True, False])
def test_threat_37_a_request_that_comes_as_its_connection_is_given_up_is_not_forgotten(
    handed_over: bool,
) -> None:
    """The own thread gives up an idle connection in the very moment in which the host takes a request."""
    near, far = socket.socketpair()
    client = SocketChannel(near, "u", Peer("p", Role.PARTY, b"p", "p"))
    taken: list[Guest] = []

    class Late(SocketChannel):
        def interrupt(self) -> None:
            client.send("ask/request", bytes(8) + msgspec.msgpack.encode(Ask(1)), soon())
            guests.receive(self)
            if handed_over:
                assert guests.hand_over(taken[0], lambda: Reply(Told(1, "late")))
            super().interrupt()

    route = Route(Ask, frozenset({Role.USER}), lambda _call: None)
    guests = Guests(route, lambda guest, _call: taken.append(guest), Bell(), 0.05)
    channel = Late(far, "p", Peer("u", Role.USER, b"u", "u"))
    if handed_over:
        rest = guests.keep(channel, Occupation(), 0.01)
        assert rest is not None
        with pytest.raises(PeerLostError):
            rest()
    else:
        # The host has been at work on it for too long: whoever decides the request learns that nobody waits.
        with pytest.raises(DeadlineError):
            guests.keep(channel, Occupation(), 0.01)
        assert not guests.hand_over(taken[0], lambda: Reply(Told(1, "late")))
    client.close()
    channel.close()


def test_a_connection_that_is_to_end_is_not_waited_for_when_it_comes_back() -> None:
    near, far = socket.socketpair()
    client = SocketChannel(near, "u", Peer("p", Role.PARTY, b"p", "p"))
    channel = SocketChannel(far, "p", Peer("u", Role.USER, b"u", "u"))
    guests = Guests(Route(Ask, frozenset(), lambda _call: None), lambda _guest, _call: None, Bell(), 1.0)
    occupation = Occupation(host=guests)
    thread = threading.Thread(target=serve_channel, args=(channel, [], None, occupation))
    thread.start()
    while not guests.channels:
        time.sleep(0.002)
    occupation.ending = True
    guests.close()
    thread.join(30)
    ended = not thread.is_alive()
    client.close()
    thread.join(30)
    assert ended
