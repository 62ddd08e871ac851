"""Channels over connected sockets, under TLS or plain, and several of them at once.

Every socket is non-blocking. Whatever is to be sent or received becomes a job, and all jobs of one call
progress together: blocking sends in a ring of parties wait for each other for ever as soon as messages are
longer than the socket buffers. TLS may have to read in order to write and to write in order to read, so a
job says after each step what it waits for.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, cast

from fedsec.errors import PeerLostError, ProtocolError
from fedsec.transport.channel import Channel
from fedsec.transport.deadline import Deadline
from fedsec.transport.frames import HEADER_BYTES
from fedsec.transport.identity import Peer
from fedsec.transport.meter import Meter

if TYPE_CHECKING:
    from typing_extensions import Buffer

_JOINED_BYTES = 65536
"""Up to this size, copying a payload behind its header is cheaper than a second TLS record."""


class SocketChannel(Channel):
    """One end of a link over a connected socket, which now belongs to the channel.

    Args:
        sock: A connected TCP or Unix socket; under TLS, after its handshake.
        me: Name of this end.
        peer: The other end.
        meter: Counts what passes; a new one by default.
        session: Bytes that both ends put into every tag.
    """

    def __init__(
        self,
        sock: socket.socket,
        me: str,
        peer: Peer,
        meter: Meter | None = None,
        session: bytes = b"",
    ) -> None:
        super().__init__(me, peer, meter, session)
        sock.setblocking(False)
        self._sock = sock
        self.broken = False

    def send(self, label: str, payload: Buffer, deadline: Deadline) -> None:
        """Send one message; see :meth:`Channel.send`."""
        progress([SendJob(self, label, payload)], deadline)

    def receive_any(
        self, labels: Sequence[str], *, max_bytes: int, deadline: Deadline
    ) -> tuple[str, bytearray]:
        """Receive one message; see :meth:`Channel.receive_any`."""
        job = ReceiveJob(self, labels, max_bytes)
        progress([job], deadline)
        return job.label, job.payload

    def wait(self, deadline: Deadline) -> None:
        """Wait until the socket has something; see :meth:`Channel.wait`."""
        if self.broken or (isinstance(self._sock, ssl.SSLSocket) and self._sock.pending()):
            return
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        while not poll.poll(deadline.poll_ms(self.peer.name)):
            pass

    def interrupt(self) -> None:
        """Shut the connection down without freeing the socket, so that another thread's wait ends."""
        # Not SSLSocket.shutdown: that drops the TLS state under a thread that may be using it.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self.broken = True
        self._sock.close()

    def fileno(self) -> int:
        """Return the socket's descriptor, for ``select.poll``."""
        return self._sock.fileno()

    def read_into(self, view: memoryview) -> int:
        """Read what is there; returns the bytes read, or minus the poll event to wait for."""
        try:
            count = self._sock.recv_into(view)
        except (BlockingIOError, ssl.SSLWantReadError):
            return -select.POLLIN
        except ssl.SSLWantWriteError:
            return -select.POLLOUT
        except (OSError, ValueError) as error:
            raise self.lost(error) from error
        if count == 0:
            raise self.lost(None)
        return count

    def write(self, view: memoryview) -> int:
        """Write what fits; returns the bytes written, or minus the poll event to wait for."""
        try:
            return self._sock.send(view)
        except (BlockingIOError, ssl.SSLWantWriteError):
            return -select.POLLOUT
        except ssl.SSLWantReadError:
            return -select.POLLIN
        except (OSError, ValueError) as error:
            raise self.lost(error) from error

    def lost(self, error: Exception | None) -> PeerLostError:
        """Return the error to raise for a connection that ended, with its cause if there is one."""
        reason = "closed it" if error is None else f"broke it ({type(error).__name__})"
        return PeerLostError(
            f"expected the connection to {self.peer} to stay open; {self.peer.name} {reason}"
        )


class Job(Protocol):
    """One message on its way over one channel."""

    channel: SocketChannel
    direction: str
    wants: int

    def step(self) -> bool:
        """Go on as far as possible without waiting; returns whether the message is through."""

    def settled(self) -> bool:
        """Return whether the channel stands between two messages."""


class SendJob:
    """One message to send."""

    direction = "to"

    def __init__(self, channel: SocketChannel, label: str, payload: Buffer) -> None:
        if channel.broken:
            raise channel.lost(None)
        self.channel = channel
        self.wants = select.POLLOUT
        view = memoryview(payload)
        size = view.nbytes
        body = view.cast("B") if size else memoryview(b"")
        sequence = channel.outgoing.sequence
        header = channel.outgoing.seal(label, body)
        # Counted when it starts, so that a log shows it before what the peer answers.
        channel.meter.sent(channel.me, channel.peer.name, label, sequence, size)
        parts: list[bytes | memoryview] = (
            [b"".join((header, body))] if size <= _JOINED_BYTES else [header, body]
        )
        self._views = deque(memoryview(part) for part in parts)

    def step(self) -> bool:
        """Write until all is written or the socket is full."""
        while self._views:
            count = self.channel.write(self._views[0])
            if count < 0:
                self.wants = -count
                return False
            self._views[0] = self._views[0][count:]
            if not self._views[0]:
                self._views.popleft()
        return True

    def settled(self) -> bool:
        """Return whether all is written; the message's number is taken from the start."""
        return not self._views


class ReceiveJob:
    """One message to receive, of one of several labels; exact in size if asked."""

    direction = "from"

    def __init__(
        self, channel: SocketChannel, labels: Sequence[str], max_bytes: int, *, exact: bool = False
    ) -> None:
        if channel.broken:
            raise channel.lost(None)
        self.channel = channel
        self.wants = select.POLLIN
        self.label = ""
        self.payload = bytearray()
        self._labels = labels
        self._max_bytes = max_bytes
        self._exact = exact
        self._header = bytearray(HEADER_BYTES)
        self._left = memoryview(self._header)
        self._done = False

    def step(self) -> bool:
        """Read until the message is whole or the socket is empty."""
        if not self.label:
            if not self._fill():
                return False
            self._begin_payload()
        if not self._fill():
            return False
        channel = self.channel
        sequence = channel.incoming.sequence
        channel.incoming.accept(self._header, self.payload)
        channel.meter.received(channel.peer.name, channel.me, self.label, sequence, len(self.payload))
        self._done = True
        return True

    def settled(self) -> bool:
        """Return whether no byte of the message has been taken yet, or all."""
        return self._done or (not self.label and len(self._left) == HEADER_BYTES)

    def _begin_payload(self) -> None:
        # The size is checked before the payload has any memory.
        self.label, size = self.channel.incoming.check(self._header, self._labels, self._max_bytes)
        if self._exact and size != self._max_bytes:
            raise ProtocolError(
                f"expected {self._max_bytes} bytes in {self.label!r} of {self.channel.peer.name}, got {size}"
            )
        self.payload = bytearray(size)
        self._left = memoryview(self.payload)

    def _fill(self) -> bool:
        while self._left:
            count = self.channel.read_into(self._left)
            if count < 0:
                self.wants = -count
                return False
            self._left = self._left[count:]
        return True


def progress(jobs: Iterable[Job], deadline: Deadline) -> None:
    """Drive all jobs until each is through; those on one channel and direction go one after the other.

    Raises:
        ProtocolError: A peer sent something else.
        PeerLostError: A peer closed or broke its connection.
        DeadlineError: The jobs were not through in time; names every peer that is waited for.
            After any of these, channels with a half-done message are good for closing only.
    """
    pending = list(jobs)
    try:
        while pending := _step_all(pending):
            _wait(pending, deadline)
    except BaseException:
        for job in pending:
            if not job.settled():
                job.channel.broken = True
        raise


def _step_all(jobs: Sequence[Job]) -> list[Job]:
    left: list[Job] = []
    for job in jobs:
        behind = any(job.channel is other.channel and job.direction == other.direction for other in left)
        if behind or not job.step():
            left.append(job)
    return left


def _wait(jobs: Sequence[Job], deadline: Deadline) -> None:
    events: dict[SocketChannel, int] = {}
    for job in jobs:
        events[job.channel] = events.get(job.channel, 0) | job.wants
    poll = select.poll()
    for channel, mask in events.items():
        poll.register(channel, mask)
    who = ", ".join(sorted({job.channel.peer.name for job in jobs}))
    while not poll.poll(deadline.poll_ms(who)):
        pass


def exchange(
    sends: Sequence[tuple[Channel, str, Buffer]],
    receives: Sequence[tuple[Channel, str, int]],
    deadline: Deadline,
) -> list[bytearray]:
    """Send and receive over several channels at the same time: one communication round.

    No order of sends and receives can deadlock, whatever the sizes of messages and socket buffers.

    Args:
        sends: Channel, label and payload of each message to send.
        receives: Channel, label and exact payload bytes of each message to receive.
        deadline: When to give up.

    Returns:
        The received payloads, in the order of ``receives``.

    Raises:
        ProtocolError: A peer sent something else, or another size.
        PeerLostError: A peer closed or broke its connection.
        DeadlineError: The messages were not through in time; names the peers waited for.
    """
    channels = [channel for channel, *_ in (*sends, *receives)]
    if not all(isinstance(channel, SocketChannel) for channel in channels):
        return _exchange_in_memory(sends, receives, deadline)
    for channel in cast("list[SocketChannel]", channels):
        if channel.broken:
            raise channel.lost(None)
    outgoing = [SendJob(cast("SocketChannel", channel), label, body) for channel, label, body in sends]
    incoming = [
        ReceiveJob(cast("SocketChannel", channel), (label,), size, exact=True)
        for channel, label, size in receives
    ]
    progress([*outgoing, *incoming], deadline)
    return [job.payload for job in incoming]


def _exchange_in_memory(
    sends: Sequence[tuple[Channel, str, Buffer]],
    receives: Sequence[tuple[Channel, str, int]],
    deadline: Deadline,
) -> list[bytearray]:
    for channel, label, body in sends:
        channel.send(label, body, deadline)
    payloads = []
    for channel, label, size in receives:
        payloads.append(channel.receive(label, max_bytes=size, deadline=deadline))
        if len(payloads[-1]) != size:
            raise ProtocolError(
                f"expected {size} bytes in {label!r} of {channel.peer.name}, got {len(payloads[-1])}"
            )
    return payloads
