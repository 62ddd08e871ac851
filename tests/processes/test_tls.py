"""Facts of mutual TLS over real sockets: who may connect to whom, and what a refused one gets."""

from __future__ import annotations

import datetime
import gc
import queue
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from fedsec.cluster.certificates import Authority
from fedsec.errors import DeadlineError, PeerLostError, ProtocolError, TrustError
from fedsec.transport import (
    Call,
    Channel,
    ClusterFile,
    Deadline,
    Endpoint,
    Identity,
    Limits,
    Reply,
    Role,
    Route,
    Server,
    call,
    connect,
)
from fedsec.transport.tls import open_client, open_server

NAMES = {
    "party-0": Role.PARTY,
    "party-1": Role.PARTY,
    "party-2": Role.PARTY,
    "hospital-00": Role.HOSPITAL,
    "stranger": Role.HOSPITAL,
    "server": Role.SERVER,
    "owner": Role.OWNER,
    "user": Role.USER,
}


class Ask(msgspec.Struct, tag="ask"):
    number: int


class Told(msgspec.Struct, tag="told"):
    number: int


class Take(msgspec.Struct, tag="take"):
    pass


@dataclass(frozen=True)
class Keyring:
    authority: Authority
    folder: Path
    identities: dict[str, Identity]

    def __getitem__(self, name: str) -> Identity:
        return self.identities[name]


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    folder = tmp_path_factory.mktemp("keys")
    authority = Authority.create(folder / "authority")
    identities = {name: Identity.load(authority.issue(folder, name, role)) for name, role in NAMES.items()}
    return Keyring(authority, folder, identities)


def _soon() -> Deadline:
    return Deadline.after(30.0)


def _endpoint(server: Server, identity: Identity) -> Endpoint:
    return Endpoint(identity.name, "127.0.0.1", server.port, identity.public_key)


Start = Callable[..., Server]


@pytest.fixture
def start(keyring: Keyring) -> Iterator[Start]:
    servers: list[Server] = []

    def begin(*routes: Route, **options: object) -> Server:
        cluster = ClusterFile(
            keyring.authority.certificate_pem,
            tuple(
                Endpoint(name, "127.0.0.1", 1, keyring[name].public_key)
                for name in ("party-0", "party-1", "party-2")
            ),
            server=keyring["server"].public_key,
            owner=keyring["owner"].public_key,
            hospitals={"hospital-00": keyring["hospital-00"].public_key},
        )
        settings = {
            "admit": cluster.admit,
            "limits": Limits(handshake_s=30, idle_s=60, request_s=30),
            **options,
        }
        server = Server(("127.0.0.1", 0), keyring["party-0"], routes, **settings)  # type: ignore[arg-type]
        server.start()
        servers.append(server)
        return server

    yield begin
    for server in servers:
        server.stop()
    # One that has just said that it ends may be at its last steps.
    ended = _soon()
    while left := [thread for thread in threading.enumerate() if thread.name in ("accept", "connection")]:
        assert not ended.passed, left
        time.sleep(0.01)


def _echo(request: Call) -> Reply:
    return Reply(Told(request.message.number), request.body.read())


ECHO = Route(Ask, frozenset(Role), _echo, max_body_bytes=10**7)


def test_both_ends_know_each_other_from_certificates(keyring: Keyring, start: Start) -> None:
    seen = []

    def look(request: Call) -> Reply:
        seen.append(request.peer)
        return Reply(Told(0))

    server = start(Route(Ask, frozenset(Role), look))
    with connect(_endpoint(server, keyring["party-0"]), keyring["hospital-00"], deadline=_soon()) as channel:
        call(channel, Ask(1), Told, deadline=_soon())
        assert channel.peer == keyring["party-0"].peer
    assert seen == [keyring["hospital-00"].peer]


def test_ten_megabytes_there_and_back(keyring: Keyring, start: Start) -> None:
    server = start(ECHO)
    body = bytes(range(256)) * 40000
    with connect(_endpoint(server, keyring["party-0"]), keyring["user"], deadline=_soon()) as channel:
        told, back = call(
            channel, Ask(3), Told, body=memoryview(body)[: 10**7], deadline=_soon(), max_body_bytes=10**7
        )
    assert told == Told(3)
    assert back == body[: 10**7]
    assert server.meter.by_peer()["user"][3] >= 10**7


def test_threat_39_a_client_of_another_authority_is_told_so(
    keyring: Keyring, start: Start, tmp_path: Path
) -> None:
    # The foreign client trusts our authority, so that its own certificate is all that is wrong.
    foreign = Authority.create(tmp_path / "foreign")
    path = foreign.issue(tmp_path, "hospital-00", Role.HOSPITAL)
    stranger = Identity.load(path)
    stranger.authority = keyring.authority.certificate_pem
    server = start(ECHO)
    with pytest.raises(TrustError, match="party-0 to accept our certificate; it refused"):
        connect(_endpoint(server, keyring["party-0"]), stranger, deadline=_soon())


def test_threat_39_a_client_refuses_a_party_of_another_authority(
    keyring: Keyring, start: Start, tmp_path: Path
) -> None:
    foreign = Authority.create(tmp_path / "foreign")
    stranger = Identity.load(foreign.issue(tmp_path, "hospital-00", Role.HOSPITAL))
    server = start(ECHO)
    with pytest.raises(TrustError, match="certificate of party-0 by our authority"):
        connect(_endpoint(server, keyring["party-0"]), stranger, deadline=_soon())


@pytest.mark.parametrize("who", ["client", "party"])
@pytest.mark.parametrize("days", [-900, 10], ids=["expired", "not_yet_valid"])
def test_threat_39_a_certificate_outside_its_time_is_refused(
    keyring: Keyring, start: Start, tmp_path: Path, who: str, days: int
) -> None:
    then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    if who == "client":
        path = keyring.authority.issue(tmp_path, "hospital-00", Role.HOSPITAL, now=then)
        server = start(ECHO)
        with pytest.raises(TrustError, match=r"refused: .*CERTIFICATE"):
            connect(_endpoint(server, keyring["party-0"]), Identity.load(path), deadline=_soon())
        return
    late = Identity.load(keyring.authority.issue(tmp_path, "party-0", Role.PARTY, now=then))
    with (
        Server(("127.0.0.1", 0), late, [ECHO]) as server,
        pytest.raises(TrustError, match=r"valid today: certificate (has expired|is not yet valid)"),
    ):
        connect(_endpoint(server, late), keyring["hospital-00"], deadline=_soon())


@pytest.mark.parametrize("name", ["hospital-00", "server", "owner", "user"])
def test_threat_39_a_client_certificate_cannot_play_a_party(keyring: Keyring, name: str) -> None:
    with (
        Server(("127.0.0.1", 0), keyring[name], [ECHO]) as server,
        pytest.raises(TrustError, match="certificate of"),
    ):
        connect(_endpoint(server, keyring[name]), keyring["party-1"], deadline=_soon())


def test_threat_28_another_key_under_the_right_name_gets_nothing(
    keyring: Keyring, start: Start, tmp_path: Path
) -> None:
    other = Identity.load(keyring.authority.issue(tmp_path, "party-0", Role.PARTY))
    server = start(ECHO)
    pinned = Endpoint("party-0", "127.0.0.1", server.port, other.public_key)
    with pytest.raises(TrustError, match="with the key"):
        connect(pinned, keyring["hospital-00"], deadline=_soon())
    assert server.meter.received_bytes == 0


def test_another_party_at_the_address_gets_nothing(keyring: Keyring, start: Start) -> None:
    server = start(ECHO)
    with pytest.raises(TrustError, match=r"expected party party-1 at .* got party party-0"):
        connect(
            Endpoint("party-1", "127.0.0.1", server.port, keyring["party-1"].public_key),
            keyring["hospital-00"],
            deadline=_soon(),
        )
    with pytest.raises(TrustError, match="expected server party-0"):
        connect(
            _endpoint(server, keyring["party-0"]),
            keyring["hospital-00"],
            deadline=_soon(),
            expected_role=Role.SERVER,
        )
    assert server.meter.received_bytes == 0


def test_threat_19_who_is_not_in_the_cluster_file_is_told_so(keyring: Keyring, start: Start) -> None:
    server = start(ECHO)
    with pytest.raises(TrustError, match=r"party-0 refused the connection: .* no hospital 'stranger'"):
        connect(_endpoint(server, keyring["party-0"]), keyring["stranger"], deadline=_soon())


def test_threat_40_every_route_refuses_every_other_role(keyring: Keyring, start: Start) -> None:
    class ForServer(msgspec.Struct, tag="for_server"):
        pass

    class ForOwner(msgspec.Struct, tag="for_owner"):
        pass

    class ForTwo(msgspec.Struct, tag="for_two"):
        pass

    def answer(_request: Call) -> Reply:
        return Reply(Told(1))

    server = start(
        Route(ForServer, frozenset({Role.SERVER}), answer),
        Route(ForOwner, frozenset({Role.OWNER}), answer),
        Route(ForTwo, frozenset({Role.PARTY, Role.HOSPITAL}), answer),
    )
    endpoint = _endpoint(server, keyring["party-0"])
    for name in ("party-1", "hospital-00", "server", "owner", "user"):
        with connect(endpoint, keyring[name], deadline=_soon()) as channel:
            for route in server.routes:
                if NAMES[name] in route.roles:
                    assert call(channel, route.message(), Told, deadline=_soon())[0] == Told(1)
                else:
                    with pytest.raises(TrustError, match=f"not for {NAMES[name]}"):
                        call(channel, route.message(), Told, deadline=_soon())


def test_threat_39_no_certificate_at_all_is_refused(keyring: Keyring, start: Start) -> None:
    server = start(ECHO)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=keyring.authority.certificate_pem)
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock,
        context.wrap_socket(sock) as wrapped,
        pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"),
    ):
        wrapped.recv(1)


def test_older_tls_is_refused(keyring: Keyring, start: Start) -> None:
    server = start(ECHO)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=keyring.authority.certificate_pem)
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock,
        pytest.raises(ssl.SSLError, match=r"(?i)protocol"),
    ):
        context.wrap_socket(sock)


def test_a_client_sends_nothing_to_a_party_that_does_not_greet(keyring: Keyring) -> None:
    ours, theirs = socket.socketpair()
    endpoint = Endpoint("party-0", "nowhere", 1, keyring["party-0"].public_key)
    theirs.settimeout(30)
    seen: list[int] = []

    def silent() -> None:
        with keyring["party-0"].server_context.wrap_socket(theirs, server_side=True) as wrapped:
            wrapped.settimeout(0.3)
            with pytest.raises(TimeoutError):
                seen.append(len(wrapped.recv(1)))

    thread = threading.Thread(target=silent)
    thread.start()
    with pytest.raises((DeadlineError, PeerLostError)):
        open_client(ours, endpoint, keyring["hospital-00"], deadline=_soon())
    thread.join()
    assert seen == []


def test_sessions_and_transcripts_are_shared_by_both_ends(keyring: Keyring, start: Start) -> None:
    taken: queue.SimpleQueue[Channel] = queue.SimpleQueue()

    def take(request: Call) -> None:
        taken.put(request.detach(Told(0)))

    server = start(Route(Take, frozenset({Role.PARTY}), take))
    endpoint = _endpoint(server, keyring["party-0"])
    digests = set()
    for _ in range(2):
        channel = connect(endpoint, keyring["party-1"], deadline=_soon(), session=b"session 7")
        call(channel, Take(), Told, deadline=_soon())
        with channel, taken.get(timeout=30) as other:
            assert other.session == channel.session == b"session 7"
            channel.send("mpc/1", b"12", _soon())
            other.receive("mpc/1", max_bytes=2, deadline=_soon())
            assert other.transcript() == channel.transcript()
            digests.add(channel.transcript())
    # The nonces in the hellos make every connection another one.
    assert len(digests) == 2


def test_ends_in_different_sessions_refuse_each_other(keyring: Keyring) -> None:
    ours, theirs = socket.socketpair()
    endpoint = Endpoint("party-0", "nowhere", 1, keyring["party-0"].public_key)
    accepted: list[Channel] = []

    def accept() -> None:
        accepted.append(open_server(theirs, keyring["party-0"], deadline=_soon()))

    thread = threading.Thread(target=accept)
    thread.start()
    channel = open_client(ours, endpoint, keyring["party-1"], deadline=_soon(), session=b"one")
    thread.join()
    with channel, accepted[0] as other:
        other.session = b"two"
        channel.send("x", b"1", _soon())
        with pytest.raises(ProtocolError, match="another step or session"):
            other.receive("x", max_bytes=1, deadline=_soon())
        with pytest.raises(PeerLostError):
            other.receive("x", max_bytes=1, deadline=_soon())


def test_too_long_a_session_is_refused(keyring: Keyring, start: Start) -> None:
    server = start(ECHO)
    channel = connect(
        _endpoint(server, keyring["party-0"]), keyring["user"], deadline=_soon(), session=b"x" * 65
    )
    with channel, pytest.raises(PeerLostError, match="party-0"):
        call(channel, Ask(1), Told, deadline=_soon())


def test_nobody_at_the_address_is_a_lost_peer_with_name_and_address(keyring: Keyring) -> None:
    with socket.socket() as held:
        # Bound, so that nobody else gets the port, and not listening.
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        endpoint = Endpoint("party-0", "127.0.0.1", port, keyring["party-0"].public_key)
        with pytest.raises(PeerLostError, match=f"party-0 to accept connections at 127.0.0.1:{port}"):
            connect(endpoint, keyring["user"], deadline=_soon())


@pytest.mark.parametrize("server_side", [False, True])
def test_threat_43_a_peer_that_is_gone_before_the_handshake_is_a_lost_peer(
    keyring: Keyring, server_side: bool
) -> None:
    """A party that was killed a moment after it had accepted: its kernel resets the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    endpoint = Endpoint("party-0", "nowhere", 1, keyring["party-0"].public_key)
    with pytest.raises(PeerLostError, match="a connecting peer" if server_side else "party-0"):
        _ = (
            open_server(near, keyring["party-0"], deadline=_soon())
            if server_side
            else open_client(near, endpoint, keyring["user"], deadline=_soon())
        )
    # Nothing is left open: a socket that was would warn here, and a warning is an error.
    gc.collect()


def test_threat_43_a_party_that_accepts_and_says_nothing_is_named(keyring: Keyring) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        endpoint = Endpoint("party-0", "127.0.0.1", mute.getsockname()[1], keyring["party-0"].public_key)
        with pytest.raises(DeadlineError, match="party-0"):
            connect(endpoint, keyring["user"], deadline=Deadline.after(0.2))


def test_stopping_wakes_a_handler_that_waits_on_a_detached_channel(keyring: Keyring, start: Start) -> None:
    ended = threading.Event()

    def take(request: Call) -> None:
        with request.detach(Told(0)) as channel:
            try:
                channel.receive("never", max_bytes=1, deadline=Deadline.after(60))
            except PeerLostError:
                ended.set()

    server = start(Route(Take, frozenset({Role.PARTY}), take))
    with connect(_endpoint(server, keyring["party-0"]), keyring["party-1"], deadline=_soon()) as channel:
        call(channel, Take(), Told, deadline=_soon())
        server.stop()
        assert ended.wait(30)


def test_after_stop_the_port_is_free_and_clients_see_the_end(keyring: Keyring, start: Start) -> None:
    server = start(ECHO)
    endpoint = _endpoint(server, keyring["party-0"])
    with connect(endpoint, keyring["user"], deadline=_soon()) as channel:
        call(channel, Ask(1), Told, deadline=_soon())
        server.stop()
        with pytest.raises(PeerLostError, match="party-0"):
            call(channel, Ask(1), Told, deadline=_soon())
    with pytest.raises(PeerLostError):
        connect(endpoint, keyring["user"], deadline=_soon())
