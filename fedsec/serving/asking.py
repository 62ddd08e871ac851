"""One request to each of the three parties at once, from one thread, each over its own connection."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import msgspec

from fedsec.errors import DeadlineError, FedsecError
from fedsec.transport import Deadline, Endpoint, Identity, Meter, SocketChannel
from fedsec.transport.calling import Calling
from fedsec.transport.several import wait_any
from fedsec.transport.tls import connect

GRACE_S = 2.0
"""After the first error the others get this long: usually they answer with the same one."""

T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Ask:
    """What one party is asked."""

    message: msgspec.Struct
    body: bytes = field(default=b"", repr=False)
    max_body_bytes: int = 0

    def send(self, channel: SocketChannel, reply: type[T], deadline: Deadline) -> Calling[T]:
        """Send the request over a channel."""
        limit = self.max_body_bytes
        return Calling(channel, self.message, reply, body=self.body, deadline=deadline, max_body_bytes=limit)


def connect_all(
    parties: Sequence[Endpoint], identity: Identity, deadline: Deadline, meter: Meter
) -> tuple[SocketChannel, ...]:
    """Open a connection to every party, or to none.

    Raises:
        TrustError: a party is not the pinned one, or refuses this certificate.
        PeerLostError, DeadlineError: a party does not answer; the text names it.
    """
    with ExitStack() as opened:
        channels = tuple(
            opened.enter_context(connect(party, identity, deadline=deadline, meter=meter))
            for party in parties
        )
        opened.pop_all()
        return channels


def ask_each(
    channels: Sequence[SocketChannel], asks: Sequence[Ask], reply: type[T], deadline: Deadline
) -> list[tuple[T, bytearray]]:
    """Ask every party at once; returns the replies in the parties' order.

    All requests are sent before any answer is waited for, because a party may answer only after all of them
    were asked.

    Raises:
        FedsecError: the first error that came, named after its party. Connections on which an answer is
            still outstanding then are closed.
    """
    round_ = _Round[T](deadline)
    # Those that compute first: the leader, party 0, waits for their votes anyway.
    for channel, ask in reversed(list(zip(channels, asks, strict=True))):
        round_.send(channel, ask, reply)
    while round_.waiting:
        round_.hear()
    if round_.error is not None:
        raise round_.error
    return [round_.replies[channel] for channel in channels]


class _Round(Generic[T]):
    """The requests under way; the first error in time is the one that tells most."""

    def __init__(self, deadline: Deadline) -> None:
        self.waiting: dict[SocketChannel, Calling[T]] = {}
        self.replies: dict[SocketChannel, tuple[T, bytearray]] = {}
        self.error: FedsecError | None = None
        self._deadline = deadline

    def send(self, channel: SocketChannel, ask: Ask, reply: type[T]) -> None:
        """Send one request."""
        try:
            self.waiting[channel] = ask.send(channel, reply, self._deadline)
        except FedsecError as error:
            self._fail(error)

    def hear(self) -> None:
        """Wait for the next word of any party, or give up those that say none."""
        names = " and ".join(channel.peer.name for channel in self.waiting)
        try:
            ready = wait_any(list(self.waiting), self._deadline.remaining(names))
        except DeadlineError as error:
            self._give_up(error)
            return
        for channel in ready:
            self._hear(channel)

    def _hear(self, channel: SocketChannel) -> None:
        try:
            answer = self.waiting[channel].hear()
        except FedsecError as error:
            del self.waiting[channel]
            self._fail(error)
            return
        if answer is not None:
            del self.waiting[channel]
            self.replies[channel] = answer

    def _fail(self, error: FedsecError) -> None:
        if self.error is None:
            self.error = error
            grace = Deadline.after(GRACE_S)
            self._deadline = min(self._deadline, grace, key=lambda deadline: deadline.at)

    def _give_up(self, error: FedsecError) -> None:
        """Close what still waits: an answer that came later would be taken for the next request's."""
        for channel in self.waiting:
            channel.close()
        self.waiting.clear()
        self._fail(error)
