"""A lower bound on epsilon from one training: guesses about which of many canaries were in it.

Source: Steinke, Nasr and Jagielski 2023, Privacy auditing with one (1) training run, theorem 5.2 for
approximate differential privacy. Under (epsilon, delta) the number of right guesses is dominated by a
binomial with the probability e^epsilon / (1 + e^epsilon), but for a term in delta. Guesses may be left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from fedsec.errors import UsageError

_LARGEST = 20.0
_EXACT = 1e-4


@dataclass(frozen=True, slots=True)
class LowerBound:
    """What one training gives away for sure.

    Attributes:
        epsilon: With the stated confidence the training's true epsilon is not smaller.
        confidence: Of that statement.
        canaries: How many there were, in or out by a fair coin each.
        guesses: About how many of them a guess was made.
        right: How many guesses were right.
    """

    epsilon: float
    confidence: float
    canaries: int
    guesses: int
    right: int


def lower_bound(
    scores: npt.NDArray[np.floating],
    included: npt.NDArray[np.bool_],
    guesses: int,
    delta: float,
    confidence: float = 0.95,
) -> LowerBound:
    """Return the largest epsilon that the guesses rule out.

    Args:
        scores: Of each canary, higher when it seems to have been in the training; shape [m].
        included: Whether it was, by a fair coin; shape [m].
        guesses: How many to make, the highest scores as in and as many of the lowest as out. To be chosen
            before the outcome is seen.
        delta: At which the bound is stated.
        confidence: With which it holds.

    Raises:
        UsageError: If there are not as many scores as coins, or more guesses than canaries.
    """
    if scores.shape != included.shape or not 2 <= guesses <= len(scores):
        raise UsageError(
            f"expected a coin for each of {len(scores)} scores and 2 to {len(scores)} guesses, got"
            f" {len(included)} coins and {guesses} guesses"
        )
    half = guesses // 2
    order = np.argsort(scores)
    right = int(included[order[-half:]].sum() + (~included[order[:half]]).sum())
    wrong = 1 - confidence
    low, high = 0.0, _LARGEST
    if _p_value(len(scores), 2 * half, right, 0.0, delta) > wrong:
        high = 0.0
    while high - low > _EXACT:
        middle = (low + high) / 2
        refuted = _p_value(len(scores), 2 * half, right, middle, delta) <= wrong
        low, high = (middle, high) if refuted else (low, middle)
    return LowerBound(low, confidence, len(scores), 2 * half, right)


def _p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Return a bound on the probability of so many right guesses under (epsilon, delta)."""
    success = 1 / (1 + np.exp(-epsilon))
    tail = float(stats.binom.sf(right - 1, guesses, success))
    below = np.cumsum(stats.binom.pmf(np.arange(right - 1, -1, -1), guesses, success))
    slope = float(np.max(below / np.arange(1, right + 1), initial=0.0))
    return min(1.0, tail + 2 * canaries * delta * slope)
