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
        lenient: Count what is not finite as 0, and scale down what is too long, instead of refusing it.

    Attributes:
        not_finite: How many such values were measured.
    """

    def __init__(self, noise: Noise, words: int, *, lenient: bool = False) -> None:
        self._noise, self._words, self._lenient = noise, words, lenient
        self._squares, self._rounded = 0.0, 0.0
        self.not_finite = 0

    def measure(self, piece: npt.NDArray[np.float64]) -> None:
        """Take a piece of the update as training made it; the piece is used up.

        Raises:
            RangeError: A value is not finite, and the clip is not lenient. Nothing was sent.
        """
        if wrong := piece.size - int(np.count_nonzero(np.isfinite(piece))):
            if not self._lenient:
                raise RangeError("the update holds NaN or infinity; nothing was sent")
            self.not_finite += wrong
            self.make_finite(piece)
        self._limit(piece)
        self._squares += float(piece @ piece)

    @property
    def factor(self) -> float:
        """What the update is multiplied by, once all pieces are measured; 1 when it is short enough."""
        norm = math.sqrt(self._squares)
        return 1.0 if norm <= self._noise.l2_clip * _BELOW else self._noise.l2_clip * _BELOW / norm

    def check_measured(self) -> None:
        """Check the length of the whole update, once all pieces are measured.

        Raises:
            RangeError: It is too long, and the clip is not lenient. Nothing was sent.
        """
        if self.factor < 1 and not self._lenient:
            raise RangeError(
                f"the update's L2 norm is above this round's {self._noise.l2_clip:g}, or within a part in a"
                " billion of it: scale it down further, or submit with saturate=True; nothing was sent"
            )

    def make_finite(self, piece: npt.NDArray[np.float64]) -> None:
        """Replace what is not finite in a piece of the measured update by 0; in place."""
        if self.not_finite:
            np.nan_to_num(piece, copy=False, nan=0.0, posinf=0.0, neginf=0.0)

    def shrink(self, piece: npt.NDArray[np.float64]) -> None:
        """Scale a finite piece down as the whole update is; in place."""
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
