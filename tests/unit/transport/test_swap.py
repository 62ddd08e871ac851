"""A swap of two ends: messages, counts and transcript as of a send and a receive, whatever the sizes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from fedsec.errors import DeadlineError, PeerLostError, ProtocolError
from fedsec.transport import Channel, Deadline, Peer, Role, SocketChannel, memory_mesh

Pair = tuple[Channel, Channel]


def _over_sockets() -> Pair:
    peers = [Peer(name, Role.PARTY, name.encode(), name) for name in "ab"]
    one, other = socket.socketpair()
    return SocketChannel(one, "a", peers[1]), SocketChannel(other, "b", peers[0])


def _in_memory() -> Pair:
    mesh = memory_mesh(["a", "b"])
    return mesh["a", "b"], mesh["b", "a"]


@pytest.fixture(params=[_over_sockets, _in_memory])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = request.param()
    yield made
    for channel in made:
        channel.close()


def _soon() -> Deadline:
    return Deadline.after(30)


def _together(*works: Callable[[], object]) -> list[object]:
    results: list[object] = [None] * len(works)

    def run(place: int, work: Callable[[], object]) -> None:
        try:
            results[place] = work()
        except Exception as error:
            results[place] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def _words(count: int, first: int) -> memoryview:
    return np.arange(first, first + count, dtype=np.uint64).data


@pytest.mark.parametrize("count", [0, 1, 2045, 8000, 500_000])
def test_each_end_gets_the_others_message(pair: Pair, count: int) -> None:
    one, other = pair
    for turn in range(3):
        mine, theirs = _words(count, turn), _words(count, 100 + turn)
        got = _together(
            lambda mine=mine, turn=turn: bytes(one.swap(f"x/{turn}", mine, _soon())),
            lambda theirs=theirs, turn=turn: bytes(other.swap(f"x/{turn}", theirs, _soon())),
        )
        assert got == [bytes(theirs), bytes(mine)]
    assert one.transcript() == other.transcript()
    assert one.meter.by_label() == other.meter.by_label() == {"x": (3, 24 * count, 3, 24 * count)}


def test_a_message_right_behind_it_is_the_next_one(pair: Pair) -> None:
    one, other = pair
    other.send("x", _words(10, 0), _soon())
    other.send("y", b"more", _soon())
    assert bytes(one.swap("x", _words(10, 5), _soon())) == bytes(_words(10, 0))
    assert one.receive("y", max_bytes=4, deadline=_soon()) == b"more"
    assert bytes(other.receive("x", max_bytes=80, deadline=_soon())) == bytes(_words(10, 5))
    assert one.transcript() == other.transcript()


@pytest.mark.parametrize(("label", "count"), [("y", 10), ("x", 9), ("x", 11)])
def test_another_message_is_refused(pair: Pair, label: str, count: int) -> None:
    one, other = pair
    other.send(label, _words(count, 0), _soon())
    with pytest.raises(ProtocolError):
        one.swap("x", _words(10, 5), _soon())


def test_a_peer_that_is_silent_or_gone_is_named(pair: Pair) -> None:
    one, other = pair
    for _ in range(5):  # more in vain than anyone looks for at once
        with pytest.raises(DeadlineError, match="b"):
            one.swap("x", _words(1, 0), Deadline.after(0.01))
    other.close()
    with pytest.raises(PeerLostError, match="b"):
        one.swap("x", _words(1, 0), _soon())


def test_a_late_peer_is_waited_for_again_and_again() -> None:
    one, other = _over_sockets()
    for turn in range(25):
        timer = threading.Timer(0.002, other.swap, ("x", _words(3, turn), _soon()))
        timer.start()
        assert bytes(one.swap("x", _words(3, 7), _soon())) == bytes(_words(3, turn))
        timer.join()
    for channel in (one, other):
        channel.close()
