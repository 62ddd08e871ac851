"""How a hospital makes its parts: one pass over the words, each piece while it is in the cache.

A part is nonce (32 bytes) || body, the body being the vector for one aggregator and a 32-byte seed for the
others. Digests of parts are blinded by the nonce: a plain digest of the vector would let n-1 aggregators
test guesses of the update.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fedsec.aggregation.announcement import Announcement
from fedsec.aggregation.checksum import PIECE_WORDS, Checksum
from fedsec.aggregation.messages import (
    HEADER_VERSION,
    NONCE_BYTES,
    UPLOAD_ID_BYTES,
    Signed,
    UploadHeader,
    begin_part_digest,
    part_digest,
    seal,
)
from fedsec.aggregation.planner import ENCODING_VERSION
from fedsec.aggregation.signing import Signer
from fedsec.ring import RingArray
from fedsec.sharing import compressed


@dataclass(frozen=True, slots=True)
class UploadParts:
    """Everything a hospital sends in one round; a retry sends the same object again."""

    upload_id: bytes
    header: Signed
    parts: dict[str, bytes | bytearray] = field(repr=False)


class Words(Protocol):
    """A source of encoded words, such as :class:`~fedsec.aggregation.encoding.UpdateWords`."""

    def fill(self, words: RingArray) -> Iterator[int]:
        """Write the words from the front, and say after each piece how many are there."""


def make_parts(
    announcement: Announcement, hospital: Signer, words: RingArray | Words, model: bytes = b""
) -> UploadParts:
    """Share the encoded words among the aggregators of a round and sign the header.

    Args:
        announcement: The accepted announcement.
        hospital: Who signs; its name is in the roster.
        words: What :func:`~fedsec.aggregation.encoding.encode_update` returned, or what makes the same words
            piece by piece.
        model: The tag of the sealed model that was trained; empty when the round is not sealed.

    Raises:
        FedsecError: What the source of words raises; nothing was made.
    """
    digest, layout = announcement.digest, announcement.layout
    holder = announcement.vector_holder(hospital.name)
    recipients = tuple(member.name for member in announcement.aggregators)
    upload_id = secrets.token_bytes(UPLOAD_ID_BYTES)
    seeds = {name: secrets.token_bytes(compressed.SEED_BYTES) for name in recipients if name != holder}
    parts: dict[str, bytes | bytearray] = {
        name: secrets.token_bytes(NONCE_BYTES) + seed for name, seed in seeds.items()
    }
    digests = {name: part_digest(upload_id, name, [part], len(part)) for name, part in parts.items()}
    part = bytearray(NONCE_BYTES + layout.vector_bytes)
    part[:NONCE_BYTES] = secrets.token_bytes(NONCE_BYTES)
    state = begin_part_digest(upload_id, holder, len(part))
    state.update(part[:NONCE_BYTES])
    vector: RingArray = np.frombuffer(part, layout.encoding.ring.dtype, offset=NONCE_BYTES)
    masks = compressed.Masks(list(seeds.values()), layout.encoding.ring)
    for piece in _with_checksum(Checksum(layout, digest), words, vector):
        masks.take_off(piece)
        state.update(piece.data.cast("B"))
    parts[holder], digests[holder] = part, state.digest()
    header = UploadHeader(
        version=HEADER_VERSION,
        round=announcement.id,
        announcement=digest,
        upload_id=upload_id,
        hospital=hospital.name,
        recipients=recipients,
        digests=tuple(digests[name] for name in recipients),
        encoding_version=ENCODING_VERSION,
        model=model,
    )
    return UploadParts(upload_id, seal(hospital, header), {name: parts[name] for name in recipients})


def _with_checksum(checksum: Checksum, words: RingArray | Words, vector: RingArray) -> Iterator[RingArray]:
    """Fill a vector and yield it in pieces, the checksum word alone at the end."""
    running, done = checksum.running(), 0
    payload = vector[:-1]
    source = _copied(words, payload) if isinstance(words, np.ndarray) else words.fill(payload)
    for there in source:
        # Small arrays come in small pieces, which are gathered.
        while there - done >= PIECE_WORDS or (there == payload.size and done < there):
            piece = payload[done : min(done + PIECE_WORDS, there)]
            running.add(piece)
            yield piece
            done += piece.size
    vector[-1] = running.value
    yield vector[-1:]


def _copied(words: RingArray, payload: RingArray) -> Iterator[int]:
    payload[:] = words
    yield payload.size
