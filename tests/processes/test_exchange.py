"""Large messages in a ring of three, over the smallest socket buffers there are."""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsec.cluster.certificates import Authority
from fedsec.errors import DeadlineError, PeerLostError, ProtocolError
from fedsec.transport import Deadline, Endpoint, Identity, Role, SocketChannel, exchange
from fedsec.transport.tls import open_client, open_server

NAMES = ("party-0", "party-1", "party-2")
SMALL = 4096
Link = Callable[[int, int], tuple[SocketChannel, SocketChannel]]


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Identity]:
    folder: Path = tmp_path_factory.mktemp("keys")
    authority = Authority.create(folder / "authority")
    return {name: Identity.load(authority.issue(folder, name, Role.PARTY)) for name in NAMES}


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        one.connect(listener.getsockname())
        two, _ = listener.accept()
    return one, two


@pytest.fixture(params=["tls", "plain"])
def link(request: pytest.FixtureRequest, identities: dict[str, Identity]) -> Link:
    def plain(i: int, j: int) -> tuple[SocketChannel, SocketChannel]:
        one, two = _tcp_pair()
        a, b = identities[NAMES[i]], identities[NAMES[j]]
        return SocketChannel(one, a.name, b.peer), SocketChannel(two, b.name, a.peer)

    def tls(i: int, j: int) -> tuple[SocketChannel, SocketChannel]:
        one, two = _tcp_pair()
        a, b = identities[NAMES[i]], identities[NAMES[j]]
        accepted: list[SocketChannel] = []
        deadline = Deadline.after(30)
        thread = threading.Thread(target=lambda: accepted.append(open_server(two, b, deadline=deadline)))
        thread.start()
        endpoint = Endpoint(b.name, "nowhere", 1, b.public_key)
        channel = open_client(one, endpoint, a, deadline=deadline)
        thread.join()
        return channel, accepted[0]

    return tls if request.param == "tls" else plain


def _message(sender: int, receiver: int, size: int) -> bytes:
    return hashlib.shake_128(bytes([sender, receiver])).digest(size)


def test_ten_megabytes_go_round_in_all_directions_over_four_kilobyte_buffers(link: Link) -> None:
    size = 10_000_000
    ends: dict[tuple[int, int], SocketChannel] = {}
    for i, j in ((0, 1), (1, 2), (2, 0)):
        ends[i, j], ends[j, i] = link(i, j)
    failures: list[str] = []

    def party(me: int) -> None:
        others = [other for other in range(3) if other != me]
        sends = [(ends[me, other], "big/1", _message(me, other, size)) for other in others]
        receives = [(ends[me, other], "big/1", size) for other in others]
        try:
            got = exchange(sends, receives, Deadline.after(60))
            failures.extend(
                f"{other} to {me}"
                for other, payload in zip(others, got, strict=True)
                if payload != _message(other, me, size)
            )
        except BaseException as error:
            failures.append(f"party {me}: {error}")
            raise

    threads = [threading.Thread(target=party, args=(me,)) for me in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for (i, j), end in ends.items():
        assert end.transcript() == ends[j, i].transcript()
        end.close()


def test_several_messages_on_one_link_keep_their_order(link: Link) -> None:
    one, two = link(0, 1)
    with one, two:
        sends = [(one, f"x/{n}", bytes([n]) * (n * 3000)) for n in range(8)]
        receives = [(two, f"x/{n}", n * 3000) for n in range(8)]
        got = exchange(sends, receives, Deadline.after(30))
        assert [bytes(payload) for payload in got] == [payload for _, _, payload in sends]
        assert one.meter.by_label()["x"][0] == two.meter.by_label()["x"][2] == 8


def test_small_messages_one_after_the_other(link: Link) -> None:
    one, two = link(0, 1)
    with one, two:
        for n in range(50):
            one.send("x", n.to_bytes(2, "big"), Deadline.after(30))
            assert two.receive("x", max_bytes=2, deadline=Deadline.after(30)) == n.to_bytes(2, "big")
            two.send("y", b"", Deadline.after(30))
            assert one.receive("y", max_bytes=0, deadline=Deadline.after(30)) == b""


def test_threat_43_the_end_of_a_connection_names_the_peer(link: Link) -> None:
    one, two = link(0, 1)
    with one:
        two.close()
        with pytest.raises(PeerLostError, match="party-1 closed it"):
            one.receive("x", max_bytes=1, deadline=Deadline.after(30))


def test_threat_43_an_exchange_names_the_party_that_is_missing(link: Link) -> None:
    one, two = link(0, 1)
    three, four = link(0, 2)
    with one, two, three, four:
        two.send("x", b"1", Deadline.after(30))
        with pytest.raises(DeadlineError, match="party-2") as caught:
            exchange([], [(one, "x", 1), (three, "x", 1)], Deadline.after(1.0))
        assert "party-1" not in str(caught.value)


def test_threat_43_a_peer_that_does_not_read_is_named(link: Link) -> None:
    one, two = link(0, 1)
    with one, two:
        with pytest.raises(DeadlineError, match="party-1"):
            one.send("x", bytes(5_000_000), Deadline.after(0.3))
        # Half a message is out: the channel is good for nothing else.
        with pytest.raises(PeerLostError):
            one.send("x", b"1", Deadline.after(30))


def test_a_wait_that_got_no_byte_can_be_repeated(link: Link) -> None:
    one, two = link(0, 1)
    with one, two:
        for _ in range(2):
            with pytest.raises(DeadlineError, match="party-1"):
                one.receive("x", max_bytes=1, deadline=Deadline.after(0.02))
            with pytest.raises(DeadlineError, match="party-1"):
                one.wait(Deadline.after(0.02))
        two.send("x", b"1", Deadline.after(30))
        one.wait(Deadline.after(30))
        assert one.receive("x", max_bytes=1, deadline=Deadline.after(30)) == b"1"


def test_another_size_than_agreed_is_refused(link: Link) -> None:
    one, two = link(0, 1)
    with one, two:
        two.send("x", b"12", Deadline.after(30))
        with pytest.raises(ProtocolError, match="expected 3 bytes in 'x' of party-1, got 2"):
            exchange([], [(one, "x", 3)], Deadline.after(30))
        with pytest.raises(PeerLostError):
            exchange([(one, "x", b"1")], [], Deadline.after(30))


def test_an_interrupt_ends_a_wait_in_another_thread(link: Link) -> None:
    one, two = link(0, 1)
    with one, two:
        timer = threading.Timer(0.1, one.interrupt)
        timer.start()
        with pytest.raises(PeerLostError):
            one.receive("x", max_bytes=1, deadline=Deadline.after(30))
        timer.join()


def test_a_message_that_comes_in_pieces_is_put_together(link: Link) -> None:
    one, two = link(0, 1)
    with one, two:
        thread = threading.Thread(target=lambda: one.send("x", bytes(300_000), Deadline.after(30)))
        thread.start()
        assert exchange([], [(two, "x", 300_000)], Deadline.after(30)) == [bytes(300_000)]
        thread.join()


def test_what_tls_has_read_ahead_is_known_to_be_there(link: Link) -> None:
    one, two = link(0, 1)
    with one, two:
        one.send("x", bytes(100), Deadline.after(30))
        two.wait(Deadline.after(30))
        header = bytearray(10)
        two.read_into(memoryview(header))
        # Plain sockets keep the rest in the kernel, where a poll sees it.
        assert two.buffered() == isinstance(two._sock, ssl.SSLSocket)
        two.wait(Deadline.after(30))


def test_an_exchange_over_a_channel_with_half_a_message_sends_nothing(link: Link) -> None:
    one, two = link(0, 1)
    three, four = link(0, 2)
    with one, two, three, four:
        with pytest.raises(DeadlineError, match="party-1"):
            exchange([(one, "x", bytes(9_000_000)), (one, "y", b"1")], [], Deadline.after(0.3))
        with pytest.raises(PeerLostError):
            exchange([(three, "x", b"1"), (one, "x", b"1")], [], Deadline.after(30))
        with pytest.raises(DeadlineError, match="party-0"):
            four.receive("x", max_bytes=1, deadline=Deadline.after(0.05))
