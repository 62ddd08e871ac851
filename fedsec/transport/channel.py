"""A channel: messages in order between two named ends, each under the label of its step."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fedsec.errors import ProtocolError
from fedsec.transport.deadline import Deadline
from fedsec.transport.frames import Direction
from fedsec.transport.identity import Peer
from fedsec.transport.meter import Meter

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Channel(ABC):
    """One end of a link. One thread at a time uses it.

    After an error in the middle of a message the two ends no longer agree where the next one begins:
    every later call raises ``PeerLostError`` and the channel is good for closing only. A ``receive``
    that reached its deadline before the first byte leaves the channel as it was.

    Attributes:
        me: Name of this end.
        peer: The other end, as its certificate says.
        meter: Counts what passes here.
        outgoing: Numbers and transcript of what leaves.
        incoming: Numbers and transcript of what arrives.
    """

    def __init__(self, me: str, peer: Peer, meter: Meter | None = None, session: bytes = b"") -> None:
        self.me = me
        self.peer = peer
        self.meter = Meter() if meter is None else meter
        self.outgoing = Direction(me, peer.name, session)
        self.incoming = Direction(peer.name, me, session)

    @property
    def session(self) -> bytes:
        """The bytes that both ends put into every tag."""
        return self.outgoing.session

    @session.setter
    def session(self, session: bytes) -> None:
        """Change the session from the next message on; the other end must do the same there."""
        self.outgoing.session = self.incoming.session = session

    def transcript(self) -> bytes:
        """Return 32 bytes over every message of both directions so far; equal at both ends when idle."""
        directions = sorted((self.outgoing, self.incoming), key=lambda direction: direction.sender)
        return hashlib.sha256(b"".join(direction.transcript() for direction in directions)).digest()

    def receive(self, label: str, *, max_bytes: int, deadline: Deadline) -> bytearray:
        """Return the next message, which must be the one of ``label``.

        Args:
            label: The step that both ends are in.
            max_bytes: Longest payload that may come; a longer one is refused before it has memory.
            deadline: When to give up.

        Raises:
            ProtocolError: Something else came.
            PeerLostError: The peer closed or broke the connection.
            DeadlineError: The message was not there in time.
        """
        return self.receive_any((label,), max_bytes=max_bytes, deadline=deadline)[1]

    def receive_exactly(self, label: str, size: int, deadline: Deadline) -> bytearray:
        """Return the payload of the next message, of which label and size are known.

        Raises:
            ProtocolError: Something else came, or another size.
            PeerLostError: The peer closed or broke the connection.
            DeadlineError: The message was not there in time.
        """
        payload = self.receive(label, max_bytes=size, deadline=deadline)
        if len(payload) != size:
            raise ProtocolError(f"expected {size} bytes in {label!r} of {self.peer.name}, got {len(payload)}")
        return payload

    @abstractmethod
    def send(self, label: str, payload: Buffer, deadline: Deadline) -> None:
        """Send one message.

        Args:
            label: The step that both ends are in.
            payload: The bytes; may be used again as soon as the call returns.
            deadline: When to give up.

        Raises:
            PeerLostError: The peer closed or broke the connection.
            DeadlineError: The peer did not take the message in time.
        """

    @abstractmethod
    def receive_any(
        self, labels: Sequence[str], *, max_bytes: int, deadline: Deadline
    ) -> tuple[str, bytearray]:
        """Return the label and payload of the next message, which must be of one of ``labels``.

        Raises:
            ProtocolError: Something else came.
            PeerLostError: The peer closed or broke the connection.
            DeadlineError: The message was not there in time.
        """

    def swap(self, label: str, payload: memoryview, deadline: Deadline) -> bytearray:
        """Send a message and return the peer's of the same label and size: one round of two ends.

        Raises:
            ProtocolError: The peer sent something else, or another size.
            PeerLostError: The peer closed or broke the connection.
            DeadlineError: The messages were not through in time.
        """
        self.send(label, payload, deadline)
        return self.receive_exactly(label, payload.nbytes, deadline)

    @abstractmethod
    def wait(self, deadline: Deadline) -> None:
        """Return when something has come (a message, or the end of the connection); nothing is taken.

        Raises:
            DeadlineError: Nothing came in time; the channel is as it was.
        """

    @abstractmethod
    def interrupt(self) -> None:
        """End every wait on this channel, also one in another thread, with ``PeerLostError``."""

    @abstractmethod
    def close(self) -> None:
        """Close this end; the other one sees the end of the connection. May be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.me} to {self.peer})"
