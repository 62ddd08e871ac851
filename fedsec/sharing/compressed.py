"""Additive sharing in which all parties but one get a 32-byte seed instead of a vector.

One party, the vector holder, gets ``v = x - expand(s_1) - ... - expand(s_{n-1})``; the others get one seed
``s_j`` each and expand it themselves. An upload of 4 million bytes then costs 4 million bytes and n-1 seeds,
however many parties there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fedsec.errors import UsageError
from fedsec.ring import RING64, KeyedStream, Ring, RingArray, derive_key, ring_of
from fedsec.sharing.additive import check_parties

SEED_BYTES = 32

_PURPOSE = "sharing/compressed"
_PIECE_BYTES = 1 << 16  # masks are made and taken off piece by piece in the second-level cache: twice as fast


def share_compressed(secret: RingArray, seeds: Sequence[bytes]) -> RingArray:
    """Make the vector holder's share, given the seeds of the other parties.

    Args:
        secret: Ring elements of any shape.
        seeds: One seed of 32 fresh random bytes (``fresh_key()``) for each other party, 1 to 6, never used
            before.

    Returns:
        The vector v of the secret's shape and dtype with ``v + sum(expand(seed)) == secret``.

    Raises:
        UsageError: There are not 1 to 6 seeds, one has a wrong length, or two are equal.
        InputError: The secret is not an array of ring elements.

    Security: v and any n-2 seeds, or all n-1 seeds, say nothing about the secret. Two equal seeds would leave
    the lowest bit of every element without a mask, since m + m is even; they are refused (threat 3).
    """
    vector = np.array(secret, order="C")
    Masks(seeds, ring_of(vector)).take_off(vector.reshape(-1))
    return vector


class Masks:
    """Makes the vector holder's share in place, piece by piece, from the front; see ``share_compressed``.

    Args:
        seeds: One seed for each other party, 1 to 6.
        ring: Ring of the secret.

    Raises:
        UsageError: There are not 1 to 6 seeds, one has a wrong length, or two are equal.
    """

    def __init__(self, seeds: Sequence[bytes], ring: Ring) -> None:
        check_parties(len(seeds) + 1)
        if len(set(seeds)) != len(seeds):
            raise UsageError(
                "two of the seeds are equal, which would undo their masks; draw each with fresh_key()"
            )
        self._streams = [_stream(seed, ring) for seed in seeds]
        self._mask = np.empty(_PIECE_BYTES // ring.element_bytes, dtype=ring.dtype)

    def take_off(self, words: RingArray) -> None:
        """Subtract the next elements of every expanded seed from ``words``, shape [any], in place."""
        for start in range(0, words.size, self._mask.size):
            piece = words[start : start + self._mask.size]
            mask = self._mask[: piece.size]
            for stream in self._streams:
                stream.fill(mask)
                np.subtract(piece, mask, out=piece)


def expand(seed: bytes, size: int, ring: Ring = RING64) -> RingArray:
    """Expand a seed into its share.

    Args:
        seed: The party's 32-byte seed.
        size: Number of elements; check it against what is expected before calling, it is allocated.
        ring: Ring of the shared secret. The rings are separated: one seed gives unrelated words in each.

    Returns:
        Ring elements, shape [size].

    Raises:
        UsageError: The seed has a wrong length, or the size is negative.
    """
    return _stream(seed, ring).words(size, ring)


def expand_pieces(seed: bytes, size: int, ring: Ring = RING64) -> Iterator[RingArray]:
    """Yield what :func:`expand` returns piece by piece, in one small buffer that each piece overwrites.

    Raises:
        UsageError: The seed has a wrong length.
    """
    stream = _stream(seed, ring)
    buffer = np.empty(min(size, _PIECE_BYTES // ring.element_bytes), dtype=ring.dtype)
    for start in range(0, size, max(1, buffer.size)):
        piece = buffer[: size - start]
        stream.fill(piece)
        yield piece


def _stream(seed: bytes, ring: Ring) -> KeyedStream:
    if len(seed) != SEED_BYTES:
        raise UsageError(f"the seed of a compressed share has {SEED_BYTES} bytes, got {len(seed)}")
    return KeyedStream(derive_key(seed, purpose=_PURPOSE, context=bytes([ring.bits])))
