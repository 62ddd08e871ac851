"""Channels inside one process, for simulations and tests: the same labels, numbers and meters, no sockets."""

from __future__ import annotations

import hashlib
import itertools
import queue
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fedsec.errors import DeadlineError, PeerLostError, ProtocolError
from fedsec.transport.channel import Channel
from fedsec.transport.deadline import Deadline
from fedsec.transport.identity import Peer, Role
from fedsec.transport.meter import Meter

if TYPE_CHECKING:
    from typing_extensions import Buffer

_Message = tuple[str, bytes, bytearray]
"""Label (for clear errors only), header, payload."""


class MemoryChannel(Channel):
    """One end of a link within this process. Sending never waits.

    Attributes:
        received: With ``record``, every (label, payload) that arrived: this end's view of the link.
    """

    def __init__(
        self,
        me: str,
        peer: Peer,
        inbox: queue.SimpleQueue[_Message | None],
        outbox: queue.SimpleQueue[_Message | None],
        *,
        record: bool = False,
    ) -> None:
        super().__init__(me, peer, Meter(logging=record))
        self.received: list[tuple[str, bytes]] = []
        self._record = record
        self._inbox = inbox
        self._outbox = outbox
        self._waiting: _Message | None = None
        self._lost = False

    def send(self, label: str, payload: Buffer, deadline: Deadline) -> None:
        """Hand a copy of the payload to the other end; see :meth:`Channel.send`."""
        if self._lost:
            raise self._gone(label)
        sequence = self.outgoing.sequence
        # The sender may use its buffer again at once, as it may with a socket.
        copied = bytearray(memoryview(payload).cast("B") if memoryview(payload).nbytes else b"")
        header = self.outgoing.seal(label, copied)
        self.meter.sent(self.me, self.peer.name, label, sequence, len(copied))
        self._outbox.put((label, header, copied))

    def receive_any(
        self, labels: Sequence[str], *, max_bytes: int, deadline: Deadline
    ) -> tuple[str, bytearray]:
        """Take the next message; see :meth:`Channel.receive_any`."""
        self.wait(deadline)
        message, self._waiting = self._waiting, None
        if message is None:
            raise self._gone(labels[0])
        sent_as, header, payload = message
        sequence = self.incoming.sequence
        try:
            label, _size = self.incoming.check(header, labels, max_bytes)
        except ProtocolError as error:
            self.close()
            raise ProtocolError(f"{error} (it was sent as {sent_as!r})") from error
        self.incoming.accept(header, payload)
        self.meter.received(self.peer.name, self.me, label, sequence, len(payload))
        if self._record:
            self.received.append((label, bytes(payload)))
        return label, payload

    def wait(self, deadline: Deadline) -> None:
        """Wait until something is in the inbox; see :meth:`Channel.wait`."""
        if self._waiting is not None or self._lost:
            return
        try:
            self._waiting = self._inbox.get(timeout=deadline.remaining(self.peer.name))
        except queue.Empty as error:
            raise DeadlineError(
                f"expected a message from {self.peer.name} within {deadline.seconds:g} s and got none"
            ) from error
        if self._waiting is None:
            self._lost = True

    def interrupt(self) -> None:
        """End waits at both ends."""
        self._inbox.put(None)
        self._outbox.put(None)

    def close(self) -> None:
        """Close both directions."""
        if not self._lost:
            self._lost = True
            self.interrupt()

    def _gone(self, label: str) -> PeerLostError:
        return PeerLostError(f"expected {label!r} between {self.me} and {self.peer.name}; the link is closed")


def memory_mesh(
    names: Sequence[str],
    *,
    record: bool = False,
    roles: Mapping[str, Role] | None = None,
) -> dict[tuple[str, str], MemoryChannel]:
    """Return a link between every two of ``names``: the end of ``a`` towards ``b`` is at ``(a, b)``.

    All mailboxes exist before anyone can use one: mailboxes made on first use lost messages, when two
    threads made the same one.

    Args:
        names: Different names.
        record: Keep message logs and payloads, for view and cost tests.
        roles: The role of each name that is not a party.
    """
    peers = {name: _memory_peer(name, (roles or {}).get(name, Role.PARTY)) for name in names}
    boxes: dict[tuple[str, str], queue.SimpleQueue[_Message | None]] = {
        pair: queue.SimpleQueue() for pair in itertools.permutations(names, 2)
    }
    return {
        (me, other): MemoryChannel(me, peers[other], boxes[other, me], boxes[me, other], record=record)
        for me, other in itertools.permutations(names, 2)
    }


def _memory_peer(name: str, role: Role) -> Peer:
    # No key signs anything here; the digests only keep names apart where a fingerprint is a key of a table.
    digest = hashlib.sha256(b"memory " + name.encode()).digest()
    return Peer(name, role, digest, digest.hex())
