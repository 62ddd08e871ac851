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

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

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

    from fedsec.transport.jobs import SendJob
    from fedsec.transport.sockets import SocketChannel

_FRAME_BYTES = {Role.USER: UNASKED_BYTES + 4096, Role.HOSPITAL: 2 * UNASKED_BYTES + 4096}
"""Longest frame of a request: a query, or a signed upload header, with its body inside.

Users and hospitals are many, and a frame has its memory before its end has come; the others' lists and plans
may take ``MESSAGE_BYTES``.
"""


_LOG = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Occupation:
    """What is going on with one connection, for whoever wants to end it.

    Attributes:
        busy: Whether a request has come whose answer is not sent yet.
        ending: Whether the connection ends as soon as it is not busy.
        host: Who may wait for the next request, if it is not the connection's own thread.
    """

    busy: bool = False
    ending: bool = False
    host: Host | None = None


class Host(Protocol):
    """Another thread that waits for requests on a connection, in place of the connection's own."""

    def keep(self, channel: Channel, occupation: Occupation, idle_s: float) -> Callable[[], None] | None:
        """Wait in the connection's own thread for as long as the host has the connection.

        Args:
            channel: The connection.
            occupation: What is going on with it.
            idle_s: Longest time without a request.

        Returns:
            What is left to do for a request that the host has taken, if anything.

        Raises:
            PeerLostError: No request came for so long.
        """
        ...


@dataclass(frozen=True)
class Reply:
    """What a handler answers.

    Attributes:
        message: The reply's message.
        body: Bytes that go with it.
        host: Who may wait for the next request on this connection.
    """

    message: msgspec.Struct
    body: Buffer = b""
    host: Host | None = None


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

    @property
    def complete(self) -> bool:
        """Whether the body has come with the request, or there is none."""
        return self.body.inside or not self.body.size

    def let_body_come(self) -> None:
        """Tell a peer that waits for it to send the body."""
        if self.body.size > UNASKED_BYTES and not self.body.inside:
            self._channel.send(f"{self._tag}/go", b"", self.deadline)

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


def outcome(tag: str, peer: Peer, work: Callable[[], Reply | None]) -> Reply | FedsecError | None:
    """Return what a handler makes of a request: an answer, or the error that the peer gets."""
    try:
        return work()
    except FedsecError as error:
        _LOG.info("%s of %s: %s", tag, peer, error)
        return error
    except Exception as error:
        # Only the type: the text of an unexpected error may hold what it was working on.
        _LOG.error("%s of %s failed with %s", tag, peer, type(error).__name__)
        return FedsecError("internal error")


def serve_call(channel: Channel, route: Route, call: Call, seconds: float) -> Reply | FedsecError | None:
    """Have a request handled and send the answer; whatever the handler read of its body, all stays in step.

    Args:
        channel: The connection.
        route: The request's.
        call: The request.
        seconds: Time for sending the answer: the handler may have waited until the request's own deadline.

    Returns:
        What was sent; None if the handler has taken the channel over.

    Raises:
        PeerLostError, ProtocolError: The connection is of no more use.
    """
    answer = outcome(route.tag, call.peer, lambda: route.handler(call))
    if call.detached:
        return None
    call.body.drop()
    return send_outcome(channel, route.tag, answer, Deadline.after(seconds))


def send_outcome(
    channel: Channel, tag: str, answer: Reply | FedsecError | None, deadline: Deadline
) -> Reply | FedsecError:
    """Send an answer, or an error instead of it; also where a handler has found neither."""
    if answer is None:
        _LOG.error("%s of %s got no answer from its handler", tag, channel.peer)
        answer = FedsecError("internal error")
    if isinstance(answer, FedsecError):
        send_error(channel, tag, answer, deadline)
    else:
        send_reply(channel, tag, answer, deadline)
    return answer


def send_reply(channel: Channel, tag: str, reply: Reply, deadline: Deadline) -> None:
    """Send an answer with its body."""
    body = flat(reply.body)
    channel.send(f"{tag}/reply", OK + pack(reply.message, body), deadline)
    if len(body) > UNASKED_BYTES:
        send_body(channel, f"{tag}/reply-body", body, deadline)


def start_reply(channel: SocketChannel, tag: str, reply: Reply) -> SendJob | None:
    """Send as much of an answer with a short body as the socket takes now; returns what is left to send.

    Raises:
        PeerLostError: The peer closed or broke the connection.
    """
    return channel.start(f"{tag}/reply", OK + pack(reply.message, flat(reply.body)))


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
    label, frame = channel.receive_any(tuple(routes), max_bytes=most_frame_bytes(channel), deadline=first)
    route = routes[label]
    call = open_request(channel, frame, route, deadline_of(route))
    call.let_body_come()
    return route, call


def most_frame_bytes(channel: Channel) -> int:
    """Return the longest frame of a request on a connection."""
    return _FRAME_BYTES.get(channel.peer.role, MESSAGE_BYTES)


def open_request(channel: Channel, frame: bytearray, route: Route, deadline: Deadline) -> Call:
    """Take the frame of a request apart and check who asks and how much.

    Args:
        channel: Where it came from.
        frame: What came.
        route: The route of the label under which it came.
        deadline: When the request has to be done.

    Raises:
        ProtocolError: What came is no request; the connection is out of step.
        Refused: The request is well formed and may not be answered; the connection stays in step.
    """
    opened = unpack(memoryview(frame), channel.peer)
    size = opened.size
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
    return Call(channel, message, body, deadline, route.tag)


class Refused(Exception):  # noqa: N818 - never leaves the server; it carries the error that the peer gets
    """A well-formed request that may not be answered."""

    def __init__(self, tag: str, body: BodyReader, error: FedsecError) -> None:
        super().__init__(str(error))
        self.tag = tag
        self.body = body
        self.error = error

    def answer(self, channel: Channel, deadline: Deadline) -> None:
        """Tell the peer, after dropping a body that came unasked; a longer one was never sent."""
        if self.body.size <= UNASKED_BYTES:
            self.body.drop()
        _LOG.warning("request of %s was refused: %s", channel.peer, self.error)
        send_error(channel, self.tag, self.error, deadline)
