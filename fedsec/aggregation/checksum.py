"""The checksum word: it shows whether the parts of an upload belong together, and nothing else.

The last word of a vector is t = <rho, x> mod 2^k with public odd words rho. Each aggregator computes
<rho, part> - t_part over its own part; these differences are shares of zero for a consistent upload and
independent of x, since any n-1 of them are functions of parts that are uniform. Any 32 bytes are a valid
seed, so without this one wrong seed would ruin a round unnoticed.
"""

from __future__ import annotations

import numpy as np

from fedsec.aggregation.encoding import Layout
from fedsec.ring import KeyedStream, RingArray, derive_key


class Checksum:
    """The coefficients rho of one round.

    Args:
        layout: The layout of the round.
        announcement: The announcement digest; it keys rho, so nobody chooses rho after seeing an update.
    """

    def __init__(self, layout: Layout, announcement: bytes) -> None:
        self._ring = layout.encoding.ring
        key = derive_key(announcement, purpose="aggregation/checksum")
        self._rho = KeyedStream(key).words(layout.payload_words, self._ring)
        self._rho |= self._ring.dtype.type(1)

    def append(self, words: RingArray) -> RingArray:
        """Return the words with their checksum word appended, shape [payload_words + 1]."""
        return np.append(words, self._ring.dtype.type(self._dot(words)))

    def difference(self, vector: RingArray) -> int:
        """Return <rho, x> - t mod 2^k for a vector or a share of one, shape [payload_words + 1]."""
        return (self._dot(vector[:-1]) - int(vector[-1])) % self._ring.modulus

    def _dot(self, words: RingArray) -> int:
        return int(np.dot(words, self._rho))
