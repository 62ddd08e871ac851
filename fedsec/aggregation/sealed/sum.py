"""A sum share and the commitment to it: in one part, or in two when only one of them may reach the server.

In a sealed round the server gets the words of the weight and the metrics, and of the rest a blinded digest,
so that it can check both against what the aggregator signed. The checksum word is a known combination of all
words, so it stays with the updates: opened, it would let the server test guesses of the average.
"""

from __future__ import annotations

import secrets

import numpy as np

from fedsec.aggregation.announcement import Announcement
from fedsec.aggregation.context import commitment
from fedsec.aggregation.messages import NONCE_BYTES
from fedsec.aggregation.planner import Layout
from fedsec.aggregation.signing import DIGEST_BYTES, Buffer, digest
from fedsec.errors import ProtocolError
from fedsec.ring import RingArray


def fresh_nonce(announcement: Announcement) -> bytes:
    """Return the nonce, or in a sealed round the two nonces, that blind the commitment to a sum share."""
    return secrets.token_bytes(_nonce_bytes(announcement))


def bind_sum(announcement: Announcement, aggregator: str, nonce: bytes, words: Buffer) -> bytes:
    """Return the commitment of an aggregator to its sum share.

    Args:
        announcement: The round.
        aggregator: Whose share it is.
        nonce: What :func:`fresh_nonce` returned.
        words: The bytes of the share, all words.
    """
    key = announcement.id.key
    if announcement.sealed is None:
        return commitment(key, aggregator, nonce, bytes(words))
    hidden, metrics = _split(announcement.layout, memoryview(words))
    return _bind(
        announcement,
        aggregator,
        _hidden_digest(announcement, aggregator, nonce[:NONCE_BYTES], hidden),
        _metrics_digest(announcement, aggregator, nonce[NONCE_BYTES:], metrics),
    )


def server_part(announcement: Announcement, aggregator: str, stored: bytes) -> bytes:
    """Return what the server may have of a stored nonce || sum share; all of it when nothing is sealed."""
    if announcement.sealed is None:
        return stored
    nonce, words = stored[: 2 * NONCE_BYTES], memoryview(stored)[2 * NONCE_BYTES :]
    hidden, metrics = _split(announcement.layout, words)
    return (
        nonce[NONCE_BYTES:]
        + _hidden_digest(announcement, aggregator, nonce[:NONCE_BYTES], hidden)
        + bytes(metrics)
    )


def server_part_bytes(announcement: Announcement) -> int:
    """Return the size of :func:`server_part`."""
    layout = announcement.layout
    if announcement.sealed is None:
        return NONCE_BYTES + layout.vector_bytes
    words = layout.payload_words - layout.update_words
    return NONCE_BYTES + DIGEST_BYTES + words * layout.encoding.ring.element_bytes


def opened_words(announcement: Announcement, aggregator: str, body: bytes, bound: bytes) -> RingArray:
    """Check what an aggregator sent the server against its commitment, and return the words in it.

    Returns:
        All words of the sum share; in a sealed round those of the weight and the metrics.

    Raises:
        ProtocolError: It is not what the aggregator has committed to.
    """
    nonce, rest = body[:NONCE_BYTES], body[NONCE_BYTES:]
    if announcement.sealed is None:
        words, found = rest, commitment(announcement.id.key, aggregator, nonce, rest)
    else:
        hidden, words = rest[:DIGEST_BYTES], rest[DIGEST_BYTES:]
        found = _bind(
            announcement, aggregator, hidden, _metrics_digest(announcement, aggregator, nonce, words)
        )
    if found != bound:
        raise ProtocolError(
            f"'{aggregator}' sent another sum share than it had committed to: the round is void"
        )
    array: RingArray = np.frombuffer(words, dtype=announcement.encoding.ring.dtype)
    return array


def sealed_part(announcement: Announcement, stored: bytes) -> tuple[RingArray, int]:
    """Return an aggregator's share of the updates' words, and of the weight, from a stored sum share."""
    layout = announcement.layout
    dtype = layout.encoding.ring.dtype
    words: RingArray = np.frombuffer(stored, dtype=dtype, offset=2 * NONCE_BYTES)
    return words[: layout.update_words], int(words[layout.update_words])


def _split(layout: Layout, words: memoryview) -> tuple[bytes, memoryview]:
    size = layout.encoding.ring.element_bytes
    start, end = layout.update_words * size, layout.payload_words * size
    view = words.cast("B") if words.format != "B" else words
    return bytes(view[:start]) + bytes(view[end:]), view[start:end]


def _hidden_digest(announcement: Announcement, aggregator: str, nonce: bytes, words: Buffer) -> bytes:
    return digest("sealed update", announcement.id.key, aggregator.encode(), nonce, words)


def _metrics_digest(announcement: Announcement, aggregator: str, nonce: bytes, words: Buffer) -> bytes:
    return digest("sealed metrics", announcement.id.key, aggregator.encode(), nonce, words)


def _bind(announcement: Announcement, aggregator: str, hidden: bytes, metrics: bytes) -> bytes:
    return digest("sealed sum share", announcement.id.key, aggregator.encode(), hidden, metrics)


def _nonce_bytes(announcement: Announcement) -> int:
    return NONCE_BYTES if announcement.sealed is None else 2 * NONCE_BYTES
