"""A hospital's update within the L2 norm that the noise is made for, also after rounding."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fedsec.aggregation.noise.terms import Noise
from fedsec.errors import RangeError

_FARTHEST = 2.0**60
"""Values count as so many clips at most: their squares then have a sum."""
_BELOW = 1 - 2.0**-30
"""What is scaled down ends this much inside of the norm: products in float64 must not bring it out."""


class NormClip:
    """Scales an update, all arrays together, down to the norm of a round's noise.

    Args:
        noise: The noise of the round.
        words: Words of the update.
    """

    def __init__(self, noise: Noise, words: int) -> None:
        self._noise, self._words = noise, words
        self._squares, self._rounded = 0.0, 0.0

    def measure(self, piece: npt.NDArray[np.float64]) -> None:
        """Take a piece of the update as training made it; the piece is used up.

        Raises:
            RangeError: A value is not finite. Nothing was sent.
        """
        if not np.isfinite(piece).all():
            raise RangeError("the update holds NaN or infinity; nothing was sent")
        self._limit(piece)
        self._squares += float(piece @ piece)

    @property
    def factor(self) -> float:
        """What the update is multiplied by, once all pieces are measured; 1 when it is short enough."""
        norm = math.sqrt(self._squares)
        return 1.0 if norm <= self._noise.l2_clip * _BELOW else self._noise.l2_clip * _BELOW / norm

    def shrink(self, piece: npt.NDArray[np.float64]) -> None:
        """Scale a piece down as the whole update is; in place."""
        if self.factor < 1:
            self._limit(piece)
            np.multiply(piece, self.factor, out=piece)

    def add_rounded(self, piece: npt.NDArray[np.float64]) -> None:
        """Take a piece as it goes out: integers."""
        self._rounded += float(piece @ piece)

    def check_rounded(self) -> None:
        """Check what goes out against the sensitivity that epsilon is computed from.

        Rounding to nearest cannot exceed it: this is for mistakes in what comes before.

        Raises:
            RangeError: The update is too long. Nothing was sent.
        """
        if math.sqrt(self._rounded) > self._noise.l2_sensitivity(self._words):
            raise RangeError("the rounded update is longer than the noise is made for; nothing was sent")

    def _limit(self, piece: npt.NDArray[np.float64]) -> None:
        farthest = _FARTHEST * self._noise.l2_clip
        np.clip(piece, -farthest, farthest, out=piece)
