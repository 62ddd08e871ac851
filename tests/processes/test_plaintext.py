"""The switch for measuring without TLS: both ends need it, the handshake stays, and it says so loudly."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedsec.cluster.certificates import Authority
from fedsec.errors import PeerLostError, TrustError, UsageError
from fedsec.transport import ClusterFile, Deadline, Endpoint, Identity, Role, SocketChannel, exchange
from fedsec.transport.tls import open_client, open_server

SECRET = b"nobody may read this on the wire"


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Identity, Identity]:
    folder: Path = tmp_path_factory.mktemp("keys")
    authority = Authority.create(folder / "authority")
    one, two = (Identity.load(authority.issue(folder, name, Role.PARTY)) for name in ("party-0", "party-1"))
    return one, two


class Tap:
    """Passes bytes on between two sockets, and keeps those of one direction."""

    def __init__(self) -> None:
        self.seen = bytearray()
        (self.client, near), (far, self.server) = _loopback_pair(), _loopback_pair()
        for source, sink, keep in ((near, far, True), (far, near, False)):
            threading.Thread(target=self._pass_on, args=(source, sink, keep), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, keep: bool) -> None:
        while piece := source.recv(65536):
            if keep:
                self.seen += piece
            sink.sendall(piece)
        sink.close()


def _loopback_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        return one, listener.accept()[0]


def _open(
    ends: tuple[socket.socket, socket.socket],
    identities: tuple[Identity, Identity],
    client: bool,
    server: bool,
) -> tuple[Callable[[], SocketChannel], Callable[[], SocketChannel]]:
    """Open both ends with the given settings; each returned call gives its channel or raises its error."""
    a, b = identities
    results: list[SocketChannel | Exception] = []

    def accept() -> None:
        try:
            results.append(open_server(ends[1], b, deadline=Deadline.after(30), insecure_plaintext=server))
        except Exception as error:
            results.append(error)

    def result() -> SocketChannel:
        thread.join()
        if isinstance(results[0], Exception):
            raise results[0]
        return results[0]

    thread = threading.Thread(target=accept)
    thread.start()
    endpoint = Endpoint(b.name, "127.0.0.1", 1, b.public_key, insecure_plaintext=client)
    return lambda: open_client(ends[0], endpoint, a, deadline=Deadline.after(30)), result


@pytest.mark.parametrize("plaintext", [True, False], ids=["plaintext", "tls"])
def test_only_the_switch_puts_a_message_on_the_wire_in_the_clear(
    identities: tuple[Identity, Identity], plaintext: bool, caplog: pytest.LogCaptureFixture
) -> None:
    tap = Tap()
    with caplog.at_level(logging.WARNING):
        connect, accepted = _open((tap.client, tap.server), identities, plaintext, plaintext)
        with connect() as one, accepted() as two:
            # Several times, and at once: neither end may lose a byte where TLS ends.
            for number in range(3):
                sends = [(one, f"x/{number}", SECRET), (two, f"y/{number}", SECRET)]
                receives = [(two, f"x/{number}", len(SECRET)), (one, f"y/{number}", len(SECRET))]
                assert exchange(sends, receives, Deadline.after(30)) == [SECRET, SECRET]
            assert two.peer.public_key == identities[0].public_key
    assert (SECRET in tap.seen) == plaintext
    assert caplog.text.count("INSECURE") == (2 if plaintext else 0)


@pytest.mark.parametrize("client", [True, False])
def test_one_end_alone_cannot_turn_tls_off(identities: tuple[Identity, Identity], client: bool) -> None:
    connect, accepted = _open(_loopback_pair(), identities, client, not client)
    with pytest.raises(TrustError, match="insecure_plaintext"):
        connect()
    with pytest.raises(PeerLostError):
        accepted()


def test_plaintext_is_refused_on_anything_but_loopback(identities: tuple[Identity, Identity]) -> None:
    # A socket that is not TCP over loopback at all.
    connect, accepted = _open(socket.socketpair(), identities, True, True)
    with pytest.raises(TrustError, match="measuring on one machine"):
        connect()
    with pytest.raises((TrustError, PeerLostError)):
        accepted()


def test_a_cluster_file_with_the_switch_names_loopback_addresses_only(tmp_path: Path) -> None:
    here = tuple(Endpoint(f"party-{i}", "127.0.0.1", i + 1, bytes([i]) * 32) for i in range(3))
    cluster = ClusterFile("pem", here, insecure_plaintext=True)
    assert all(party.insecure_plaintext for party in cluster.computing)
    cluster.save(tmp_path / "cluster.toml")
    assert ClusterFile.load(tmp_path / "cluster.toml") == cluster
    assert not any(party.insecure_plaintext for party in ClusterFile("pem", here).computing)
    with pytest.raises(UsageError, match=r"party-2 is at 10\.0\.0\.2:3"):
        ClusterFile("pem", (*here[:2], replace(here[2], host="10.0.0.2")), insecure_plaintext=True)
