"""The relay in front of a party: it delays, and changes nothing else."""

from __future__ import annotations

import hashlib
import socket
import threading
import time

from fedsec.bench.wan import _accept

DELAY_S = 0.02


def _through_relay() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a connection that crosses a relay."""
    public, inner = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    threading.Thread(target=_accept, args=(public, inner.getsockname(), DELAY_S), daemon=True).start()
    user = socket.create_connection(public.getsockname(), timeout=10)
    party, _ = inner.accept()
    party.settimeout(10)
    inner.close()
    return user, party


def _read(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        data += sock.recv(size - len(data))
    return bytes(data)


def test_each_direction_takes_its_time_and_pieces_that_overlap_wait_together() -> None:
    user, party = _through_relay()
    with user, party:
        start = time.monotonic()
        user.sendall(b"question")
        assert _read(party, 8) == b"question"
        party.sendall(b"answer")
        assert _read(user, 6) == b"answer"
        assert time.monotonic() - start >= 2 * DELAY_S


def test_large_messages_come_out_as_they_went_in() -> None:
    user, party = _through_relay()
    data = hashlib.shake_128(b"large").digest(3_000_000)
    with user, party:
        thread = threading.Thread(target=user.sendall, args=(data,))
        thread.start()
        assert _read(party, len(data)) == data
        thread.join()


def test_the_end_of_a_connection_comes_through() -> None:
    user, party = _through_relay()
    with party:
        user.sendall(b"last words")
        user.close()
        assert _read(party, 10) == b"last words"
        assert party.recv(1) == b""
