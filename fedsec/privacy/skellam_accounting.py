"""Epsilon of sums that are opened with Skellam noise.

Adjacency is a whole hospital: its contribution, an integer vector of bounded norms, is replaced by zeros, and
who takes part is public. A sum with noise of variance v in each word then has a Renyi divergence of order
alpha, an integer of 2 or more, of at most ::

    alpha D2^2 / (2 v) + min(((2 alpha - 1) D2^2 + 6 D1) / (4 v^2), 3 D1 / (2 v))

where D2 and D1 bound the vector's L2 and L1 norm (Agarwal, Kairouz and Liu 2021, theorem 3.5 and corollary
4.1). The first term is the Gaussian mechanism's; what is added vanishes as v grows. Divergences of several
sums add up at each order, and those of Gaussian mechanisms of the same adjacency with them; the conversion to
epsilon and delta is that of Canonne, Kamath and Steinke (2020, proposition 12), as in dp-accounting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedsec.errors import UsageError
from fedsec.privacy.accounting import SampledGaussian, rounded_up

_ORDERS: npt.NDArray[np.float64] = np.unique(
    np.concatenate([np.arange(2, 258), np.round(np.geomspace(258, 1e6, 300))])
).astype(np.float64)
_MOST_ROUNDS = 1_000_000
"""Rounds that are counted; nobody trains longer."""
_PRECISION = 1e-6
"""A variance is found to this part of itself, upwards."""
_SMALLEST_VARIANCE, _LARGEST_VARIANCE = 1e-9, 1e30


@dataclass(frozen=True, slots=True)
class SkellamSum:
    """Rounds that each open one sum of integer vectors with Skellam noise in every word.

    Attributes:
        l2_sensitivity: Bound on the L2 norm of one hospital's vector, in words, after rounding.
        l1_sensitivity: Bound on its L1 norm, in words.
        variance: Of the noise in a word that nobody outside of the honest parties knows, in words squared.
        rounds: How many.
    """

    l2_sensitivity: float
    l1_sensitivity: float
    variance: float
    rounds: int = 1

    def __post_init__(self) -> None:
        l2, l1 = self.l2_sensitivity, self.l1_sensitivity
        if not 0 < l2 <= l1 < math.inf:
            raise UsageError(
                f"expected an L2 sensitivity above 0 and an L1 sensitivity no smaller, got {l2} and {l1}"
            )
        if not 0 <= self.variance < math.inf:
            raise UsageError(f"the variance of noise is 0 or more, got {self.variance}")
        if self.rounds < 0:
            raise UsageError(f"a number of rounds is 0 or more, got {self.rounds}")

    @classmethod
    def of(cls, l2_sensitivity: float, words: int, variance: float, rounds: int = 1) -> SkellamSum:
        """Return rounds of vectors with this many words, of which the L2 norm alone is bounded.

        An L1 norm is at most ``sqrt(words)`` times the L2 norm, and of integers at most its square.
        """
        if words < 1:
            raise UsageError(f"a vector has 1 word or more, got {words}")
        l1 = min(math.sqrt(words) * l2_sensitivity, l2_sensitivity**2)
        return cls(l2_sensitivity, max(l1, l2_sensitivity), variance, rounds)


def rounded_l2(l2_norm: float, words: int) -> float:
    """Return the L2 norm that a vector can have once each word was rounded to the nearest integer."""
    return l2_norm + math.sqrt(words) / 2


def epsilon_of_sums(
    sums: Sequence[SkellamSum], delta: float, gaussians: Sequence[SampledGaussian] = ()
) -> float:
    """Return what sums cost together; infinite when one has no noise.

    Args:
        sums: In any order; those without rounds cost nothing.
        delta: Above 0, below 1.
        gaussians: Mechanisms of the same adjacency that come on top, without sampling.

    Raises:
        UsageError: Delta is out of range, or a Gaussian mechanism samples: it samples records, which makes
            no hospital less certain to be there.
    """
    if not 0 < delta < 1:
        raise UsageError(f"delta is above 0 and below 1, got {delta}")
    divergence = sum((_divergence(one) for one in sums if one.rounds), np.zeros_like(_ORDERS))
    divergence = sum((_gaussian(one) for one in gaussians if one.steps), divergence)
    if not divergence.any():
        return 0.0
    epsilons = divergence + np.log1p(-1 / _ORDERS) - np.log(delta * _ORDERS) / (_ORDERS - 1)
    return max(0.0, float(epsilons.min()))


def variance_for(
    target_epsilon: float,
    delta: float,
    l2_sensitivity: float,
    l1_sensitivity: float,
    rounds: int,
    *,
    spent: Sequence[SkellamSum] = (),
) -> float:
    """Return the smallest variance with which rounds stay within a target epsilon, to a millionth of it.

    Args:
        target_epsilon: Of everything together, above 0.
        delta: Of everything together.
        l2_sensitivity: As in :class:`SkellamSum`.
        l1_sensitivity: As in :class:`SkellamSum`.
        rounds: How many are to come, 1 or more.
        spent: What was done before; it counts.

    Raises:
        UsageError: The target is used up already, or nothing reaches it.
    """
    _check_target(target_epsilon)
    if rounds < 1:
        raise UsageError(f"noise is planned for 1 round or more, got {rounds}")
    before = epsilon_of_sums(spent, delta)
    if before >= target_epsilon:
        raise UsageError(
            f"the target of epsilon {target_epsilon:g} is used up: what was done costs {rounded_up(before)}"
            f" at delta {delta:g}. No further round is possible within it"
        )
    done = merged(spent)

    def within(variance: float) -> bool:
        one = SkellamSum(l2_sensitivity, l1_sensitivity, variance, rounds)
        return epsilon_of_sums([*done, one], delta) <= target_epsilon

    low, high = _SMALLEST_VARIANCE, _LARGEST_VARIANCE
    if not within(high):
        raise UsageError(
            f"no variance up to {high:g} brings {rounds} rounds within epsilon {target_epsilon:g}: what was"
            f" done before costs {rounded_up(before)} at delta {delta:g}"
        )
    while high > low * (1 + _PRECISION):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if within(middle) else (middle, high)
    return high


def rounds_within(
    target_epsilon: float, delta: float, one: SkellamSum, spent: Sequence[SkellamSum] = ()
) -> int:
    """Return how many rounds like one still fit within a target, 0 to a million.

    Args:
        target_epsilon: Of everything together, above 0.
        delta: Of everything together.
        one: The kind of round; how often it says does not matter.
        spent: What was done before; it counts.

    Raises:
        UsageError: An argument is out of range.
    """
    _check_target(target_epsilon)
    done = merged(spent)

    def within(rounds: int) -> bool:
        return epsilon_of_sums([*done, replace(one, rounds=rounds)], delta) <= target_epsilon

    return _last(within, _MOST_ROUNDS)


def merged(sums: Iterable[SkellamSum]) -> list[SkellamSum]:
    """Return the same rounds with those of one kind in one entry, in the order of their first ones."""
    rounds: dict[SkellamSum, int] = {}
    for one in sums:
        kind = replace(one, rounds=0)
        rounds[kind] = rounds.get(kind, 0) + one.rounds
    return [replace(kind, rounds=count) for kind, count in rounds.items()]


def _last(within: Callable[[int], bool], most: int) -> int:
    """Return the last number from 0 to ``most`` that is within, 0 when none is; so are all smaller ones."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if within(middle) else (low, middle)
    return low


def _divergence(one: SkellamSum) -> npt.NDArray[np.float64]:
    """Return the bound at every order."""
    if one.variance == 0:
        return np.full_like(_ORDERS, np.inf)
    l2, l1, v = one.l2_sensitivity, one.l1_sensitivity, one.variance
    beyond = np.minimum(((2 * _ORDERS - 1) * l2**2 + 6 * l1) / (4 * v**2), 3 * l1 / (2 * v))
    return one.rounds * (_ORDERS * l2**2 / (2 * v) + beyond)


def _gaussian(one: SampledGaussian) -> npt.NDArray[np.float64]:
    if one.sampling_rate != 1:
        raise UsageError(
            f"a mechanism that samples records (here at rate {one.sampling_rate:g}) has another adjacency"
            " than sums of whole hospitals; account for it apart"
        )
    if one.noise_multiplier == 0:
        return np.full_like(_ORDERS, np.inf)
    return one.steps * _ORDERS / (2 * one.noise_multiplier**2)


def _check_target(target_epsilon: float) -> None:
    if not 0 < target_epsilon < math.inf:
        raise UsageError(f"a target epsilon is above 0 and finite, got {target_epsilon}")
