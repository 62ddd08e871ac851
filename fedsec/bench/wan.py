"""A party behind a relay that holds every byte back: a long line without network namespaces or root.

The launcher starts this in place of ``fedsec party`` and hands it the listening socket. It starts the party
with a socket of its own and passes every connection on. As the relay stands before each party, every link
between parties and every user's connection crosses exactly one, and each direction is held back by half of
the round trip. Bandwidth is not limited, and TCP does not know of the distance: what is measured is the
cost of waiting.
"""

from __future__ import annotations

import argparse
import contextlib
import queue
import signal
import socket
import subprocess
import sys
import threading
import time

_PIECE_BYTES = 1 << 18
_Piece = tuple[float, bytes]


def main() -> int:
    """Run the party and the relay before it until the party ends; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay-ms", type=float, required=True, help="one way")
    parser.add_argument("--listen-fd", type=int, required=True)
    options, rest = parser.parse_known_args()
    public = socket.socket(fileno=options.listen_fd)
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as inner:
        address = inner.getsockname()
        party = subprocess.Popen(
            [sys.executable, "-m", "fedsec", "party", *rest, "--listen-fd", str(inner.fileno())],
            pass_fds=(inner.fileno(),),
        )
    signal.signal(signal.SIGTERM, lambda _number, _frame: party.terminate())
    relay = threading.Thread(target=_accept, args=(public, address, options.delay_ms / 1e3), daemon=True)
    relay.start()
    return party.wait()


def _accept(public: socket.socket, address: tuple[str, int], delay_s: float) -> None:
    while True:
        outer, _ = public.accept()
        inner = socket.create_connection(address)
        for source, sink in ((outer, inner), (inner, outer)):
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line: queue.SimpleQueue[_Piece] = queue.SimpleQueue()
            for work, end in ((_take, source), (_give, sink)):
                threading.Thread(target=work, args=(end, line, delay_s), daemon=True).start()


def _take(source: socket.socket, line: queue.SimpleQueue[_Piece], delay_s: float) -> None:
    """Note when each piece is due at the other end; an empty one is the end of the connection."""
    piece = b"first"
    while piece:
        try:
            piece = source.recv(_PIECE_BYTES)
        except OSError:
            piece = b""
        line.put((time.monotonic() + delay_s, piece))


def _give(sink: socket.socket, line: queue.SimpleQueue[_Piece], _delay_s: float) -> None:
    while True:
        due, piece = line.get()
        time.sleep(max(0.0, due - time.monotonic()))
        try:
            if piece:
                sink.sendall(piece)
                continue
        except OSError:
            pass
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)
        return


if __name__ == "__main__":
    sys.exit(main())
