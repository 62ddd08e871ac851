"""Requests and replies over a channel: typed messages, each with a body of bytes if it needs one.

::

    client                                   server
    <tag>/request  body size, message  -->
                                       <--   <tag>/go        only before a body above 64 KiB
    <tag>/body     up to 256 KiB each  -->
                                       <--   <tag>/reply     status, body size, message
                                       <--   <tag>/reply-body

The role is checked on the request, before any byte of its body is read. A long body waits for the
server's word, so a refused request costs neither end its body, and the connection stays in step.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from fedsec.errors import FedsecError, PeerLostError, ProtocolError, TrustError, by_code
from fedsec.transport.channel import Channel
from fedsec.transport.deadline import Deadline
from fedsec.transport.decoding import MALFORMED
from fedsec.transport.identity import Peer, Role

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T", bound=msgspec.Struct)

MESSAGE_BYTES = 1024 * 1024
"""Longest message without its body; a round announcement with 10,000 hospitals fits."""
CHUNK_BYTES = 256 * 1024
"""Longest frame of a body: what one connection may hold in memory when its body is streamed."""
UNASKED_BYTES = 64 * 1024
"""Longest body that is sent without the server's word; a refusal has to read and drop it."""
_MOST_ERROR_TEXT = 2000
_REQUEST = struct.Struct(">Q")
_REPLY = struct.Struct(">BQ")
_OK, _FAILED = 0, 1


class ErrorReply(msgspec.Struct, frozen=True, tag="error"):
    """What comes instead of a reply.

    Attributes:
        code: ``code`` of a class in ``fedsec.errors``.
        text: The error's text.
    """

    code: str
    text: str


class BodyReader:
    """The body of one request, read once: whole, or chunk by chunk in bounded memory.

    Attributes:
        size: Bytes in the whole body.
    """

    def __init__(self, channel: Channel, label: str, size: int, deadline: Deadline) -> None:
        self.size = size
        self._channel = channel
        self._label = label
        self._deadline = deadline
        self._left = size

    def read(self) -> bytearray:
        """Return what is left of the body, whole."""
        body = bytearray()
        for chunk in self.chunks(CHUNK_BYTES):
            body += chunk
        return body

    def chunks(self, size: int = 65536) -> Iterator[memoryview]:
        """Yield what is left of the body in pieces of at most ``size`` bytes.

        Raises:
            ProtocolError: The peer sent more than it had said, or something else.
            PeerLostError: The peer ended the connection, or was too slow.
        """
        while self._left:
            most = min(self._left, CHUNK_BYTES)
            frame = self._channel.receive(self._label, max_bytes=most, deadline=self._deadline)
            if not frame:
                raise ProtocolError(f"expected {self._left} more bytes from {self._channel.peer}, got none")
            self._left -= len(frame)
            view = memoryview(frame)
            for start in range(0, len(frame), size):
                yield view[start : start + size]

    def drop(self) -> None:
        """Read what is left and keep nothing, so that the connection stays in step."""
        for _ in self.chunks(CHUNK_BYTES):
            pass


@dataclass(frozen=True)
class Reply:
    """What a handler answers.

    Attributes:
        message: The reply's message.
        body: Bytes that go with it.
    """

    message: msgspec.Struct
    body: Buffer = b""


class Call:
    """One request, as its handler sees it.

    Attributes:
        peer: Who asks, as its certificate says.
        message: The request's message.
        body: Its body, not read yet.
        deadline: When the request has to be done.
    """

    def __init__(
        self, channel: Channel, message: msgspec.Struct, body: BodyReader, deadline: Deadline, tag: str
    ) -> None:
        self.peer: Peer = channel.peer
        self.message: Any = message
        self.body = body
        self.deadline = deadline
        self.detached = False
        self._channel = channel
        self._tag = tag

    def detach(self, reply: msgspec.Struct | None = None) -> Channel:
        """Take the connection over, for other messages than requests; the handler then returns None.

        Args:
            reply: Sent first, so that the caller's ``call`` returns before anything else passes.

        Returns:
            The channel, which its new owner closes.
        """
        self.body.drop()
        if reply is not None:
            send_reply(self._channel, self._tag, Reply(reply), self.deadline)
        self.detached = True
        return self._channel


@dataclass(frozen=True)
class Route:
    """One kind of request that a server answers.

    Attributes:
        message: The message's class; its tag names the request on the wire.
        roles: The roles that may ask; every other gets a trust error before its body is read.
        handler: Answers; runs in the connection's own thread.
        max_body_bytes: Longest body, or a function of the message that returns it.
        seconds: Time for one request; None takes the server's limit.
    """

    message: type[msgspec.Struct]
    roles: frozenset[Role]
    handler: Callable[[Call], Reply | None]
    max_body_bytes: int | Callable[[Any], int] = 0
    seconds: float | None = None

    @property
    def tag(self) -> str:
        """The request's name on the wire."""
        return tag_of(self.message)

    def body_limit(self, message: msgspec.Struct) -> int:
        """Return the longest body for this message."""
        return self.max_body_bytes(message) if callable(self.max_body_bytes) else self.max_body_bytes


def tag_of(message: type[msgspec.Struct]) -> str:
    """Return the tag of a message class, by which its requests are labelled and counted."""
    tag = message.__struct_config__.tag
    if not isinstance(tag, str):
        raise TypeError(f"{message.__name__} needs a text tag, as in Struct(tag='read_meter')")
    return tag


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
        FedsecError: The other end answered with an error: the class of its code, its text behind the
            peer's name. The channel stays usable.
        ProtocolError: It sent something else.
        PeerLostError: It ended the connection, or did not answer in time. After these two the channel
            is closed.
    """
    try:
        status, size, payload = _ask(channel, message, memoryview(body), deadline)
        if status == _OK:
            _check_size(size, max_body_bytes, channel.peer)
            answer = _decode(payload, reply, channel.peer)
            label = f"{tag_of(type(message))}/reply-body"
            return answer, BodyReader(channel, label, size, deadline).read()
        error = _decode(payload, ErrorReply, channel.peer)
    except (ProtocolError, PeerLostError):
        channel.close()
        raise
    raise by_code(error.code)(f"{channel.peer.name}: {error.text[:_MOST_ERROR_TEXT]}")


def _check_size(size: int, most: int, peer: Peer) -> None:
    if size > most:
        raise ProtocolError(f"expected at most {most} bytes with the answer of {peer}, got {size}")


def _ask(
    channel: Channel, message: msgspec.Struct, body: memoryview, deadline: Deadline
) -> tuple[int, int, memoryview]:
    tag = tag_of(type(message))
    body = body.cast("B") if body.nbytes else memoryview(b"")
    channel.send(f"{tag}/request", _REQUEST.pack(len(body)) + msgspec.msgpack.encode(message), deadline)
    replies = (f"{tag}/reply",)
    if len(body) > UNASKED_BYTES:
        label, payload = channel.receive_any(
            (f"{tag}/go", f"{tag}/reply"), max_bytes=MESSAGE_BYTES, deadline=deadline
        )
        if label in replies:
            return _opened_reply(payload, channel.peer)
    send_body(channel, f"{tag}/body", body, deadline)
    return _opened_reply(channel.receive(*replies, max_bytes=MESSAGE_BYTES, deadline=deadline), channel.peer)


def _opened_reply(payload: bytearray, peer: Peer) -> tuple[int, int, memoryview]:
    if len(payload) < _REPLY.size:
        raise ProtocolError(f"expected an answer from {peer}, got {len(payload)} bytes")
    status, size = _REPLY.unpack_from(payload)
    return status, size, memoryview(payload)[_REPLY.size :]


def _decode(payload: Buffer, kind: type[T], peer: Peer) -> T:
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except MALFORMED as error:
        # msgspec's text names the field and the types, never the value.
        raise ProtocolError(
            f"expected a {kind.__name__} from {peer}, got another message ({type(error).__name__})"
        ) from error


def send_body(channel: Channel, label: str, body: Buffer, deadline: Deadline) -> None:
    """Send a body in frames of at most 256 KiB."""
    view = memoryview(body)
    view = view.cast("B") if view.nbytes else memoryview(b"")
    for start in range(0, len(view), CHUNK_BYTES):
        channel.send(label, view[start : start + CHUNK_BYTES], deadline)


def send_reply(channel: Channel, tag: str, reply: Reply, deadline: Deadline) -> None:
    """Send an answer with its body."""
    size = memoryview(reply.body).nbytes
    channel.send(f"{tag}/reply", _REPLY.pack(_OK, size) + msgspec.msgpack.encode(reply.message), deadline)
    send_body(channel, f"{tag}/reply-body", reply.body, deadline)


def send_error(channel: Channel, tag: str, error: FedsecError, deadline: Deadline) -> None:
    """Send an error instead of an answer."""
    message = ErrorReply(error.code, str(error)[:_MOST_ERROR_TEXT])
    channel.send(f"{tag}/reply", _REPLY.pack(_FAILED, 0) + msgspec.msgpack.encode(message), deadline)


def read_request(
    channel: Channel, routes: dict[str, Route], deadline_of: Callable[[Route], Deadline], first: Deadline
) -> tuple[Route, Call]:
    """Read the next request and check who asks and how much; the body is not read.

    Args:
        channel: A connection.
        routes: Every route by the label of its request.
        deadline_of: When a request on a route has to be done.
        first: When the request's own message has to be there.

    Raises:
        ProtocolError: What came is no request; the connection is out of step.
        Refused: The request is well formed and may not be answered; the connection stays in step.
    """
    label, payload = channel.receive_any(tuple(routes), max_bytes=MESSAGE_BYTES, deadline=first)
    route = routes[label]
    if len(payload) < _REQUEST.size:
        raise ProtocolError(f"expected a request from {channel.peer}, got {len(payload)} bytes")
    (size,) = _REQUEST.unpack_from(payload)
    deadline = deadline_of(route)
    body = BodyReader(channel, f"{route.tag}/body", size, deadline)
    error: FedsecError
    if channel.peer.role not in route.roles:
        allowed = ", ".join(sorted(route.roles)) or "nobody"
        error = TrustError(f"{route.tag} is for {allowed}, not for {channel.peer}; it was refused")
        raise Refused(route.tag, body, error)
    try:
        message = _decode(memoryview(payload)[_REQUEST.size :], route.message, channel.peer)
        limit = route.body_limit(message)
        if size > limit:
            raise ProtocolError(
                f"expected at most {limit} bytes with {route.tag}, got {size}; it was refused"
            )
    except FedsecError as refusal:
        raise Refused(route.tag, body, refusal) from refusal
    if size > UNASKED_BYTES:
        channel.send(f"{route.tag}/go", b"", deadline)
    return route, Call(channel, message, body, deadline, route.tag)


class Refused(Exception):  # noqa: N818 - never leaves the server; it carries the error that the peer gets
    """A well-formed request that may not be answered."""

    def __init__(self, tag: str, body: BodyReader, error: FedsecError) -> None:
        super().__init__(str(error))
        self.tag = tag
        self.body = body
        self.error = error

    def drop_body(self) -> None:
        """Drop a body that came unasked; a longer one was never sent."""
        if self.body.size <= UNASKED_BYTES:
            self.body.drop()
