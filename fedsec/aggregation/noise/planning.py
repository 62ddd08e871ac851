"""From what a server asks for to the noise of its rounds: the words of the clip first, then the variance."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedsec.aggregation.noise.terms import LARGEST_PART, MOST_INFLATION, Noise
from fedsec.errors import RangeError, UsageError
from fedsec.privacy.skellam_accounting import SkellamSum, rounded_l2, variance_for

_INFLATION = 2.0**-10
"""By how much rounding lengthens an update where noise and ring leave room for as fine a scale."""
_FEWEST_WORDS = 2**12
"""Of a clip, however few parameters there are: noise of a few words would cost more than the same in many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HospitalLevel:
    """What a server asks for so that a round tells little about any whole hospital.

    Attributes:
        l2_norm_clip: Largest L2 norm of an update over all arrays together; what is longer is scaled down.
        target_epsilon: All rounds together stay within it; None when the noise multiplier is given.
        noise_multiplier: Standard deviation of the guaranteed noise, in units of the norm after rounding;
            None when a target decides.
        delta: At which epsilon is stated.
        colluding: How many aggregators may put their noise together with the server; 0 for all but one.
    """

    l2_norm_clip: float
    target_epsilon: float | None = None
    noise_multiplier: float | None = None
    delta: float = 1e-5
    colluding: int = 0

    def __post_init__(self) -> None:
        if (self.noise_multiplier is None) == (self.target_epsilon is None):
            raise UsageError("give either noise_multiplier or target_epsilon, and not both")
        for name in ("l2_norm_clip", "target_epsilon", "noise_multiplier"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{name} is above 0 and finite, got {value}")
        if not 0 < self.delta < 1:
            raise UsageError(f"delta is above 0 and below 1, got {self.delta}")
        if self.colluding < 0:
            raise UsageError(f"colluding is 0 or more, got {self.colluding}")


def plan_noise(
    wanted: HospitalLevel, *, words: int, rounds: int, hospitals: int, aggregators: int, ring_bits: int
) -> Noise:
    """Choose the finest scale that noise and ring leave room for, and the noise for it.

    Args:
        wanted: What is asked for.
        words: Words of an update, all arrays together.
        rounds: How many rounds the target is for.
        hospitals: The largest number of hospitals in a round.
        aggregators: How many add noise.
        ring_bits: 32 or 64.

    Raises:
        UsageError: No noise reaches the target, or as many may collude as there are.
        RangeError: Not even the coarsest scale at which rounding costs at most 1 % fits.
    """
    colluding = wanted.colluding or aggregators - 1
    if not colluding < aggregators:
        raise UsageError(f"colluding = {colluding} of {aggregators} aggregators: one at least must be honest")
    rounding = math.sqrt(words) / 2
    finest = max(_FEWEST_WORDS, math.ceil(rounding / _INFLATION))
    coarsest = math.ceil(rounding / MOST_INFLATION)
    clip_words = finest
    while True:
        noise = Noise(
            l2_clip=float(wanted.l2_norm_clip),
            clip_words=clip_words,
            variance=_variance(wanted, clip_words, words, rounds),
            aggregators=aggregators,
            colluding=colluding,
        )
        try:
            noise.check(hospitals, ring_bits)
        except RangeError as error:
            if clip_words <= coarsest:
                raise RangeError(
                    f"{words} parameters with this much noise do not fit: {error}. Rounding on a coarser"
                    f" scale would lengthen an update by more than {MOST_INFLATION:.0%}"
                ) from None
            clip_words = max(coarsest, _coarser(noise))
        else:
            return noise


def sum_of(noise: Noise, words: int) -> SkellamSum:
    """Return what one round with this noise is to the accountant."""
    return SkellamSum.of(noise.l2_sensitivity(words), words, noise.variance)


def _variance(wanted: HospitalLevel, clip_words: int, words: int, rounds: int) -> float:
    length = rounded_l2(clip_words, words)
    if wanted.noise_multiplier is not None:
        return (wanted.noise_multiplier * length) ** 2
    one = SkellamSum.of(length, words, 1.0)
    target = wanted.target_epsilon or 0.0
    return variance_for(target, wanted.delta, one.l2_sensitivity, one.l1_sensitivity, rounds)


def _coarser(noise: Noise) -> int:
    """Return the next number of words to try: what fits the sampler, or else half."""
    fits = noise.clip_words * math.sqrt(LARGEST_PART / noise.part) * 0.99
    return int(fits) if fits < noise.clip_words else noise.clip_words // 2
