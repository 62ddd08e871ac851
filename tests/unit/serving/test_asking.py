"""Three requests from one thread: all sent first, the first error told, nothing half-done left open."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest

from fedsec.errors import DataError, DeadlineError, FedsecError, PeerLostError, ServiceEndedError
from fedsec.serving import asking
from fedsec.serving.asking import Ask, ask_each
from fedsec.transport import Call, Deadline, Peer, Reply, Role, Route, SocketChannel, serve_channel
from fedsec.transport.bodies import CHUNK_BYTES, UNASKED_BYTES

NAMES = ("alice", "bob", "carol")
Handler = Callable[[Call], Reply]


class Ping(msgspec.Struct, tag="ping"):
    number: int


class Pong(msgspec.Struct, tag="pong"):
    number: int


@pytest.fixture
def parties() -> Iterator[Callable[..., list[SocketChannel]]]:
    channels: list[SocketChannel] = []
    threads: list[threading.Thread] = []

    def start(*handlers: Handler) -> list[SocketChannel]:
        for name, handler in zip(NAMES, handlers, strict=True):
            one, other = socket.socketpair()
            channels.append(SocketChannel(one, "user", Peer(name, Role.PARTY, b"", name)))
            there = SocketChannel(other, name, Peer("user", Role.USER, b"", "user"))
            route = Route(Ping, frozenset({Role.USER}), handler, 4 * CHUNK_BYTES)
            threads.append(threading.Thread(target=serve_channel, args=(there, [route]), daemon=True))
            threads[-1].start()
        return channels

    yield start
    for channel in channels:
        channel.interrupt()
        channel.close()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def echo(request: Call) -> Reply:
    return Reply(Pong(request.message.number), request.body.read())


def fail(request: Call) -> Reply:
    raise ServiceEndedError("it is over")


def asks(size: int) -> list[Ask]:
    return [Ask(Ping(number), bytes([number]) * size, size) for number in range(3)]


@pytest.mark.parametrize("size", [0, 100, UNASKED_BYTES + 1, 3 * CHUNK_BYTES])
def test_each_gets_its_own_and_the_replies_keep_the_order(parties: Callable[..., list], size: int) -> None:
    channels = parties(echo, echo, echo)
    for _ in range(2):
        replies = ask_each(channels, asks(size), Pong, Deadline.after(60))
        assert replies == [(Pong(number), bytearray([number]) * size) for number in range(3)]


@pytest.mark.parametrize("size", [10, 2 * CHUNK_BYTES])
def test_a_party_that_answers_only_after_all_were_asked_is_no_deadlock(
    parties: Callable[..., list], size: int
) -> None:
    everyone = threading.Barrier(3)

    def together(request: Call) -> Reply:
        body = request.body.read()
        everyone.wait(60)
        return Reply(Pong(request.message.number), body)

    channels = parties(together, together, together)
    assert len(ask_each(channels, asks(size), Pong, Deadline.after(60))) == 3


def test_the_first_error_is_told_and_the_others_may_still_answer(parties: Callable[..., list]) -> None:
    channels = parties(echo, fail, echo)
    with pytest.raises(ServiceEndedError, match="bob: it is over"):
        ask_each(channels, asks(10), Pong, Deadline.after(60))
    # Nothing is outstanding, so everyone can be asked again.
    with pytest.raises(ServiceEndedError):
        ask_each(channels, asks(10), Pong, Deadline.after(60))


def test_who_is_silent_after_an_error_is_given_up_and_closed(
    parties: Callable[..., list], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "GRACE_S", 1.0)
    go_on = threading.Event()

    def late(request: Call) -> Reply:
        go_on.wait(60)
        return Reply(Pong(request.message.number))

    channels = parties(late, fail, echo)
    began = time.monotonic()
    with pytest.raises(ServiceEndedError, match="bob"):
        ask_each(channels, asks(10), Pong, Deadline.after(60))
    assert time.monotonic() - began < 30
    go_on.set()
    # The late answer can never be taken for the answer to another question.
    with pytest.raises(PeerLostError, match="alice"):
        ask_each(channels, asks(10), Pong, Deadline.after(60))


def test_the_deadline_names_who_is_silent(parties: Callable[..., list]) -> None:
    go_on = threading.Event()

    def late(request: Call) -> Reply:
        go_on.wait(60)
        raise DataError("too late")

    channels = parties(echo, late, echo)
    with pytest.raises(DeadlineError, match="bob"):
        ask_each(channels, asks(10), Pong, Deadline.after(0.2))
    go_on.set()


def test_a_party_that_is_gone_is_named(parties: Callable[..., list]) -> None:
    channels = parties(echo, echo, echo)
    channels[2].interrupt()
    with pytest.raises(FedsecError, match="carol"):
        ask_each(channels, asks(10), Pong, Deadline.after(60))
