"""Skellam noise: integers that can be added to shares before anything is opened.

A Skellam value of variance v is the difference of two Poisson values of mean v/2. The sum of independent ones
is a Skellam value with the sum of their variances, so several parties can each add a part of a noise that
none of them knows (Agarwal, Kairouz and Liu 2021).

**How.** The integers are cut into strips of ``2^bits`` values: of one below variance 2^18, of at most a
32nd of the standard deviation above. A uniform number of 192 bits chooses a strip, by how likely its
likeliest value is; ``bits`` more choose a value in it; it is kept with the probability that it has by the
likeliest one, else all is drawn anew. That is rejection from a histogram (Devroye 1986, section VIII.2.4);
about 1 % is lost.

**How exactly.** Two things differ from the true law:

* the tail beyond the strips, at most 2^-70 by Chernoff's bound, is never drawn;
* within the strips every probability is the true one but for a factor within 1 +- 2^-50, and 1 +- 2^-55 on
  average. A value is lost with a probability q of at most 0.3, and of 0.013 on average, which float64 gives
  to a part in 2^49 (a few products, ``expm1``, a comparison with 53 bits), and the series to 2^-58. How
  likely strips are is computed with integers and decimals, to a part in 2^64. Below variance 2^18 nothing is
  lost, and factors are within 1 +- 2^-100.

The statistical distance of a value to the true law is below 2^-54. To the privacy of d values that adds
d 2^-49 to epsilon and d 2^-70 to delta: for a million 1.8e-9 and 8.5e-16.

Security: whoever knows the noise can take it off. It comes from an AES-256 stream under a key of the
operating system; a key given by the caller is for tests. How long a draw takes tells how many were lost.
"""

from __future__ import annotations

import bisect
import math

import numpy as np
import numpy.typing as npt

from fedsec.errors import UsageError
from fedsec.privacy.skellam_strips import CHOICE_BITS, declined, largest, strips_of
from fedsec.ring import RING64
from fedsec.ring.streams import KeyedStream, fresh_stream

LARGEST_VARIANCE = 2.0**40
_CHUNK = 1 << 15
"""Values that are drawn at a time, so that what is needed for them stays in the cache."""


class SkellamSampler:
    """Independent Skellam values of one variance from a keyed stream.

    Args:
        variance: 0 to 2^40; with 0 every value is 0.
        stream: Where randomness comes from; a fresh key by default. It belongs to one thread.

    Raises:
        UsageError: The variance is out of range.
    """

    def __init__(self, variance: float, stream: KeyedStream | None = None) -> None:
        if not 0 <= variance <= LARGEST_VARIANCE:
            raise UsageError(f"the variance of Skellam noise is between 0 and 2^40, got {variance}")
        self._strips = strips_of(float(variance))
        self._stream = stream or fresh_stream()

    def draw(self, size: int) -> npt.NDArray[np.int64]:
        """Return new values, shape [size].

        Raises:
            UsageError: The size is negative.
        """
        if size < 0:
            raise UsageError(f"zero or more values are drawn, asked for {size}")
        values = np.empty(size, dtype=np.int64)
        for start in range(0, size, _CHUNK):
            self._fill(values[start : start + _CHUNK])
        return values

    def _fill(self, values: npt.NDArray[np.int64]) -> None:
        proposed, lost = self._proposed(len(values))
        values[:] = proposed
        missing = lost
        while len(missing):
            proposed, lost = self._proposed(len(missing))
            values[missing] = proposed
            missing = missing[lost]

    def _proposed(self, size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.intp]]:
        """Return values of which some are rejected, and the places of those."""
        table = self._strips
        chosen = self._chosen(size)
        if table.bits == 0:
            return table.nearest[chosen], np.empty(0, dtype=np.intp)
        words = self._stream.words(size)
        inside = (words & np.uint64((1 << table.bits) - 1)).astype(np.int64)
        values = table.nearest[chosen] + table.signs[chosen] * inside
        doubtful = np.flatnonzero((words >> np.uint64(table.bits)) < table.doubted[chosen])
        return values, doubtful[self._rejected(chosen[doubtful], inside[doubtful])]

    def _chosen(self, size: int) -> npt.NDArray[np.intp]:
        """Return strips. The first of three words decides, unless a strip's end begins with the same."""
        table = self._strips
        words = self._stream.words(size)
        chosen = np.searchsorted(table.thresholds, words, side="right")
        if table.ends:
            # Where none is at or below the word, this looks at the last one, which the word cannot be.
            for place in np.flatnonzero(table.thresholds[chosen - 1] == words):
                rest = int.from_bytes(self._stream.take(CHOICE_BITS // 8 - 8), "big")
                number = (int(words[place]) << (CHOICE_BITS - 64)) + rest
                chosen[place] = bisect.bisect_right(table.ends, number)
        return chosen

    def _rejected(self, chosen: npt.NDArray[np.intp], inside: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which values are rejected, given that they are in doubt.

        One is rejected with probability q and in doubt with probability d; given the doubt that is q / d.
        """
        table = self._strips
        loss = -np.expm1(-declined(table.decline[:, chosen], inside.astype(np.float64)))
        doubt = np.ldexp(table.doubted[chosen].astype(np.float64), table.bits - 64)
        uniform = (self._stream.words(len(chosen), RING64) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return np.asarray(uniform * doubt < loss)


def largest_noise(variance: float, values: int, probability: float = 2.0**-40) -> int:
    """Return the smallest m that no absolute value of several independent ones exceeds, but by a probability.

    By Chernoff's bound and a union over the values; within a few percent of the smallest possible.

    Args:
        variance: Of each value, 0 or more; of the whole noise that is added, when several parties add theirs.
        values: How many are drawn, 1 or more.
        probability: Above 0, below 1.

    Raises:
        UsageError: An argument is out of range.
    """
    if not (0 <= variance < math.inf and values >= 1 and 0 < probability < 1):
        text = f"got {variance}, {values} and {probability}"
        raise UsageError(f"expected a variance of 0 or more, 1 value or more and a probability, {text}")
    return largest(variance, math.log(probability) - math.log(values))
