"""How well scores tell members from others: area, and true positives where false ones are rare.

An attack that is right about one record in a thousand and knows it is worse than one that is a little better
than a coin on all (Carlini et al. 2022, Membership inference attacks from first principles): so the true
positive rate at small false positive rates stands beside the area under the curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from fedsec.errors import UsageError

Scores = npt.NDArray[np.floating]

CONFIDENCE = 0.95

FEWEST = 6
"""Values in the interval of a median: the true one lies outside of six with the probability 2 / 2^6."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of successes, with its interval by Clopper and Pearson (1934) at 95 % confidence."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, successes: int, trials: int) -> Rate:
        """Return the rate of ``successes`` in ``trials``, at least 1."""
        tail = (1 - CONFIDENCE) / 2
        return cls(
            successes / trials,
            _lowest(successes, trials, tail),
            1 - _lowest(trials - successes, trials, tail),
        )


@dataclass(frozen=True, slots=True)
class Spread:
    """A median, with its 95 % interval by order statistics: no distribution is assumed."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float] | npt.NDArray[np.floating]) -> Spread:
        """Return the median of independent values.

        Raises:
            UsageError: There are fewer than 6, whose smallest and largest are no such interval.
        """
        if len(values) < FEWEST:
            raise UsageError(f"expected at least {FEWEST} values for an interval, got {len(values)}")
        ordered = np.sort(np.asarray(values, dtype=np.float64))
        place = max(int(stats.binom.ppf((1 - CONFIDENCE) / 2, len(ordered), 0.5)) - 1, 0)
        return cls(float(np.median(ordered)), float(ordered[place]), float(ordered[-1 - place]))


@dataclass(frozen=True, slots=True)
class Attack:
    """What an attack reaches; guessing has an area of 0.5 and a true positive rate equal to the false one.

    Attributes:
        area: Under the curve of true over false positives, with a 95 % interval (Hanley and McNeil 1982).
        at_one_percent: True positive rate at a false positive rate of at most 1 %; its interval holds
            the chance in the threshold as well.
        at_one_permille: The same at 0.1 %.
        members: How many members were scored.
        others: How many others.
    """

    area: Rate
    at_one_percent: Rate
    at_one_permille: Rate
    members: int
    others: int

    @classmethod
    def of(cls, members: Scores, others: Scores) -> Attack:
        """Return what scores reach that should be higher for members.

        Raises:
            UsageError: If there are no scores of one kind, or one is not a number.
        """
        if not len(members) or not len(others):
            raise UsageError(
                f"expected scores of members and of others, got {len(members)} and {len(others)}"
            )
        if not (np.isfinite(members).all() and np.isfinite(others).all()):
            raise UsageError("a score is not finite: the attack cannot be judged")
        return cls(
            _area(members, others),
            _true_positives(members, others, 0.01),
            _true_positives(members, others, 0.001),
            len(members),
            len(others),
        )


def _area(members: Scores, others: Scores) -> Rate:
    """Return the probability that a member scores higher than another, ties half."""
    ranks = stats.rankdata(np.concatenate([members, others]))[: len(members)]
    m, n = len(members), len(others)
    area = (float(ranks.sum()) - m * (m + 1) / 2) / (m * n)
    first, second = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + (m - 1) * (first - area**2) + (n - 1) * (second - area**2)) / (m * n)
    half = float(stats.norm.ppf(0.5 + CONFIDENCE / 2)) * max(variance, 0.0) ** 0.5
    return Rate(area, max(0.0, area - half), min(1.0, area + half))


def _lowest(successes: int, trials: int, tail: float) -> float:
    """Return the smallest rate under which so many successes have at least the probability ``tail``."""
    return float(stats.beta.ppf(tail, successes, trials - successes + 1)) if successes else 0.0


def _true_positives(members: Scores, others: Scores, allowed: float) -> Rate:
    """Return the share of members above the threshold that at most ``allowed`` of the others pass.

    The threshold is an estimate, too: how many of these others pass the true one is binomial. Half of the
    error goes to that, half to the members, on either side.
    """
    n, m, tail = len(others), len(members), (1 - CONFIDENCE) / 4
    descending = np.sort(others)[::-1]

    def above(passing: int) -> int:
        """Count the members above the threshold that so many of the others pass."""
        return int(np.sum(members > descending[passing])) if passing < n else m

    fewest, most = (int(stats.binom.ppf(part, n, allowed)) for part in (tail, 1 - tail))
    low = _lowest(above(fewest - 1), m, tail) if fewest else 0.0
    return Rate(above(int(allowed * n)) / m, low, 1 - _lowest(m - above(most), m, tail))
