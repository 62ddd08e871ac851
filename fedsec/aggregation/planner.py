"""The planner: what stands in the shared vector, and why the sum of the vectors cannot wrap.

A hospital's vector is ``(w * update, w, w * metrics, checksum)``. Every word but the checksum lies within
``+-largest_word = floor((2^(k-1) - 1) / hospitals)``, so the sum over all hospitals stays below 2^(k-1)
and the opened sum is the integer sum. The scale of a tensor with clip ``C`` is
``largest_word / (largest_weight * C)`` and rounding costs at most half a word a hospital, which makes the
error of the mean at most ``hospitals * largest_weight / (2^k * mean weight) * C``.

In a round with noise the scale comes from the noise (``noise.planning``), one for all arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from fedsec.aggregation.noise.terms import Noise
from fedsec.errors import RangeError
from fedsec.ring import Ring

ENCODING_VERSION = 2
COARSEST_ERROR = 2.0**-19
"""The largest error bound that a plan may have, as a part of the clip: 2^-20 of the range of twice the clip.

In 32 bits that admits ``hospitals * largest weight / smallest mean weight`` up to 8192.
"""
_FINEST_WORD = 2**48
"""No word is larger, whatever the ring: float64 then still rounds every product to the right integer."""
_LARGEST = 2.0**100

WeightRule = Literal["examples", "bucketed", "equal"]


class ArraySpec(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One array of the model: ``clip`` bounds the absolute value of its update and is a public constant."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    clip: float

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


class MetricSpec(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One metric and the public range its values lie in."""

    name: str
    low: float
    high: float

    @property
    def clip(self) -> float:
        """The largest absolute value in the range."""
        return max(abs(self.low), abs(self.high))


class Encoding(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The planner's result, part of every announcement. All its fields are public constants of the round."""

    version: int
    ring_bits: int
    weights: WeightRule
    hospitals: int
    clip: float
    largest_weight: int
    smallest_mean_weight: float
    noise: Noise | None = None

    @property
    def ring(self) -> Ring:
        """The ring of the words."""
        return Ring(self.ring_bits)

    @property
    def largest_word(self) -> int:
        """The largest absolute value of one hospital's word."""
        return min(((1 << (self.ring_bits - 1)) - 1) // self.hospitals, _FINEST_WORD)

    @property
    def error_bound(self) -> float:
        """The largest error of the mean for the largest clip and the smallest mean weight of the plan."""
        return 0.5 / (self.scale(self.clip) * self.smallest_mean_weight)

    def scale(self, clip: float) -> float:
        """Return the words a unit of ``weight * value`` is worth, for values within ``+-clip``."""
        if self.noise is not None:
            return self.noise.clip_words / self.noise.l2_clip
        return self.largest_word / (self.largest_weight * clip)

    def error_bound_for(self, clip: float, included: int, total_weight: int) -> float:
        """Return the largest error of a mean over ``included`` hospitals with that total weight.

        With noise it is that of the noise as well, exceeded with the probability that ``noise`` states.
        """
        noise = 0 if self.noise is None else self.noise.tail
        return (0.5 * included + noise) / (self.scale(clip) * total_weight)

    def weight_of(self, num_examples: int) -> int:
        """Return the aggregation weight of a hospital with ``num_examples`` examples.

        Raises:
            RangeError: The count is not an integer between 1 and the largest weight of the plan.
        """
        if (
            isinstance(num_examples, bool)
            or not isinstance(num_examples, int | np.integer)
            or num_examples < 1
        ):
            msg = "the number of examples must be an integer of at least 1; nothing was sent"
            raise RangeError(msg)
        weight = _weight(int(num_examples), self.weights)
        if weight > self.largest_weight:
            msg = f"the weight exceeds the largest one of this round, {self.largest_weight}; nothing was sent"
            raise RangeError(msg)
        return weight

    def check(self) -> None:
        """Check that no sum can wrap and that the mean is precise enough to be of use.

        Raises:
            RangeError: The parameters do not fit the ring.
        """
        if self.version != ENCODING_VERSION or self.ring_bits not in {32, 64}:
            expected = f"encoding version {ENCODING_VERSION} over 32 or 64 bits"
            msg = f"expected {expected}, not version {self.version} over {self.ring_bits}"
            raise RangeError(msg)
        _check_positive("hospitals", self.hospitals)
        _check_positive("largest_weight", self.largest_weight)
        _check_positive("clip", self.clip)
        _check_positive("smallest_mean_weight", self.smallest_mean_weight)
        if self.largest_weight > self.largest_word:
            msg = (
                f"{self.hospitals} hospitals of weight up to {self.largest_weight} can wrap a sum in "
                f"{self.ring_bits} bits: lower the largest weight to {self.largest_word} or take 64 bits"
            )
            raise RangeError(msg)
        if self.smallest_mean_weight > self.largest_weight:
            msg = f"the smallest mean weight exceeds the largest weight, {self.largest_weight}"
            raise RangeError(msg)
        if self.noise is not None:
            # Its scale is as fine as the noise asks for; the mean is off by the noise, not by rounding.
            self.noise.check(self.hospitals, self.ring_bits)
        elif self.error_bound > COARSEST_ERROR * self.clip:
            msg = (
                f"the mean would be off by up to {self.error_bound / self.clip:.2g} of the clip, more than "
                f"{COARSEST_ERROR:.2g}: raise the smallest mean weight, lower the largest or take 64 bits"
            )
            raise RangeError(msg)


def plan_encoding(
    hospitals: int,
    clip: float,
    largest_weight: int,
    smallest_mean_weight: float,
    ring_bits: int = 32,
    *,
    weights: WeightRule = "examples",
    noise: Noise | None = None,
) -> Encoding:
    """Choose the scale so that the sum over all hospitals cannot wrap.

    Args:
        hospitals: The largest number of hospitals in a round.
        clip: The largest clip of any tensor, in units of the update.
        largest_weight: The largest weight (examples) a hospital may have; 1 when ``weights`` is "equal".
        smallest_mean_weight: The smallest mean weight of a round for which the error bound is stated.
        ring_bits: 32 or 64.
        weights: "examples", "bucketed" (rounded down to a power of two) or "equal" (ones).
        noise: What every aggregator adds, if anything; its norm is then the clip.

    Returns:
        The encoding; ``error_bound`` is N * w_max / (2^k * w_mean) * C.

    Raises:
        RangeError: The parameters do not fit the ring.
    """
    if weights == "equal":
        largest_weight, smallest_mean_weight = 1, 1.0
    encoding = Encoding(
        version=ENCODING_VERSION,
        ring_bits=ring_bits,
        weights=weights,
        hospitals=hospitals,
        clip=float(clip),
        largest_weight=largest_weight,
        smallest_mean_weight=float(smallest_mean_weight),
        noise=noise,
    )
    encoding.check()
    return encoding


@dataclass(frozen=True, slots=True)
class Layout:
    """What stands where in the shared vector of a round; ``arrays`` is empty in an evaluation round."""

    encoding: Encoding
    arrays: tuple[ArraySpec, ...]
    metrics: tuple[MetricSpec, ...]

    @property
    def payload_words(self) -> int:
        """Words before the checksum: updates, weight, metrics."""
        return self.update_words + 1 + len(self.metrics)

    @property
    def update_words(self) -> int:
        """Words of the updates, which stand first: all that stays in shares in a sealed round."""
        return sum(spec.size for spec in self.arrays)

    @property
    def words(self) -> int:
        """Words of the whole vector."""
        return self.payload_words + 1

    @property
    def vector_bytes(self) -> int:
        """Bytes of the whole vector."""
        return self.words * self.encoding.ring.element_bytes


def _weight(num_examples: int, rule: WeightRule) -> int:
    if rule == "equal":
        return 1
    return 1 << (num_examples.bit_length() - 1) if rule == "bucketed" else num_examples


def _check_positive(name: str, value: float) -> None:
    # Also not so large or small that a product or quotient of two would be infinite or zero.
    if not 1 / _LARGEST <= value <= _LARGEST:
        msg = f"{name} must be positive and of a sensible size, 2^-100 to 2^100, not {value}"
        raise RangeError(msg)
