"""What requests and replies are made of: a size, a typed message, and a body inside the frame or behind it.

A body of up to 64 KiB travels in the frame of its message: one record, one read. A longer one follows in
frames of its own, so that the receiver can refuse it by its announced size, or read it piece by piece.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TypeVar

import msgspec

from fedsec.errors import ProtocolError
from fedsec.transport.channel import Channel
from fedsec.transport.deadline import Deadline
from fedsec.transport.decoding import MALFORMED, decode_as
from fedsec.transport.identity import Peer

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T", bound=msgspec.Struct)

MESSAGE_BYTES = 1024 * 1024
"""Longest message without its body; a round announcement with 10,000 hospitals fits."""
CHUNK_BYTES = 256 * 1024
"""Longest frame of a body: what one connection may hold in memory when its body is streamed."""
UNASKED_BYTES = 64 * 1024
"""Longest body that is sent without the server's word; a refusal has to read and drop it."""
_SIZE = struct.Struct(">Q")
_INSIDE = 1 << 63  # of the size: the body is in this frame, behind the message


class BodyReader:
    """The body of one message, read once: whole, or chunk by chunk in bounded memory.

    Args:
        channel: Where it comes from.
        label: The label of its frames.
        size: Bytes in the whole body.
        deadline: When it has to be there.
        inside: The body itself, if it came with its message.

    Attributes:
        size: Bytes in the whole body.
    """

    def __init__(
        self,
        channel: Channel,
        label: str,
        size: int,
        deadline: Deadline,
        inside: memoryview | None = None,
    ) -> None:
        self.size = size
        self._channel = channel
        self._label = label
        self._deadline = deadline
        self._inside = inside
        self._left = size

    @property
    def inside(self) -> bool:
        """Whether the body came with its message."""
        return self._inside is not None

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
            view = self._next()
            self._left -= len(view)
            for start in range(0, len(view), size):
                yield view[start : start + size]

    def _next(self) -> memoryview:
        if self._inside is not None:
            return self._inside
        most = min(self._left, CHUNK_BYTES)
        frame = self._channel.receive(self._label, max_bytes=most, deadline=self._deadline)
        if not frame:
            raise ProtocolError(f"expected {self._left} more bytes from {self._channel.peer}, got none")
        return memoryview(frame)

    def drop(self) -> None:
        """Read what is left and keep nothing, so that the connection stays in step."""
        if self._inside is not None:
            self._left = 0
        for _ in self.chunks(CHUNK_BYTES):
            pass


@dataclass(frozen=True, slots=True)
class Opened:
    """A frame taken apart.

    Attributes:
        size: Bytes of the body.
        message: The message, not decoded yet.
        inside: The body, if it came in the frame.
    """

    size: int
    message: memoryview
    inside: memoryview | None


def pack(message: msgspec.Struct, body: memoryview) -> bytes:
    """Return the frame of a message and its body; a body above 64 KiB is only announced."""
    encoded = msgspec.msgpack.encode(message)
    if 0 < len(body) <= UNASKED_BYTES:
        return b"".join((_SIZE.pack(len(body) | _INSIDE), encoded, body))
    return _SIZE.pack(len(body)) + encoded


def unpack(frame: memoryview, peer: Peer) -> Opened:
    """Take a frame apart.

    Raises:
        ProtocolError: It is shorter than it says.
    """
    if len(frame) < _SIZE.size:
        raise ProtocolError(f"expected a size and a message from {peer}, got {len(frame)} bytes")
    (size,) = _SIZE.unpack_from(frame)
    if not size & _INSIDE:
        return Opened(size, frame[_SIZE.size :], None)
    size ^= _INSIDE
    border = len(frame) - size
    if border < _SIZE.size:
        raise ProtocolError(f"expected {size} bytes of body from {peer}, got a frame of {len(frame)}")
    return Opened(size, frame[_SIZE.size : border], frame[border:])


def decode(payload: Buffer, kind: type[T], peer: Peer) -> T:
    """Decode a message.

    Raises:
        ProtocolError: It is of another kind, or malformed.
    """
    try:
        return decode_as(payload, kind)
    except MALFORMED as error:
        # msgspec's text names the field and the types, never the value.
        raise ProtocolError(
            f"expected a {kind.__name__} from {peer}, got another message ({type(error).__name__})"
        ) from error


def flat(body: Buffer) -> memoryview:
    """Return the bytes of a body."""
    view = memoryview(body)
    return view.cast("B") if view.nbytes else memoryview(b"")


def send_body(channel: Channel, label: str, body: memoryview, deadline: Deadline) -> None:
    """Send a body in frames of at most 256 KiB."""
    for start in range(0, len(body), CHUNK_BYTES):
        channel.send(label, body[start : start + CHUNK_BYTES], deadline)


@cache
def tag_of(message: type[msgspec.Struct]) -> str:
    """Return the tag of a message class, by which its requests are labelled and counted."""
    tag = message.__struct_config__.tag
    if not isinstance(tag, str):
        raise TypeError(f"{message.__name__} needs a text tag, as in Struct(tag='read_meter')")
    return tag
