"""What an aggregator checks of an upload's header before it reads a byte of the part."""

from __future__ import annotations

from fedsec.aggregation.announcement import Announcement
from fedsec.aggregation.messages import (
    HEADER_VERSION,
    MOST_HEADER_BYTES,
    UPLOAD_ID_BYTES,
    Signed,
    UploadHeader,
    is_digest,
    read,
    unseal,
)
from fedsec.aggregation.planner import ENCODING_VERSION
from fedsec.aggregation.signing import DIGEST_BYTES
from fedsec.errors import ProtocolError, TrustError
from fedsec.transport import Peer


def read_header(signed: Signed) -> UploadHeader:
    """Decode an upload header; its signature is not checked yet.

    Raises:
        ProtocolError: The bytes are too many or no header of this version.
    """
    if len(signed.payload) > MOST_HEADER_BYTES:
        raise ProtocolError(
            f"an upload header has at most {MOST_HEADER_BYTES} bytes, got {len(signed.payload)}"
        )
    return read(signed, UploadHeader)


def check_header(announcement: Announcement, digest: bytes, peer: Peer, signed: Signed) -> UploadHeader:
    """Check that a header is the connected hospital's own and made for exactly this announcement.

    Args:
        announcement: The announcement of the round that the header names.
        digest: Its digest.
        peer: Who is connected.
        signed: The header as it came.

    Raises:
        TrustError: The hospital is another than its certificate or key says, or the signature is wrong.
        ProtocolError: The header is about another announcement or has a field that does not fit.
    """
    header = read_header(signed)
    if header.hospital != peer.name or announcement.public_key_of(peer.name) != peer.public_key:
        raise TrustError(
            f"'{peer.name}' sent a header of another hospital, or with another key than enrolled"
        )
    unseal(signed, UploadHeader, peer.public_key)
    if header.announcement != digest:
        raise ProtocolError(
            f"'{peer.name}' answers another announcement of {announcement.id}: the server sent two"
        )
    recipients = tuple(member.name for member in announcement.aggregators)
    fits = (
        header.version == HEADER_VERSION
        and header.round == announcement.id
        and header.encoding_version == ENCODING_VERSION
        and header.recipients == recipients
        and len(header.digests) == len(recipients)
        and all(is_digest(one) for one in header.digests)
        and len(header.upload_id) == UPLOAD_ID_BYTES
        and header.proof == b""
        and len(header.model) == (0 if announcement.sealed is None else DIGEST_BYTES)
    )
    if not fits:
        raise ProtocolError(f"the upload header of '{peer.name}' has a field that does not fit this round")
    return header
