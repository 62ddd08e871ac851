"""What the owner of records asks for, and what has been spent of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fedsec.errors import UsageError
from fedsec.privacy.accounting import Epsilon, SampledGaussian, epsilon_of, noise_for


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacySettings:
    """What the owner of the records asks for.

    Attributes:
        l2_norm_clip: Bound on the norm of one record's gradient.
        noise_multiplier: Standard deviation of the noise in units of the clip; None when a target decides.
        target_epsilon: Everything together stays within it; None when the noise multiplier is given.
        delta: At which epsilon is stated.
    """

    l2_norm_clip: float = 1.0
    noise_multiplier: float | None = None
    target_epsilon: float | None = None
    delta: float = 1e-5

    def __post_init__(self) -> None:
        if (self.noise_multiplier is None) == (self.target_epsilon is None):
            raise UsageError("give either noise_multiplier or target_epsilon, and not both")
        if not (self.l2_norm_clip > 0 and math.isfinite(self.l2_norm_clip)):
            raise UsageError(f"l2_norm_clip is above 0 and finite, got {self.l2_norm_clip}")
        if self.noise_multiplier is not None and not 0 <= self.noise_multiplier < math.inf:
            raise UsageError(f"noise_multiplier is 0 or more, got {self.noise_multiplier}")
        if self.target_epsilon is not None and not 0 < self.target_epsilon < math.inf:
            raise UsageError(f"target_epsilon is above 0 and finite, got {self.target_epsilon}")
        if not 0 < self.delta < 1:
            raise UsageError(f"delta is above 0 and below 1, got {self.delta}")


@dataclass(frozen=True, slots=True)
class PrivacyReport:
    """What training has cost so far.

    Attributes:
        epsilon: Of all steps together.
        mechanisms: The steps that were taken.
        assumptions: What the number rests on, in words.
    """

    epsilon: Epsilon
    mechanisms: tuple[SampledGaussian, ...]
    assumptions: str

    def __str__(self) -> str:
        """Return the claim and its assumptions."""
        return f"{self.epsilon}: {self.assumptions}"


class Budget:
    """Keeps account of one owner's records; what has been spent never comes back.

    Args:
        settings: What the owner asks for.
    """

    def __init__(self, settings: PrivacySettings) -> None:
        self.settings = settings
        self._spent: list[SampledGaussian] = []

    def under(self, settings: PrivacySettings) -> Budget:
        """Return the same account under other settings: what either spends, both have spent."""
        other = Budget(settings)
        other._spent = self._spent
        return other

    def plan(self, sampling_rate: float, steps: int) -> SampledGaussian:
        """Return the mechanism of steps to come; nothing is spent yet.

        Raises:
            UsageError: The target epsilon is used up, or no noise reaches it.
        """
        noise = self.settings.noise_multiplier
        if self.settings.target_epsilon is not None:
            noise = noise_for(
                self.settings.target_epsilon, self.settings.delta, sampling_rate, steps, self._spent
            )
        return SampledGaussian(noise or 0.0, sampling_rate, steps)

    def spend(self, mechanism: SampledGaussian, steps: int = 1) -> None:
        """Note that steps of a planned mechanism were taken."""
        for place, one in enumerate(self._spent):
            if replace(one, steps=0) == replace(mechanism, steps=0):
                self._spent[place] = replace(one, steps=one.steps + steps)
                return
        self._spent.append(replace(mechanism, steps=steps))

    def report(self) -> PrivacyReport:
        """Return what was spent so far, and what that number rests on."""
        if all(one.sampling_rate < 1 for one in self._spent):
            how = "each record is in a step's sample independently (Poisson)"
        else:
            how = "no amplification by sampling: each record is taken to be in one batch an epoch"
        return PrivacyReport(
            epsilon_of(self._spent, self.settings.delta),
            tuple(self._spent),
            f"for one record of the training replaced by a null record, their number is public; {how};"
            " records set apart for evaluation are not in this account; noise is floating point",
        )
