"""One end of the links that ``fedsec bench links`` measures: a process of its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedsec.bench.compute import compute
from fedsec.bench.timing import rate
from fedsec.bench.workers import answer_requests
from fedsec.errors import UsageError
from fedsec.transport import Deadline, Endpoint, Identity, SocketChannel, connect, exchange
from fedsec.transport.tls import open_server

KINDS = ("raw tcp", "tcp", "raw tls", "tls")
_WAIT_S = 20.0
_LABEL = "bench/round"

Link = SocketChannel | socket.socket


class End:
    """Listens, dials the next end, and makes rounds: send to one side, receive from the other."""

    def __init__(self) -> None:
        self._listener: socket.socket | None = None
        self._links: dict[str, Link] = {}

    def listen(self) -> int:
        """Listen on loopback and return the port."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        return int(self._listener.getsockname()[1])

    def meet(self, kind: str, identity: str, following: tuple[str, int, str] | None, accepts: bool) -> None:
        """Open the links: to the following end (name, port, public key in hex), and from the one before."""
        own = Identity.load(Path(identity))
        waiting = threading.Thread(target=self._accept, args=(kind, own))
        if accepts:
            waiting.start()
        if following is not None:
            name, port, key = following
            endpoint = Endpoint(name, "127.0.0.1", port, bytes.fromhex(key), kind == "tcp")
            self._links["following"] = _dial(kind, endpoint, own)
        if accepts:
            waiting.join()

    def rounds(self, size: int, count: int) -> float:
        """Return the mean of ``count`` rounds with messages of ``size`` bytes, in seconds.

        An end with one link only sends and receives over that. The mean, because ends drift apart: most
        rounds find their message waiting, and the few others wait for all of them.
        """
        links = [self._links[name] for name in ("before", "following") if name in self._links]
        if not links:
            raise UsageError("expected an end that has met others")
        to, sender = links[0], links[-1]
        body = bytes(size)
        call = _round(to, sender, body)
        rate(call, count // 10 + 1, 1)
        return 1 / rate(call, count, 1)

    def compute(self, party_id: int, **asked: Any) -> dict[str, dict[str, float]]:
        """Be a computing party; see :func:`fedsec.bench.compute.compute`."""
        before, following = self._links["before"], self._links["following"]
        if not (isinstance(before, SocketChannel) and isinstance(following, SocketChannel)):
            raise UsageError("expected an end with two channels")
        return compute(party_id, before, following, **asked)

    def close(self) -> None:
        """Close all links."""
        for link in self._links.values():
            link.close()
        self._links.clear()

    def _accept(self, kind: str, own: Identity) -> None:
        if self._listener is None:
            raise UsageError("expected an end that listens")
        with self._listener:
            sock, _ = self._listener.accept()
        if kind.startswith("raw"):
            self._links["before"] = _raw(sock, own if kind == "raw tls" else None, server=True)
        else:
            self._links["before"] = open_server(
                sock, own, deadline=Deadline.after(_WAIT_S), insecure_plaintext=kind == "tcp"
            )


def _dial(kind: str, endpoint: Endpoint, own: Identity) -> Link:
    if not kind.startswith("raw"):
        return connect(endpoint, own, deadline=Deadline.after(_WAIT_S))
    sock = socket.create_connection((endpoint.host, endpoint.port), timeout=_WAIT_S)
    return _raw(sock, own if kind == "raw tls" else None, server=False)


def _raw(sock: socket.socket, own: Identity | None, *, server: bool) -> socket.socket:
    """Return a blocking socket with nothing of ours around it: the floor."""
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if own is None:
        return sock
    context = own.server_context if server else own.client_context
    return context.wrap_socket(sock, server_side=server)


def _round(to: Link, sender: Link, body: bytes) -> Callable[[], object]:
    if isinstance(to, SocketChannel) and isinstance(sender, SocketChannel):
        sends, receives = [(to, _LABEL, body)], [(sender, _LABEL, len(body))]
        return lambda: exchange(sends, receives, Deadline.after(_WAIT_S))
    buffer = memoryview(bytearray(len(body)))

    def bare() -> None:
        # Safe with these sizes only: blocking sends in a ring deadlock beyond the socket buffers.
        to.sendall(body)  # type: ignore[union-attr]
        taken = 0
        while taken < len(buffer):
            taken += sender.recv_into(buffer[taken:])  # type: ignore[union-attr]

    return bare


def main() -> None:
    """Answer until the benchmark closes our standard input."""
    end = End()
    answer_requests(
        {
            "listen": end.listen,
            "meet": end.meet,
            "rounds": end.rounds,
            "compute": end.compute,
            "close": end.close,
        }
    )
    end.close()


if __name__ == "__main__":
    main()
