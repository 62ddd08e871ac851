"""What an announcement says about noise, and when that is consistent.

A hospital's update is clipped to the L2 norm C over all arrays together, which is worth ``clip_words`` words
of the ring, and rounded to integers. Rounding lengthens it by at most sqrt(d)/2 for d words, so one hospital
changes the sum by at most ``clip_words + sqrt(d)/2``. Each of n aggregators adds an independent
Skellam(v / (n - t)) to every word of its share: with the parts of any t of them known, a Skellam(v) is left,
as Skellam variables add up to one with the sum of the variances (Agarwal, Kairouz and Liu 2021).
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import msgspec

from fedsec.errors import RangeError
from fedsec.privacy.skellam_accounting import rounded_l2

if TYPE_CHECKING:
    from fedsec.aggregation.announcement import Announcement

MOST_INFLATION = 0.01
"""By how much rounding may lengthen a clipped update, as a part of the clip: it costs as much epsilon."""
MOST_CLIP_WORDS = 2**40
LARGEST_PART = 2.0**40
"""Largest variance that one aggregator adds: the sampler covers a standard deviation of 2^20."""
TAIL_WORDS, TAIL = 2.0**50, 2.0**-40
"""A sum wraps with a probability of at most 2^-40 in 2^50 words: 4 million rounds of the largest vector."""


class Noise(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The noise of a round, part of its encoding. All fields are public constants.

    Attributes:
        l2_clip: Largest L2 norm of an update over all arrays together, in units of the update.
        clip_words: What that is worth in words: ``clip_words / l2_clip`` words are one unit, in every array.
        variance: What is left for every word, in words squared, when a coalition takes its own parts off.
        aggregators: How many add noise: all of the round.
        colluding: How many of them may be in the coalition.
    """

    l2_clip: float
    clip_words: int
    variance: float
    aggregators: int
    colluding: int

    @property
    def part(self) -> float:
        """The variance that each aggregator adds."""
        return self.variance / (self.aggregators - self.colluding)

    @property
    def total(self) -> float:
        """The variance of the opened sum."""
        return self.part * self.aggregators

    @property
    def tail(self) -> int:
        """A word's noise exceeds this with a probability that :data:`TAIL_WORDS` makes :data:`TAIL`."""
        return _tail(self.total)

    def l2_sensitivity(self, words: int) -> float:
        """Return by how much one hospital changes the sum of ``words`` rounded words, as an L2 norm."""
        return rounded_l2(self.clip_words, words)

    def multiplier(self, words: int) -> float:
        """Return the guaranteed standard deviation in units of :meth:`l2_sensitivity`."""
        return math.sqrt(self.variance) / self.l2_sensitivity(words)

    def check(self, hospitals: int, ring_bits: int) -> None:
        """Check that the terms make sense and that no sum can wrap, but with the stated probability.

        Raises:
            RangeError: They do not fit.
        """
        if not (0 < self.l2_clip < math.inf and 1 <= self.clip_words <= MOST_CLIP_WORDS):
            raise RangeError(
                f"the noise is for an L2 norm of {self.l2_clip} in {self.clip_words} words: expected a norm"
                f" above 0 and 1 to {MOST_CLIP_WORDS} words"
            )
        if not 1 <= self.colluding < self.aggregators:
            raise RangeError(
                f"noise for {self.colluding} colluding of {self.aggregators} aggregators: expected 1 or more,"
                " and one fewer than all"
            )
        if not (self.variance > 0 and self.part <= LARGEST_PART):
            raise RangeError(
                f"an aggregator would add noise of variance {self.part:.3g}: expected above 0 and up to 2^40."
                " A smaller noise multiplier or fewer parameters need less"
            )
        largest = hospitals * math.ceil(self.clip_words * (1 + MOST_INFLATION)) + self.tail
        if largest >= 1 << (ring_bits - 1):
            raise RangeError(
                f"{hospitals} hospitals of up to {self.clip_words} words and noise of up to {self.tail} can"
                f" wrap a sum in {ring_bits} bits: take 64 bits or less noise"
            )


def noise_faults(announcement: Announcement) -> list[tuple[bool, str]]:
    """Return what could be wrong with the noise of an announcement, each with its text."""
    noise, layout = announcement.encoding.noise, announcement.layout
    if noise is None:
        return []
    kinds = {spec.dtype for spec in announcement.arrays}
    return [
        (announcement.phase != "train", "only training rounds have noise"),
        (announcement.encoding.weights != "equal", "with noise all weights are equal"),
        (bool(announcement.metrics), "with noise no metrics are opened: they have none"),
        (announcement.sealed is not None, "a sealed round has no noise: its sum is not opened"),
        (
            noise.aggregators != len(announcement.aggregators),
            f"noise of {noise.aggregators} aggregators in a round of {len(announcement.aggregators)}",
        ),
        (
            any(spec.clip != noise.l2_clip for spec in announcement.arrays),
            "with noise the clip of every array is the L2 clip",
        ),
        (
            announcement.encoding.clip != noise.l2_clip,
            "with noise the clip of the encoding is the L2 clip",
        ),
        (not kinds <= {"float16", "float32", "float64"}, "with noise every array is floating-point"),
        (
            # Squared: shapes are not checked yet, and any integer may be compared.
            layout.update_words > (2 * MOST_INFLATION * noise.clip_words) ** 2,
            f"rounding {layout.update_words} words makes an update of {noise.clip_words} words too long",
        ),
    ]


@functools.lru_cache(maxsize=256)
def _tail(variance: float) -> int:
    # Loaded when the first round has noise: an aggregator without any needs no sampler.
    from fedsec.privacy.skellam import largest_noise  # noqa: PLC0415 - as said above

    return largest_noise(variance, int(TAIL_WORDS), TAIL)
