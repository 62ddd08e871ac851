"""Poisson samples and Gaussian noise from keyed streams.

Security: who knows which records a step saw, or can guess its noise, is not bound by epsilon. Both come from
AES-256 streams under keys of the operating system, never from numpy's or TensorFlow's generators.

The noise is floating point: its values have gaps, and what reads the last bits of a published sum could in
principle tell two neighbouring data sets apart (Mironov 2012). That is a known limit, as in every DP-SGD in
use; sums that are published under secure aggregation can have integer noise instead.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedsec.errors import UsageError
from fedsec.ring import RING32, RING64
from fedsec.ring.streams import KeyedStream, fresh_stream


class PoissonSampler:
    """Draws each record independently with one probability, a step at a time.

    Args:
        records: How many there are, at least 1.
        rate: Probability of each, above 0 and at most 1. It is rounded down to a multiple of 2^-32, so the
            accounted rate is never smaller than the real one.
        stream: Where randomness comes from; a fresh key by default.
    """

    def __init__(self, records: int, rate: float, stream: KeyedStream | None = None) -> None:
        if records < 1 or not 0 < rate <= 1:
            raise UsageError(f"expected at least one record and a rate in (0, 1], got {records} and {rate}")
        self._words = np.empty(records, dtype=RING32.dtype)
        self._threshold = int(rate * 2**32)
        self._stream = stream or fresh_stream()

    def draw(self) -> npt.NDArray[np.intp]:
        """Return the records of the next step, in ascending order; there may be none."""
        self._stream.fill(self._words)
        if self._threshold == 2**32:
            return np.arange(len(self._words))
        return np.flatnonzero(self._words < np.uint32(self._threshold))


class GaussianNoise:
    """Independent normal values from a keyed stream, by the transform of Box and Muller (1958).

    Args:
        size: How many values one :meth:`draw` gives.
        stream: Where randomness comes from; a fresh key by default.
    """

    def __init__(self, size: int, stream: KeyedStream | None = None) -> None:
        self._pairs = (size + 1) // 2
        self._size = size
        self._words = np.empty((2, self._pairs), dtype=RING64.dtype)
        self._stream = stream or fresh_stream()

    def draw(self, deviation: float) -> npt.NDArray[np.float64]:
        """Return new values with mean 0 and this standard deviation, shape [size]."""
        self._stream.fill(self._words)
        # 53 bits each, moved into (0, 1]: the logarithm of 0 would be an infinite noise.
        uniform = ((self._words >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53
        radius = deviation * np.sqrt(-2.0 * np.log(uniform[0]))
        angle = 2.0 * np.pi * uniform[1]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[: self._size]
