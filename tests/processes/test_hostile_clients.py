"""Clients that are slow, greedy or send garbage cost their own connection and nothing else."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from fedsec.cluster.certificates import Authority
from fedsec.errors import PeerLostError, ProtocolError, TrustError
from fedsec.transport import (
    Call,
    Deadline,
    Endpoint,
    Identity,
    Limits,
    Peer,
    Reply,
    Role,
    Route,
    Server,
    SocketChannel,
    call,
    connect,
)
from fedsec.transport.bodies import MESSAGE_BYTES, UNASKED_BYTES
from fedsec.transport.frames import step_tag


class Ask(msgspec.Struct, tag="ask"):
    number: int


class Fill(msgspec.Struct, tag="fill"):
    size: int


class Told(msgspec.Struct, tag="told"):
    number: int


Start = Callable[[Limits], Server]


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Identity]:
    folder: Path = tmp_path_factory.mktemp("keys")
    authority = Authority.create(folder / "authority")
    roles = {"party-0": Role.PARTY, "user": Role.USER, "hospital-00": Role.HOSPITAL}
    return {name: Identity.load(authority.issue(folder, name, role)) for name, role in roles.items()}


@pytest.fixture
def start(identities: dict[str, Identity]) -> Iterator[Start]:
    servers: list[Server] = []

    def echo(request: Call) -> Reply:
        return Reply(Told(request.message.number), request.body.read())

    def fill(request: Call) -> Reply:
        return Reply(Told(request.message.size), bytes(request.message.size))

    def begin(limits: Limits) -> Server:
        routes = [
            Route(Ask, frozenset({Role.USER, Role.HOSPITAL}), echo, max_body_bytes=10**9),
            Route(Fill, frozenset({Role.USER}), fill),
        ]
        servers.append(Server(("127.0.0.1", 0), identities["party-0"], routes, limits=limits))
        servers[-1].start()
        return servers[-1]

    yield begin
    for server in servers:
        server.stop()
    # One that has just said that it ends may be at its last steps.
    ended = _soon()
    while left := [thread for thread in threading.enumerate() if thread.name in ("accept", "connection")]:
        assert not ended.passed, left
        time.sleep(0.01)


def _soon() -> Deadline:
    return Deadline.after(30.0)


def _raw(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def _connect(server: Server, identities: dict[str, Identity], who: str = "user") -> SocketChannel:
    party = identities["party-0"]
    endpoint = Endpoint(party.name, "127.0.0.1", server.port, party.public_key)
    return connect(endpoint, identities[who], deadline=_soon())


def _works(server: Server, identities: dict[str, Identity]) -> None:
    """Ask as an honest user does, who tries again: on a slow machine the short times here cut it off, too."""
    given_up = _soon()
    while True:
        try:
            with _connect(server, identities) as channel:
                assert call(channel, Ask(4), Told, deadline=_soon())[0] == Told(4)
                return
        except PeerLostError:
            assert not given_up.passed, "the server does not work any more"


def _tls(server: Server, identities: dict[str, Identity]) -> ssl.SSLSocket:
    """Return a connection of the right user that speaks TLS and nothing of ours."""
    return identities["user"].client_context.wrap_socket(_raw(server))


def _header(label: str, size: int, who: str = "user", sequence: int = 1) -> bytes:
    """Return the header of a request's frame, which may lie about its length."""
    return struct.pack(">2sBBIQ8s", b"FS", 1, 0, size, sequence, step_tag(b"", label, who, "party-0"))


def _announce_frame(channel: SocketChannel, label: str, size: int, who: str = "user") -> None:
    channel._sock.send(_header(label, size, who))


def _drip(channel: SocketChannel, data: bytes, most_s: float) -> None:
    """Send a byte at a time until the server ends the connection."""
    began = time.monotonic()
    with contextlib.suppress(OSError):
        for byte in data:
            channel._sock.send(bytes([byte]))
            time.sleep(0.05)
            if time.monotonic() - began > most_s:
                break


def _ends(sock: socket.socket, within_s: float) -> bool:
    """Return whether the server ends the connection in time."""
    sock.settimeout(within_s)
    try:
        while sock.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes(5000), b"\x16\x03\x01\xff\xff" + bytes(4000), b"\x80"],
    ids=["http", "zeros", "broken_tls", "one_byte"],
)
def test_threat_37_garbage_before_tls(start: Start, identities: dict[str, Identity], garbage: bytes) -> None:
    server = start(Limits(handshake_s=0.5))
    with _raw(server) as sock:
        sock.sendall(garbage)
        assert _ends(sock, 30)
    _works(server, identities)


@pytest.mark.parametrize("size", [1, 24, 25, 5000])
def test_threat_37_garbage_inside_tls(start: Start, identities: dict[str, Identity], size: int) -> None:
    server = start(Limits(handshake_s=0.5))
    with _tls(server, identities) as sock:
        sock.sendall(b"\x5a" * size)
        assert _ends(sock, 30)
    _works(server, identities)


@pytest.mark.parametrize("size", [0, 1, 2, 8, 9, 100, 5000])
def test_threat_38_random_requests_in_good_frames(
    start: Start, identities: dict[str, Identity], size: int
) -> None:
    server = start(Limits(request_s=0.5))
    with _connect(server, identities) as channel:
        channel.send("ask/request", os.urandom(size), _soon())
        with contextlib.suppress(PeerLostError, ProtocolError):
            channel.receive_any(("ask/reply", "ask/go"), max_bytes=5000, deadline=Deadline.after(1))
    _works(server, identities)


def test_threat_37_a_byte_a_second_is_cut_off_by_the_time_for_the_whole(
    start: Start, identities: dict[str, Identity]
) -> None:
    server = start(Limits(handshake_s=0.6, request_s=0.6))
    began = time.monotonic()
    with _raw(server) as sock:
        # A valid start of a TLS hello, dripped: every byte comes in time, the whole does not.
        hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)
        with contextlib.suppress(OSError):
            for byte in hello:
                sock.sendall(bytes([byte]))
                time.sleep(0.05)
                if time.monotonic() - began > 20:
                    break
    assert time.monotonic() - began < 15
    with _connect(server, identities) as channel:
        began = time.monotonic()
        _drip(channel, _header("ask/request", 400) + bytes(400), 20)
        assert time.monotonic() - began < 15
    _works(server, identities)


def test_threat_37_four_gigabytes_in_a_header_are_refused_before_they_have_memory(
    start: Start, identities: dict[str, Identity]
) -> None:
    server = start(Limits(request_s=1))
    with _connect(server, identities) as channel:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        _announce_frame(channel, "ask/request", 2**32 - 1)
        with pytest.raises(PeerLostError):
            channel.receive("ask/reply", max_bytes=100, deadline=_soon())
    # In KiB on Linux, in bytes elsewhere: either way far below four gigabytes.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
    _works(server, identities)


@pytest.mark.parametrize(("who", "inside"), [("user", UNASKED_BYTES), ("hospital-00", 2 * UNASKED_BYTES)])
def test_threat_37_a_frame_may_be_as_long_as_a_body_inside_of_it_and_no_longer(
    start: Start, identities: dict[str, Identity], who: str, inside: int
) -> None:
    """Of users and hospitals, who are many: each of their connections may hold one that never ends."""
    server = start(Limits(request_s=60))
    with _connect(server, identities, who) as channel:
        body = bytes(UNASKED_BYTES)
        assert call(channel, Ask(1), Told, body=body, deadline=_soon(), max_body_bytes=len(body))[1] == body
    for size in (inside + 8192, MESSAGE_BYTES):
        with _connect(server, identities, who) as channel:
            _announce_frame(channel, "ask/request", size, who)
            began = time.monotonic()
            with pytest.raises(PeerLostError, match="closed it"):
                channel.receive("ask/reply", max_bytes=100, deadline=_soon())
            assert time.monotonic() - began < 30
    _works(server, identities)


def test_threat_37_a_huge_body_that_never_comes_takes_no_memory(
    start: Start, identities: dict[str, Identity]
) -> None:
    server = start(Limits(request_s=0.5))
    with _connect(server, identities) as channel:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        channel.send("ask/request", struct.pack(">Q", 10**9) + msgspec.msgpack.encode(Ask(1)), _soon())
        channel.receive("ask/go", max_bytes=0, deadline=_soon())
        with pytest.raises(PeerLostError):
            channel.receive("ask/reply", max_bytes=100, deadline=_soon())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
    _works(server, identities)


def test_threat_37_a_body_a_byte_a_second_is_cut_off_by_the_time_for_the_request(
    start: Start, identities: dict[str, Identity]
) -> None:
    server = start(Limits(request_s=0.6))
    with _connect(server, identities) as channel:
        channel.send("ask/request", struct.pack(">Q", 10**6) + msgspec.msgpack.encode(Ask(1)), _soon())
        channel.receive("ask/go", max_bytes=0, deadline=_soon())
        began = time.monotonic()
        _drip(channel, _header("ask/body", 1000, sequence=2) + bytes(1000), 20)
        assert time.monotonic() - began < 15
    _works(server, identities)


def test_threat_37_whoever_does_not_read_its_answer_is_cut_off(
    start: Start, identities: dict[str, Identity]
) -> None:
    server = start(Limits(request_s=0.5))
    with _connect(server, identities) as channel:
        # More than the sockets of both ends take.
        channel.send("fill/request", bytes(8) + msgspec.msgpack.encode(Fill(50_000_000)), _soon())
        ended = _soon()
        while any(thread.name == "connection" for thread in threading.enumerate()):
            assert not ended.passed, "the server still waits for somebody to read its answer"
            time.sleep(0.02)
    _works(server, identities)


@pytest.mark.parametrize("stage", ["nothing", "half a TLS hello", "TLS and no hello", "half a hello"])
def test_threat_37_a_handshake_that_stops_anywhere_ends_in_its_time(
    start: Start, identities: dict[str, Identity], stage: str
) -> None:
    server = start(Limits(handshake_s=0.4))
    with contextlib.ExitStack() as stack:
        if stage in ("nothing", "half a TLS hello"):
            sock = stack.enter_context(_raw(server))
            sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" if stage != "nothing" else b"")
        else:
            sock = stack.enter_context(_tls(server, identities))
            sock.sendall(_header("hello", 100, sequence=0) + bytes(20) if stage == "half a hello" else b"")
        assert _ends(sock, 30)
    _works(server, identities)


def test_threat_37_silent_connections_do_not_keep_others_out(
    start: Start, identities: dict[str, Identity]
) -> None:
    server = start(Limits(max_handshakes=4, handshake_s=30, crowded_s=0.2))
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(_raw(server))
        threads = [thread for thread in threading.enumerate() if thread.name == "connection"]
        assert len(threads) <= 4
        _works(server, identities)


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        (Limits(max_each=2), "2 connections under this certificate"),
        (Limits(max_users=2), "2 connections of users"),
    ],
)
def test_threat_37_one_user_cannot_take_every_connection(
    start: Start, identities: dict[str, Identity], limits: Limits, told: str
) -> None:
    server = start(limits)
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(_connect(server, identities))
        with pytest.raises(PeerLostError, match=told):
            _connect(server, identities)
        stack.enter_context(_connect(server, identities, "hospital-00"))


def test_threat_37_places_are_kept_for_parties_server_and_owner(
    start: Start, identities: dict[str, Identity]
) -> None:
    server = start(Limits(max_connections=1, reserved=1))
    with _connect(server, identities), _connect(server, identities, "party-0"):
        for who in ("hospital-00", "party-0"):
            with pytest.raises(PeerLostError, match="try later"):
                _connect(server, identities, who)


def test_threat_38_a_hello_that_is_no_text_is_refused_like_other_garbage(
    start: Start, identities: dict[str, Identity], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    server = start(Limits(handshake_s=2))
    with _tls(server, identities) as sock:
        payload = bytes.fromhex("81ab") + bytes(10) + b"\x80"
        tag = step_tag(b"", "hello", "user", "party-0")
        sock.sendall(struct.pack(">2sBBIQ8s", b"FS", 1, 0, len(payload), 0, tag) + payload)
        assert _ends(sock, 30)
    assert "a connection was refused: expected a hello" in caplog.text
    assert "a handshake failed" not in caplog.text


def test_threat_37_a_message_with_a_key_that_is_no_text_costs_one_error(
    start: Start, identities: dict[str, Identity]
) -> None:
    server = start(Limits(request_s=2))
    with _connect(server, identities) as channel:
        channel.send("ask/request", bytes(8) + bytes.fromhex("81ab") + bytes(10) + b"\x80", _soon())
        with contextlib.suppress(PeerLostError):
            channel.receive("ask/reply", max_bytes=1000, deadline=_soon())
    _works(server, identities)


def test_threat_37_connections_are_bounded_and_the_next_one_is_told(
    start: Start, identities: dict[str, Identity]
) -> None:
    server = start(Limits(max_connections=3))
    with contextlib.ExitStack() as stack:
        channels = [stack.enter_context(_connect(server, identities)) for _ in range(3)]
        for channel in channels:
            call(channel, Ask(1), Told, deadline=_soon())
        with pytest.raises(PeerLostError, match="has 3 connections; try later"):
            _connect(server, identities)
        channels[0].close()
        deadline = _soon()
        while not deadline.passed:
            with contextlib.suppress(PeerLostError):
                _works(server, identities)
                break
        else:
            pytest.fail("a free place was not given to the next one")
        for channel in channels[1:]:
            assert call(channel, Ask(2), Told, deadline=_soon())[0] == Told(2)


def test_an_idle_connection_is_closed_in_the_end(start: Start, identities: dict[str, Identity]) -> None:
    server = start(Limits(idle_s=0.1))
    with _connect(server, identities) as channel, pytest.raises(PeerLostError, match="party-0"):
        channel.receive("ask/reply", max_bytes=1, deadline=_soon())


def test_a_handshake_from_many_at_once_succeeds(start: Start, identities: dict[str, Identity]) -> None:
    server = start(Limits(max_handshakes=4, handshake_s=30, crowded_s=30))
    failures: list[BaseException] = []

    def one() -> None:
        try:
            _works(server, identities)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=one) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_other_bytes_are_no_certificate() -> None:
    with pytest.raises(TrustError, match="got other bytes"):
        Peer.from_certificate(b"not a certificate")
