"""The same session over real sockets with small buffers: key agreement, then large messages."""

from __future__ import annotations

import socket
import threading

import numpy as np

from fedsec.mpc import establish, multiply, relu, reveal
from fedsec.ring import RingArray, fresh_stream, signed
from fedsec.sharing import replicated
from fedsec.transport import Deadline, Peer, Role, SocketChannel

NAMES = ("alice", "bob", "carol")
BUFFER_BYTES = 4096


def _mesh() -> dict[tuple[int, int], SocketChannel]:
    ends: dict[tuple[int, int], SocketChannel] = {}
    for i, j in ((0, 1), (1, 2), (0, 2)):
        for (me, other), sock in zip(((i, j), (j, i)), socket.socketpair(), strict=True):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
            peer = Peer(NAMES[other], Role.PARTY, bytes(32), bytes(32).hex())
            ends[me, other] = SocketChannel(sock, NAMES[me], peer)
    return ends


def test_large_messages_round_the_circle_do_not_deadlock() -> None:
    stream = fresh_stream()
    values = np.asarray(stream.words(200_000) % np.uint64(1 << 20)) - np.uint64(1 << 19)
    shares = replicated.share(values, stream)
    mesh, opened = _mesh(), {}

    def run(i: int) -> None:
        party = establish(
            i, mesh[i, (i - 1) % 3], mesh[i, (i + 1) % 3], b"sockets", Deadline.after(90), wait_s=90
        )
        positive = relu(party, shares[i], 20)
        opened[i] = reveal(party, multiply(party, positive, positive))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for channel in mesh.values():
        channel.close()

    expected: RingArray = (np.maximum(signed(values), 0) ** 2).astype(np.uint64)
    assert len(opened) == 3
    assert all(np.array_equal(value, expected) for value in opened.values())
