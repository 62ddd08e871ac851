"""The checksum word: it shows whether the parts of an upload belong together, and nothing else.

The last word of a vector is t = <rho, x> mod 2^k with public odd words rho. Each aggregator computes
<rho, part> - t_part over its own part; these differences are shares of zero for a consistent upload and
independent of x, since any n-1 of them are functions of parts that are uniform. Any 32 bytes are a valid
seed, so without this one wrong seed would ruin a round unnoticed.
"""

from __future__ import annotations

import numpy as np

from fedsec.aggregation.planner import Layout
from fedsec.ring import KeyedStream, Ring, RingArray, derive_key

PIECE_WORDS = 1 << 16
"""Vectors are worked on in pieces that stay in the second-level cache, several passes each."""


class Checksum:
    """The coefficients rho of one round.

    Args:
        layout: The layout of the round.
        announcement: The announcement digest; it keys rho, so nobody chooses rho after seeing an update.
        keep: Keep rho in memory, one word each, for whoever needs it for one upload after the other.
    """

    def __init__(self, layout: Layout, announcement: bytes, *, keep: bool = False) -> None:
        self._ring, self._words = layout.encoding.ring, layout.payload_words
        self._key = derive_key(announcement, purpose="aggregation/checksum")
        self._rho = self._made(self._words) if keep else None

    def append(self, words: RingArray) -> RingArray:
        """Return the words with their checksum word appended, shape [payload_words + 1]."""
        running = self.running()
        running.add(words)
        return np.append(words, self._ring.dtype.type(running.value))

    def difference(self, vector: RingArray) -> int:
        """Return <rho, x> - t mod 2^k for a vector or a share of one, shape [payload_words + 1]."""
        running = self.running()
        running.add(vector)
        return running.value

    def running(self) -> RunningChecksum:
        """Return a checksum of nothing yet, for words that come piece by piece."""
        return RunningChecksum(self._words, self._ring, self._key, self._rho)

    def _made(self, words: int) -> RingArray:
        rho = KeyedStream(self._key).words(words, self._ring)
        rho |= self._ring.dtype.type(1)
        return rho


class RunningChecksum:
    """<rho, x> of the words so far, minus the checksum word once that has come.

    Args:
        words: Words before the checksum word.
        ring: Their ring.
        key: Makes the coefficients: one stream from its beginning for every upload, as they are public.
        rho: The coefficients, if they are kept.
    """

    def __init__(self, words: int, ring: Ring, key: bytes, rho: RingArray | None) -> None:
        self._words, self._ring, self._key, self._rho = words, ring, key, rho
        self._stream: KeyedStream | None = None
        self._at, self._sum = 0, 0
        self._scratch: RingArray | None = None

    @property
    def value(self) -> int:
        """The sum so far, mod 2^k."""
        return self._sum % self._ring.modulus

    def add(self, words: RingArray) -> None:
        """Take the next words, of any number; what is behind the checksum word is not looked at."""
        own = words[: max(0, self._words - self._at)]
        for start in range(0, own.size, PIECE_WORDS):
            piece = own[start : start + PIECE_WORDS]
            product = self._buffer(piece)
            np.multiply(piece, self._coefficients(product), out=product)
            self._sum += int(np.add.reduce(product, dtype=product.dtype))
            self._at += piece.size
        if self._at == self._words and words.size > own.size:
            self._sum -= int(words[own.size])
            self._at += 1

    def _coefficients(self, buffer: RingArray) -> RingArray:
        if self._rho is not None:
            return self._rho[self._at : self._at + buffer.size]
        if self._stream is None:
            self._stream = KeyedStream(self._key)
        self._stream.fill(buffer)
        np.bitwise_or(buffer, 1, out=buffer)
        return buffer

    def _buffer(self, piece: RingArray) -> RingArray:
        if self._scratch is None:
            self._scratch = np.empty(PIECE_WORDS, dtype=piece.dtype)
        return self._scratch[: piece.size]
