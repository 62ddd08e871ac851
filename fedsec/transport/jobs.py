"""Messages on their way over several sockets at once, none of which may block.

Blocking sends in a ring of parties wait for each other for ever as soon as messages are longer than the
socket buffers. TLS may have to read in order to write and to write in order to read, so a job says after
each step what it waits for.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NoReturn, Protocol

from fedsec.errors import ProtocolError
from fedsec.transport.deadline import Deadline
from fedsec.transport.frames import HEADER_BYTES

if TYPE_CHECKING:
    from fedsec.transport.sockets import SocketChannel


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
    """What is left to write of one message; its number is taken."""

    direction = "to"

    def __init__(self, channel: SocketChannel, views: Sequence[memoryview]) -> None:
        self.channel = channel
        self.wants = select.POLLOUT
        self._views = deque(views)

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
        """Return whether all is written."""
        return not self._views


class ReceiveJob:
    """One message to receive, of the size that both ends know."""

    direction = "from"

    def __init__(self, channel: SocketChannel, label: str, size: int) -> None:
        self.channel = channel
        self.wants = select.POLLIN
        self.message = Incoming(channel, label, size)

    def step(self) -> bool:
        """Read until the message is whole or the socket is empty."""
        message = self.message
        while not message.whole:
            count = self.channel.read_into(message.space)
            if count < 0:
                self.wants = -count
                return False
            message.took(count)
        message.finish()
        return True

    def settled(self) -> bool:
        """Return whether no byte of the message has been taken yet, or all."""
        return self.message.settled


class Incoming:
    """Header and payload of one message on their way into one buffer, whose size both ends know.

    Attributes:
        buffer: Memory for header and payload.
    """

    def __init__(
        self, channel: SocketChannel, label: str, size: int, buffer: bytearray | None = None
    ) -> None:
        self._channel = channel
        self._label = label
        self._size = size
        self._taken = 0
        self._finished = False
        self.buffer = bytearray(HEADER_BYTES + size) if buffer is None else buffer

    @property
    def space(self) -> memoryview:
        """Memory for what is left to read."""
        return memoryview(self.buffer)[self._taken :]

    @property
    def whole(self) -> bool:
        """Whether nothing is left to read."""
        return self._taken == len(self.buffer)

    @property
    def settled(self) -> bool:
        """Whether no byte has been taken yet, or the whole message and it was the expected one."""
        return self._finished or self._taken == 0

    def took(self, count: int) -> None:
        """Note that ``count`` bytes were read; the header is checked as soon as it is there.

        Raises:
            ProtocolError: Another message came, or one of another size.
        """
        before = self._taken
        self._taken += count
        if before < HEADER_BYTES <= self._taken and not self._header_fits():
            self._refuse()

    def finish(self) -> None:
        """Count the whole message and take it into the transcript."""
        channel = self._channel
        incoming = channel.incoming
        channel.meter.received(channel.peer.name, channel.me, self._label, incoming.sequence, self._size)
        incoming.take(self.buffer)
        self._finished = True

    def payload(self) -> bytearray:
        """Return the payload; the message is used up."""
        del self.buffer[:HEADER_BYTES]
        return self.buffer

    def _header_fits(self) -> bool:
        # All that a header says is known beforehand; it is taken apart only to say what is wrong.
        return self.buffer.startswith(self._channel.incoming.header(self._label, self._size))

    def _refuse(self) -> NoReturn:
        channel = self._channel
        header = bytes(self.buffer[:HEADER_BYTES])
        _, size = channel.incoming.check(header, (self._label,), self._size)
        raise ProtocolError(
            f"expected {self._size} bytes in {self._label!r} of {channel.peer.name}, got {size}"
        )


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
