"""Signatures and hashes of the aggregation, each under a label of its own.

Every signed or hashed byte string begins with a label that names protocol, version and purpose, so that
bytes made for one purpose never pass for another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Protocol

from fedsec.transport import verify

Buffer = bytes | bytearray | memoryview

PROTOCOL = b"fedsec/aggregation/1/"
DIGEST_BYTES = 32
SIGNATURE_BYTES = 64
PUBLIC_KEY_BYTES = 32


class Hash(Protocol):
    """A hash that is fed piece by piece."""

    def update(self, data: Buffer, /) -> None:
        """Take the next bytes."""

    def digest(self) -> bytes:
        """Return the hash of all bytes so far."""


class Signer(Protocol):
    """What the aggregation needs of an identity: a name, a public key and an Ed25519 signature."""

    @property
    def name(self) -> str:
        """The name in the certificate."""

    @property
    def public_key(self) -> bytes:
        """The raw 32-byte Ed25519 public key."""

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of ``message``."""


def digest(label: str, *fields: Buffer) -> bytes:
    """Return SHA-256 over the label and at least one field, each preceded by its length in 8 bytes."""
    return digest_stream(label, fields[:-1], fields[-1:], len(fields[-1]))


def digest_stream(label: str, fields: Sequence[Buffer], chunks: Iterable[Buffer], size: int) -> bytes:
    """Return the same as ``digest(label, *fields, b"".join(chunks))`` without joining the chunks.

    Args:
        label: The purpose of the hash.
        fields: Leading fields, hashed each with its length.
        chunks: The pieces of the last field.
        size: The total number of bytes in ``chunks``.
    """
    state = begin_digest(label, fields, size)
    for chunk in chunks:
        state.update(chunk)
    return state.digest()


def begin_digest(label: str, fields: Sequence[Buffer], size: int) -> Hash:
    """Return the hash state of :func:`digest_stream` that waits for the chunks."""
    state = hashlib.sha256()
    for field in (PROTOCOL + label.encode(), *fields):
        state.update(len(field).to_bytes(8, "big"))
        state.update(field)
    state.update(size.to_bytes(8, "big"))
    return state


def sign(signer: Signer, label: str, payload: bytes) -> bytes:
    """Return the signer's signature of ``payload`` under ``label``."""
    return signer.sign(_labelled(label, payload))


def check_signature(public_key: bytes, label: str, payload: bytes, signature: bytes) -> None:
    """Check a signature made by :func:`sign`.

    Raises:
        TrustError: The signature is not that of the key over this payload and label.
    """
    verify(public_key, signature, _labelled(label, payload))


def _labelled(label: str, payload: bytes) -> bytes:
    return PROTOCOL + label.encode() + b"\0" + payload
