"""Epsilon of a run: every mechanism that touched a hospital's records, composed.

Adjacency is example-level: two data sets of the same public size of which one has a null record in the place
of one record. For the mechanisms here, which add up contributions bounded by a clip, that is the adjacency by
adding or removing one record, and this is how dp-accounting computes it.

Two accountants, always both: privacy loss distributions (PLD; Koskela et al. 2020, Doroshenko et al. 2022)
are tight and are what is claimed, Renyi divergences (RDP; Mironov 2017) are a tenth larger and check them.
The Gaussian approximation (central limit) is never used: it under-reports.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedsec.errors import UsageError

_FINE_INTERVAL, _COARSE_INTERVAL = 1e-4, 1e-3
"""Discretisation of the privacy loss for a claim, and while a noise multiplier is searched."""
_ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 512, 1024)
"""Of Renyi divergences, when records are sampled: the series does not always converge between integers."""
_FRACTIONS = tuple(1 + tenth / 10 for tenth in range(1, 100) if tenth % 10)
"""Orders between, which large epsilons need; there is no series without sampling."""
_SMALLEST_NOISE, _LARGEST_NOISE = 0.05, 1e4
_NOISE_STEP = 1e-3
"""Noise multipliers are found to a thousandth, upwards."""
_PLD_SMALLEST_NOISE = 0.2
"""Below it the loss distribution has too many points to be worth having: such noise protects nothing."""


@dataclass(frozen=True, slots=True)
class SampledGaussian:
    """Steps of DP-SGD: a Poisson sample of the records, clipped contributions, Gaussian noise on their sum.

    Attributes:
        noise_multiplier: Standard deviation of the noise, in units of the clip.
        sampling_rate: Probability with which each record is in a step's sample, independently; 1 means every
            step sees every record, as for a fixed order of batches with each record once a pass.
        steps: How many.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        if not (self.noise_multiplier >= 0 and math.isfinite(self.noise_multiplier)):
            raise UsageError(f"a noise multiplier is 0 or more, got {self.noise_multiplier}")
        if not 0 < self.sampling_rate <= 1:
            raise UsageError(f"a sampling rate is above 0 and at most 1, got {self.sampling_rate}")
        if self.steps < 0:
            raise UsageError(f"a number of steps is 0 or more, got {self.steps}")


@dataclass(frozen=True, slots=True)
class Epsilon:
    """What a run costs at one delta.

    Attributes:
        value: The claim, by PLD; infinite without noise.
        rdp: The same by RDP, as a check; at least as large but for rounding.
        delta: At which both hold.
    """

    value: float
    rdp: float
    delta: float

    def __str__(self) -> str:
        """Return the claim with three decimals, rounded up."""
        return f"epsilon {rounded_up(self.value)} at delta {self.delta:g}"


def rounded_up(epsilon: float, decimals: int = 3) -> str:
    """Return an epsilon as text, never smaller than it is."""
    if not math.isfinite(epsilon):
        return "unbounded"
    scale = 10**decimals
    return f"{math.ceil(epsilon * scale - 1e-9) / scale:.{decimals}f}"


def epsilon_of(mechanisms: Sequence[SampledGaussian], delta: float) -> Epsilon:
    """Return what mechanisms cost together.

    Args:
        mechanisms: In any order; those without steps cost nothing.
        delta: Above 0, below 1; at most one over the number of records makes sense.

    Raises:
        UsageError: If delta is out of range.
    """
    _check_delta(delta)
    used = [one for one in mechanisms if one.steps]
    if not used:
        return Epsilon(0.0, 0.0, delta)
    if any(one.noise_multiplier == 0 for one in used):
        return Epsilon(math.inf, math.inf, delta)
    return _together(tuple(used), delta)


@functools.lru_cache(maxsize=1024)
def _together(used: tuple[SampledGaussian, ...], delta: float) -> Epsilon:
    """Return what steps with noise cost; hospitals of one size share the tenths of a second that it takes."""
    rdp = _epsilon(_rdp(used), used, delta)
    if any(one.noise_multiplier < _PLD_SMALLEST_NOISE for one in used):
        return Epsilon(rdp, rdp, delta)
    return Epsilon(_epsilon(_pld(_FINE_INTERVAL), used, delta), rdp, delta)


def noise_for(
    target: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    spent: Sequence[SampledGaussian] = (),
) -> float:
    """Return the smallest noise multiplier with which steps stay within a target epsilon.

    RDP gives the bracket, PLD decides.

    Args:
        target: Epsilon of everything together, above 0.
        delta: Of everything together.
        sampling_rate: Of the steps to come.
        steps: How many are to come, at least 1.
        spent: What was done before; it counts.

    Raises:
        UsageError: If the target is used up already, or no noise reaches it.
    """
    _check_delta(delta)
    if not (target > 0 and math.isfinite(target)):
        raise UsageError(f"a target epsilon is above 0 and finite, got {target}")
    before = epsilon_of(spent, delta).value
    if before >= target:
        raise UsageError(
            f"the target of epsilon {target:g} is used up: what was done costs {rounded_up(before)} at"
            f" delta {delta:g}. No further step is possible within it"
        )

    def within(noise: float, interval: float | None) -> bool:
        mechanisms = [*spent, SampledGaussian(noise, sampling_rate, steps)]
        accountant = _rdp(mechanisms) if interval is None else _pld(interval)
        return _epsilon(accountant, mechanisms, delta) <= target

    high = _bisected(_SMALLEST_NOISE, _LARGEST_NOISE, 0.01, lambda noise: within(noise, None))
    if high is None:
        raise UsageError(f"no noise multiplier up to {_LARGEST_NOISE:g} reaches epsilon {target:g}")
    # RDP over-estimates, so PLD needs at most as much noise; rarely more than a quarter less.
    low = max(_PLD_SMALLEST_NOISE, 0.6 * high)
    if high <= low:
        return high
    found = _bisected(low, high, _NOISE_STEP, lambda noise: within(noise, _COARSE_INTERVAL))
    noise = high if found is None else min(found, high)
    # The search is coarse: what it found has to hold at the resolution of the claim.
    while not within(noise, _FINE_INTERVAL):
        noise += _NOISE_STEP
    return noise


def _bisected(low: float, high: float, step: float, within: Any) -> float | None:
    """Return the smallest noise in [low, high], to ``step``, that is enough; None when ``high`` is not."""
    if not within(high):
        return None
    if within(low):
        return low
    while high - low > step * max(1.0, low):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if within(middle) else (middle, high)
    return high


def _epsilon(accountant: Any, mechanisms: Sequence[SampledGaussian], delta: float) -> float:
    import dp_accounting  # noqa: PLC0415 - it brings scipy, and a service that trains nothing needs neither

    for one in mechanisms:
        event = dp_accounting.GaussianDpEvent(one.noise_multiplier)
        if one.sampling_rate < 1:
            event = dp_accounting.PoissonSampledDpEvent(one.sampling_rate, event)
        accountant.compose(event, one.steps)
    return float(accountant.get_epsilon(delta))


def _pld(interval: float) -> Any:
    from dp_accounting import NeighboringRelation, pld  # noqa: PLC0415 - as above

    return pld.PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=interval)


def _rdp(mechanisms: Sequence[SampledGaussian]) -> Any:
    from dp_accounting import NeighboringRelation, rdp  # noqa: PLC0415 - as above

    sampled = any(one.sampling_rate < 1 for one in mechanisms)
    return rdp.RdpAccountant(
        _ORDERS if sampled else _FRACTIONS + _ORDERS, NeighboringRelation.ADD_OR_REMOVE_ONE
    )


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise UsageError(f"delta is above 0 and below 1, got {delta}")
