"""Curves and intervals against textbook values and scores whose curve is known."""

import numpy as np
import pytest
from scipy import stats

from fedsec.audit.curve import Attack, Rate, Spread
from fedsec.errors import UsageError


def test_intervals_of_clopper_and_pearson() -> None:
    """7 of 20: (0.1539, 0.5922), as in the tables; none of 10: (0, 0.3085)."""
    seven = Rate.of(7, 20)
    assert (seven.low, seven.high) == (pytest.approx(0.1539, abs=1e-4), pytest.approx(0.5922, abs=1e-4))
    assert Rate.of(0, 10).high == pytest.approx(0.3085, abs=1e-4)
    assert Rate.of(10, 10) == Rate(1.0, pytest.approx(1 - 0.3085, abs=1e-4), 1.0)


def test_scores_of_two_normal_distributions() -> None:
    random = np.random.default_rng(1)
    attack = Attack.of(random.normal(1.0, 1, 200_000), random.normal(0, 1, 200_000))
    assert attack.area.low < stats.norm.cdf(1 / np.sqrt(2)) < attack.area.high
    for rate, allowed in ((attack.at_one_percent, 0.01), (attack.at_one_permille, 0.001)):
        assert rate.value == pytest.approx(stats.norm.sf(stats.norm.isf(allowed) - 1.0), rel=0.25)


@pytest.mark.parametrize("lift", [0.0, 1.0])
def test_intervals_hold_the_true_rate_as_often_as_they_say(lift: float) -> None:
    """With many members and few others the chance is in the threshold: 19 of 20 intervals hold the truth."""
    random, inside = np.random.default_rng(3), np.zeros(2)
    for _ in range(200):
        attack = Attack.of(random.normal(lift, 1, 20_000), random.normal(0, 1, 1500))
        for place, (rate, allowed) in enumerate(
            ((attack.at_one_percent, 0.01), (attack.at_one_permille, 0.001))
        ):
            inside[place] += rate.low <= stats.norm.sf(stats.norm.isf(allowed) - lift) <= rate.high
    # Three standard deviations below 95 %.
    assert (inside >= 200 * 0.95 - 3 * np.sqrt(200 * 0.95 * 0.05)).all()


def test_scores_that_tell_nothing() -> None:
    random = np.random.default_rng(2)
    attack = Attack.of(random.normal(size=3000), random.normal(size=3000))
    assert attack.area.value == pytest.approx(0.5, abs=0.025)
    assert 0.02 < attack.area.high - attack.area.low < 0.04
    assert attack.at_one_percent.value < 0.03
    same = Attack.of(np.zeros(100), np.zeros(100))
    assert same.area.value == 0.5
    assert same.at_one_percent.value == 0


def test_scores_that_tell_all() -> None:
    attack = Attack.of(np.ones(50), np.zeros(2000))
    assert attack.area.value == 1
    assert attack.at_one_permille.value == 1


def test_what_cannot_be_judged_is_refused() -> None:
    for members, others in ((np.ones(0), np.ones(2)), (np.array([np.nan]), np.ones(2))):
        with pytest.raises(UsageError):
            Attack.of(members, others)


def test_the_interval_of_a_median_is_that_of_order_statistics() -> None:
    """Of ten values the second and the ninth: 97.9 % by the binomial; of six the ends: 96.9 %."""
    assert Spread.of(np.arange(10.0)[::-1]) == Spread(4.5, 1.0, 8.0)
    assert Spread.of([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]) == Spread(3.5, 1.0, 6.0)
    with pytest.raises(UsageError, match="at least 6 values"):
        Spread.of([1.0] * 5)
