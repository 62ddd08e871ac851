"""Waiting for several connections and a bell, over pairs of sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from fedsec.transport import Deadline, Peer, Role, SocketChannel, memory_mesh
from fedsec.transport.several import Bell, wait_any

Pair = tuple[SocketChannel, SocketChannel]


def _pair() -> Pair:
    peers = [Peer(name, Role.PARTY, name.encode(), name) for name in "ab"]
    one, other = socket.socketpair()
    return SocketChannel(one, "a", peers[1]), SocketChannel(other, "b", peers[0])


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    made = [_pair() for _ in range(3)]
    yield made
    for pair in made:
        for channel in pair:
            channel.close()


def test_the_channels_with_something_are_named(pairs: list[Pair]) -> None:
    here = [pair[0] for pair in pairs]
    assert wait_any(here, 0.0) == []
    pairs[2][1].send("x", b"1", Deadline.after(30))
    assert wait_any(here, 30.0) == [here[2]]
    pairs[0][1].close()
    assert set(wait_any(here, 30.0)) == {here[0], here[2]}
    assert here[2].receive("x", max_bytes=1, deadline=Deadline.after(30)) == b"1"
    here[1].close()
    assert here[1] in wait_any(here[1:], 30.0)


def test_time_ends_the_wait(pairs: list[Pair]) -> None:
    began = time.monotonic()
    assert wait_any([pairs[0][0]], 0.05, Bell()) == []
    assert 0.05 <= time.monotonic() - began < 30


def test_a_bell_that_rang_before_ends_one_wait_and_is_silent_then(pairs: list[Pair]) -> None:
    bell = Bell()
    for _ in range(100_000):
        bell.ring()
    assert wait_any([pairs[0][0]], 60.0, bell) == []
    began = time.monotonic()
    while wait_any([pairs[0][0]], 0.01, bell) == [] and time.monotonic() - began < 0.1:
        pass
    assert time.monotonic() - began >= 0.01


def test_a_bell_wakes_from_another_thread(pairs: list[Pair]) -> None:
    bell = Bell()
    ringer = threading.Timer(0.05, bell.ring)
    ringer.start()
    began = time.monotonic()
    assert wait_any([pairs[0][0]], 60.0, bell) == []
    assert time.monotonic() - began < 30
    ringer.join()


def test_a_channel_without_a_socket_is_refused() -> None:
    with pytest.raises(TypeError, match="over a socket"):
        wait_any([memory_mesh(["a", "b"])["a", "b"]], 0.0)
