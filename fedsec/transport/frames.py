"""The frame around every message, and the transcript of a link.

::

    "FS"  version  0  length u32  sequence u64  tag 8 bytes  payload        (big endian, 24 + length)

The tag is the start of SHA-256 over session, label, sender and receiver. The label itself does not
travel: both ends know which step they are in, and a message of another step, session or direction is
refused by its tag, before its payload has any memory. TLS keeps strangers out; the tag catches ends
that have lost step with each other.

The transcript of a direction is SHA-256 over ``fedsec transcript 2`` and, message by message, the header
and, up to 16 KiB, the payload. What is longer (a batch, or what the dealer deals) is there by its step,
number and length only: SHA-256 takes five times as long as AES-GCM, and would be a third of a batch's
time. A signature over a transcript therefore says nothing about the contents of longer messages; a
protocol that needs them signed hashes them itself, or sends them in pieces.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedsec.errors import ProtocolError

if TYPE_CHECKING:
    from typing_extensions import Buffer

WIRE_VERSION = 1
HEADER_BYTES = 24
TAG_BYTES = 8
MOST_PAYLOAD_BYTES = 2**32 - 1
WHOLE_BYTES = 16384
"""Payloads up to this size enter the transcript whole, longer ones by their header alone."""

_MAGIC = b"FS"
_MOST_TAGS = 256
"""Tags kept a direction; labels that count something are new every time."""

_HEADER = struct.Struct(">2sBBIQ8s")


def step_tag(session: bytes, label: str, sender: str, receiver: str) -> bytes:
    """Return the 8 bytes that a frame carries for its session, label and direction."""
    parts = (session, label.encode(), sender.encode(), receiver.encode())
    framed = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hashlib.sha256(b"fedsec step 1" + framed).digest()[:TAG_BYTES]


class Direction:
    """One direction of a link: the next sequence number and the transcript so far.

    Attributes:
        sender: Name of the sending end.
        receiver: Name of the receiving end.
        sequence: Number of the next message.
    """

    def __init__(self, sender: str, receiver: str, session: bytes = b"") -> None:
        self.sender = sender
        self.receiver = receiver
        self.sequence = 0
        self._transcript = hashlib.sha256(b"fedsec transcript 2")
        self.session = session

    @property
    def session(self) -> bytes:
        """The bytes that both ends put into every tag."""
        return self._session

    @session.setter
    def session(self, session: bytes) -> None:
        self._session = session
        self._tags: dict[str, bytes] = {}

    def header(self, label: str, size: int) -> bytes:
        """Return the header of the next message; :meth:`accept` takes the message into the transcript.

        Raises:
            ProtocolError: The payload is longer than a frame can be; nothing has changed.
        """
        if size > MOST_PAYLOAD_BYTES:
            raise ProtocolError(f"expected at most {MOST_PAYLOAD_BYTES} bytes in {label!r}, got {size}")
        return _HEADER.pack(_MAGIC, WIRE_VERSION, 0, size, self.sequence, self._tag(label))

    def seal(self, label: str, payload: Buffer) -> bytes:
        """Return the header of the next message, and take the message into the transcript.

        Raises:
            ProtocolError: The payload is longer than a frame can be; nothing has changed.
        """
        header = self.header(label, memoryview(payload).nbytes)
        self.accept(header, payload)
        return header

    def take(self, frame: bytes | bytearray) -> None:
        """Do what :meth:`accept` does with a header and a payload in one piece."""
        whole = len(frame) <= HEADER_BYTES + WHOLE_BYTES
        self._transcript.update(frame if whole else frame[:HEADER_BYTES])
        self.sequence += 1

    def accept(self, header: Buffer, payload: Buffer) -> None:
        """Take a whole message into the transcript and go on to the next number."""
        self._transcript.update(header)
        if memoryview(payload).nbytes <= WHOLE_BYTES:
            self._transcript.update(payload)
        self.sequence += 1

    def check(self, header: Buffer, labels: Sequence[str], max_bytes: int) -> tuple[str, int]:
        """Check a header that has arrived, before any memory is taken for its payload.

        Args:
            header: 24 bytes.
            labels: The labels that may come now.
            max_bytes: Longest payload that may come.

        Returns:
            Which label came, and the payload's length.

        Raises:
            ProtocolError: It is no header of ours, another version, number or step, or too long.
        """
        magic, version, reserved, size, sequence, tag = _HEADER.unpack(header)
        expected = _one_of(labels)
        if magic != _MAGIC or reserved != 0:
            raise ProtocolError(f"expected {expected} from {self.sender}, got bytes that are no message")
        if version != WIRE_VERSION:
            raise ProtocolError(f"expected wire version {WIRE_VERSION} from {self.sender}, got {version}")
        if sequence != self.sequence:
            raise ProtocolError(f"expected message number {self.sequence} from {self.sender}, got {sequence}")
        for label in labels:
            if tag == self._tag(label):
                break
        else:
            raise ProtocolError(
                f"expected {expected} from {self.sender} ({sequence}), got one of another step or session"
            )
        if size > max_bytes:
            raise ProtocolError(
                f"expected at most {max_bytes} bytes in {label!r} of {self.sender}, got {size}"
            )
        return label, int(size)

    def transcript(self) -> bytes:
        """Return SHA-256 over all headers, and all payloads up to ``WHOLE_BYTES``, so far."""
        return self._transcript.digest()

    def _tag(self, label: str) -> bytes:
        tag = self._tags.get(label)
        if tag is None:
            if len(self._tags) >= _MOST_TAGS:
                self._tags.clear()
            tag = self._tags[label] = step_tag(self._session, label, self.sender, self.receiver)
        return tag


def _one_of(labels: Sequence[str]) -> str:
    return f"message {labels[0]!r}" if len(labels) == 1 else f"one of {len(labels)} messages"
