"""Requests and replies over a channel: typed messages, each with a body of bytes if it needs one.

::

    client                                   server
    <tag>/request  body size, message  -->
                                       <--   <tag>/go        only before a body above 64 KiB
    <tag>/body     up to 256 KiB each  -->
                                       <--   <tag>/reply     status, body size, message
                                       <--   <tag>/reply-body

A body of up to 64 KiB travels inside the frame of its message. The role is checked on the request, before a
longer body is sent: that one waits for the server's word, so a refused request costs neither end its body,
and the connection stays in step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from fedsec.errors import FedsecError, ProtocolError, TrustError
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
from fedsec.transport.calling import FAILED, MOST_ERROR_TEXT, OK, ErrorReply
from fedsec.transport.channel import Channel
from fedsec.transport.deadline import Deadline
from fedsec.transport.identity import Peer, Role

if TYPE_CHECKING:
    from typing_extensions import Buffer

_FRAME_BYTES = {Role.USER: UNASKED_BYTES + 4096, Role.HOSPITAL: 2 * UNASKED_BYTES + 4096}
"""Longest frame of a request: a query, or a signed upload header, with its body inside.

Users and hospitals are many, and a frame has its memory before its end has come; the others' lists and plans
may take ``MESSAGE_BYTES``.
"""


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


def send_reply(channel: Channel, tag: str, reply: Reply, deadline: Deadline) -> None:
    """Send an answer with its body."""
    body = flat(reply.body)
    channel.send(f"{tag}/reply", OK + pack(reply.message, body), deadline)
    if len(body) > UNASKED_BYTES:
        send_body(channel, f"{tag}/reply-body", body, deadline)


def send_error(channel: Channel, tag: str, error: FedsecError, deadline: Deadline) -> None:
    """Send an error instead of an answer."""
    message = ErrorReply(error.code, str(error)[:MOST_ERROR_TEXT])
    channel.send(f"{tag}/reply", FAILED + pack(message, memoryview(b"")), deadline)


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
    most = _FRAME_BYTES.get(channel.peer.role, MESSAGE_BYTES)
    label, frame = channel.receive_any(tuple(routes), max_bytes=most, deadline=first)
    route = routes[label]
    opened = unpack(memoryview(frame), channel.peer)
    size, deadline = opened.size, deadline_of(route)
    body = BodyReader(channel, f"{route.tag}/body", size, deadline, opened.inside)
    error: FedsecError
    if channel.peer.role not in route.roles:
        allowed = ", ".join(sorted(route.roles)) or "nobody"
        error = TrustError(f"{route.tag} is for {allowed}, not for {channel.peer}; it was refused")
        raise Refused(route.tag, body, error)
    try:
        message = decode(opened.message, route.message, channel.peer)
        limit = route.body_limit(message)
        if size > limit:
            raise ProtocolError(
                f"expected at most {limit} bytes with {route.tag}, got {size}; it was refused"
            )
    except FedsecError as refusal:
        raise Refused(route.tag, body, refusal) from refusal
    if size > UNASKED_BYTES and opened.inside is None:
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
