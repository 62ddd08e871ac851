"""Asking a server: one request on its way, and the plain call that waits for its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from fedsec.errors import PeerLostError, ProtocolError, by_code
from fedsec.transport.bodies import (
    MESSAGE_BYTES,
    UNASKED_BYTES,
    BodyReader,
    decode,
    flat,
    pack,
    send_body,
    tag_of,
    unpack,
)
from fedsec.transport.channel import Channel
from fedsec.transport.deadline import Deadline

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T", bound=msgspec.Struct)

OK, FAILED = b"\0", b"\1"
"""First byte of every reply."""
MOST_ERROR_TEXT = 2000


class ErrorReply(msgspec.Struct, frozen=True, tag="error"):
    """What comes instead of a reply.

    Attributes:
        code: ``code`` of a class in ``fedsec.errors``.
        text: The error's text.
    """

    code: str
    text: str


class Calling(Generic[T]):
    """One request that was sent and is not answered yet; several may be under way in one thread.

    Args:
        channel: A connection to a server, with no other request under way.
        message: The request; it is sent at once.
        reply: Class of the expected answer.
        body: Bytes that go with the request; must not change until the answer is there.
        deadline: When to give up.
        max_body_bytes: Longest body of the answer.

    Raises:
        PeerLostError: The other end has ended the connection; the channel is closed.
    """

    def __init__(
        self,
        channel: Channel,
        message: msgspec.Struct,
        reply: type[T],
        *,
        body: Buffer = b"",
        deadline: Deadline,
        max_body_bytes: int = 0,
    ) -> None:
        self.channel = channel
        self._tag = tag_of(type(message))
        self._reply = reply
        self._body = flat(body)
        self._deadline = deadline
        self._max_body_bytes = max_body_bytes
        self._unsent = len(self._body) > UNASKED_BYTES
        try:
            channel.send(f"{self._tag}/request", pack(message, self._body), deadline)
        except (ProtocolError, PeerLostError):
            channel.close()
            raise

    def hear(self) -> tuple[T, bytearray] | None:
        """Wait for the server's next word.

        Returns:
            The answer's message and body; None if the server first wanted the request's body, which is
            sent now.

        Raises:
            FedsecError: The other end answered with an error: the class of its code, its text behind the
                peer's name. The channel stays usable.
            ProtocolError: It sent something else.
            PeerLostError: It ended the connection, or did not answer in time. After these two the channel
                is closed.
        """
        try:
            answer = self._hear()
        except (ProtocolError, PeerLostError):
            self.channel.close()
            raise
        if isinstance(answer, ErrorReply):
            text = f"{self.channel.peer.name}: {answer.text[:MOST_ERROR_TEXT]}"
            raise by_code(answer.code)(text)
        return answer

    def _hear(self) -> tuple[T, bytearray] | ErrorReply | None:
        channel, deadline = self.channel, self._deadline
        expected = (f"{self._tag}/go", f"{self._tag}/reply") if self._unsent else (f"{self._tag}/reply",)
        label, frame = channel.receive_any(expected, max_bytes=MESSAGE_BYTES, deadline=deadline)
        if label != expected[-1]:
            self._unsent = False
            send_body(channel, f"{self._tag}/body", self._body, deadline)
            return None
        if frame[:1] not in (OK, FAILED):
            raise ProtocolError(f"expected an answer from {channel.peer}, got {len(frame)} other bytes")
        opened = unpack(memoryview(frame)[1:], channel.peer)
        if frame[:1] == FAILED:
            return decode(opened.message, ErrorReply, channel.peer)
        if opened.size > self._max_body_bytes:
            raise ProtocolError(
                f"expected at most {self._max_body_bytes} bytes with the answer of {channel.peer}, "
                f"got {opened.size}"
            )
        answer = decode(opened.message, self._reply, channel.peer)
        label = f"{self._tag}/reply-body"
        return answer, BodyReader(channel, label, opened.size, deadline, opened.inside).read()


def call(
    channel: Channel,
    message: msgspec.Struct,
    reply: type[T],
    *,
    body: Buffer = b"",
    deadline: Deadline,
    max_body_bytes: int = 0,
) -> tuple[T, bytearray]:
    """Ask the other end and wait for its answer.

    Args:
        channel: A connection to a server.
        message: The request.
        reply: Class of the expected answer.
        body: Bytes that go with the request.
        deadline: When to give up.
        max_body_bytes: Longest body of the answer.

    Returns:
        The answer's message and body.

    Raises:
        FedsecError: As :meth:`Calling.hear`.
    """
    calling = Calling(channel, message, reply, body=body, deadline=deadline, max_body_bytes=max_body_bytes)
    while (answer := calling.hear()) is None:
        continue
    return answer
