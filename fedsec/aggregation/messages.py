"""Every message of the aggregation. ``docs/reference/wire-format.md`` describes the same for other programs.

What is signed travels as bytes (``payload``) beside its signature, so that a signature is always checked over
the bytes that came and never over a second encoding of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from fedsec.aggregation.announcement import RoundId
from fedsec.aggregation.signing import (
    DIGEST_BYTES,
    SIGNATURE_BYTES,
    Buffer,
    Hash,
    Signer,
    begin_digest,
    check_signature,
    digest_stream,
    sign,
)
from fedsec.errors import ProtocolError
from fedsec.transport.decoding import MALFORMED, decode_as

UPLOAD_ID_BYTES = 16
NONCE_BYTES = 32
HEADER_VERSION = 1
MOST_HEADER_BYTES = 1 << 16


class _Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of what is signed or nested: positional, no unknown fields."""


class Signed(_Part, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Bytes with the Ed25519 signature of whoever the surrounding message names."""

    payload: bytes
    signature: bytes


class UploadHeader(_Part, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a hospital signs: the same header goes to every aggregator.

    ``digests[j]`` is the blinded digest of the part of ``recipients[j]``; ``proof`` is empty until there are
    validity proofs. ``model`` is a tag, under the hospitals' common secret, of the sealed model that was
    trained; empty in rounds that are not sealed.
    """

    version: int
    round: RoundId
    announcement: bytes
    upload_id: bytes
    hospital: str
    recipients: tuple[str, ...]
    digests: tuple[bytes, ...]
    encoding_version: int
    proof: bytes = b""
    model: bytes = b""


class ListEntry(_Part, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One complete upload in an aggregator's list, with its share of the checksum difference <rho, x> - t."""

    hospital: str
    upload_id: bytes
    header_digest: bytes
    checksum: int


class ChainHead(_Part, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How far an aggregator's durable history has come; signed by itself wherever it is shown."""

    counter: int
    head: bytes


class ListStatement(_Part, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Agreement step 1, signed by an aggregator: the uploads it holds complete, sorted by hospital."""

    round: RoundId
    announcement: bytes
    aggregator: str
    entries: tuple[ListEntry, ...]
    chain: Signed


class SetStatement(_Part, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Agreement step 2, signed by an aggregator: the included set and the commitment to its sum share."""

    round: RoundId
    announcement: bytes
    aggregator: str
    included: int
    root: bytes
    commitment: bytes
    chain: Signed


class IncludedUpload(_Part, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One leaf of the included set."""

    hospital: str
    upload_id: bytes
    header_digest: bytes


class ExcludedUpload(_Part, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A hospital of the roster that is not in the sum, and why.

    The reason is "missing", "incomplete", "inconsistent", or in a sealed round "other_model".
    """

    hospital: str
    reason: str


# Requests and replies. Each has a tag; the transport routes by it.


class Announce(msgspec.Struct, frozen=True, tag="announce", forbid_unknown_fields=True):
    """Server to aggregator: a round begins."""

    announcement: Signed


class Announced(msgspec.Struct, frozen=True, tag="announced", forbid_unknown_fields=True):
    """Reply: the aggregator takes uploads over this announcement digest."""

    digest: bytes


class Upload(msgspec.Struct, frozen=True, tag="upload", forbid_unknown_fields=True):
    """Hospital to aggregator. The body is nonce (32 bytes) || vector (little-endian) or seed (32 bytes)."""

    header: Signed


class Stored(msgspec.Struct, frozen=True, tag="stored", forbid_unknown_fields=True):
    """Reply: the part is on disk. The signature covers (round, upload id, header digest, aggregator)."""

    aggregator: str
    signature: bytes


class CloseUploads(msgspec.Struct, frozen=True, tag="close_uploads", forbid_unknown_fields=True):
    """Server to aggregator: no more uploads are awaited. Speeds up what the deadline does anyway."""

    round: RoundId


class UploadList(msgspec.Struct, frozen=True, tag="upload_list", forbid_unknown_fields=True):
    """Aggregator to aggregator: a signed :class:`ListStatement`, and events before it that were missed."""

    statement: Signed
    missed: tuple[bytes, ...] = ()


class SetSignature(msgspec.Struct, frozen=True, tag="set_signature", forbid_unknown_fields=True):
    """Aggregator to aggregator: a signed :class:`SetStatement`, and events before it that were missed."""

    statement: Signed
    missed: tuple[bytes, ...] = ()


class Hello(msgspec.Struct, frozen=True, tag="aggregator_hello", forbid_unknown_fields=True):
    """Aggregator to aggregator at start: its signed :class:`ChainHead`."""

    aggregator: str
    chain: Signed


class MissedEvents(msgspec.Struct, frozen=True, tag="missed_events", forbid_unknown_fields=True):
    """Aggregator to aggregator that is far behind: a page of events, and the signed head after the last one.

    Pages come before the statement that they lead to, until it can make up for the rest itself.
    """

    chain: Signed
    missed: tuple[bytes, ...]


class AbortRound(msgspec.Struct, frozen=True, tag="abort_round", forbid_unknown_fields=True):
    """Aggregator to aggregator: the round has ended here without a result, so waiting is in vain."""

    round: RoundId
    reason: str


class Greeted(msgspec.Struct, frozen=True, tag="greeted", forbid_unknown_fields=True):
    """Reply: the last chain head that the asker has shown this aggregator, as the asker signed it.

    Both fields are empty when there is none. A head that the asker does not have means it was set back.
    """

    seen: Signed


class Received(msgspec.Struct, frozen=True, tag="received", forbid_unknown_fields=True):
    """Reply: taken, and durable where it has to be."""


class CollectSum(msgspec.Struct, frozen=True, tag="collect_sum", forbid_unknown_fields=True):
    """Server to aggregator: asks for the sum share of an agreed round."""

    round: RoundId


class SumShare(msgspec.Struct, frozen=True, tag="sum_share", forbid_unknown_fields=True):
    """Reply. When ``ready``, the body is nonce (32 bytes) || sum share; otherwise ask again.

    In a sealed round the body is nonce || digest of the updates' part (32 bytes) || share of the weight and
    the metrics. ``statements`` are the set statements of all aggregators in the announcement's order,
    ``included`` what they agreed on, and ``excluded`` every upload that is left out, with the reason.
    """

    ready: bool
    statements: tuple[Signed, ...] = ()
    included: tuple[IncludedUpload, ...] = ()
    excluded: tuple[ExcludedUpload, ...] = ()


class FinishRound(msgspec.Struct, frozen=True, tag="finish_round", forbid_unknown_fields=True):
    """Server to aggregator: the outcome is known, erase the sum share."""

    round: RoundId


class GetReceipt(msgspec.Struct, frozen=True, tag="get_receipt", forbid_unknown_fields=True):
    """Hospital to aggregator: asks whether its upload is in the included set."""

    round: RoundId
    upload_id: bytes


class Receipt(msgspec.Struct, frozen=True, tag="receipt", forbid_unknown_fields=True):
    """Reply. ``status``: "pending", "included", "excluded" or "aborted"; proof only for "included"."""

    status: str
    reason: str = ""
    index: int = 0
    path: tuple[bytes, ...] = ()
    statements: tuple[Signed, ...] = ()


_T = TypeVar("_T", bound=msgspec.Struct)

LABELS: dict[type[msgspec.Struct], str] = {
    UploadHeader: "upload header",
    ListStatement: "upload list",
    SetStatement: "included set",
    ChainHead: "chain head",
}
STORED_LABEL = "stored"


def seal(signer: Signer, statement: msgspec.Struct) -> Signed:
    """Encode and sign a statement under the label of its type."""
    payload = msgspec.msgpack.encode(statement)
    return Signed(payload, sign(signer, LABELS[type(statement)], payload))


def unseal(message: Signed, kind: type[_T], public_key: bytes) -> _T:
    """Check the signature of a statement and decode it.

    Raises:
        TrustError: The signature is not that of the key.
        ProtocolError: The bytes are no such statement.
    """
    check_signature(public_key, LABELS[kind], message.payload, message.signature)
    return read(message, kind)


def read(message: Signed, kind: type[_T]) -> _T:
    """Decode a statement without checking its signature, e.g. to learn whose key to check it with.

    Raises:
        ProtocolError: The bytes are no such statement.
    """
    if len(message.signature) != SIGNATURE_BYTES:
        raise ProtocolError(f"a signature has {SIGNATURE_BYTES} bytes, got {len(message.signature)}")
    try:
        return decode_as(message.payload, kind)
    except MALFORMED:
        raise ProtocolError(f"the signed bytes are no {kind.__name__} of this version") from None


def read_statement(kind: str, message: Signed) -> ListStatement | SetStatement:
    """Decode a statement of kind "list" or "set" without checking its signature.

    Raises:
        ProtocolError: The bytes are no such statement.
    """
    return read(message, ListStatement) if kind == "list" else read(message, SetStatement)


def header_digest(payload: bytes) -> bytes:
    """Return the digest that stands for a signed upload header in lists, receipts and leaves."""
    return hashlib.sha256(b"fedsec/aggregation/1/upload header digest\0" + payload).digest()


def part_digest(upload_id: bytes, recipient: str, chunks: Iterable[Buffer], size: int) -> bytes:
    """Return the blinded digest of one part: over (label, upload id, recipient, nonce || body).

    Args:
        upload_id: The upload.
        recipient: The aggregator the part is for.
        chunks: nonce || body in pieces.
        size: Bytes of nonce and body together.
    """
    return digest_stream("part", (upload_id, recipient.encode()), chunks, size)


def begin_part_digest(upload_id: bytes, recipient: str, size: int) -> Hash:
    """Return the hash state of :func:`part_digest` that waits for the chunks."""
    return begin_digest("part", (upload_id, recipient.encode()), size)


def stored_payload(round_id: RoundId, upload_id: bytes, header: bytes, aggregator: str) -> bytes:
    """Return the bytes an acknowledgement signs; ``header`` is the header digest."""
    return msgspec.msgpack.encode((round_id, upload_id, header, aggregator))


def is_digest(value: bytes) -> bool:
    """Tell whether a field has the size of a SHA-256 digest."""
    return len(value) == DIGEST_BYTES
