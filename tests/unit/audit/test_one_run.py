"""The bound from one run, on outcomes whose epsilon is known."""

import numpy as np
import pytest
from scipy import stats

from fedsec.audit.one_run import lower_bound
from fedsec.errors import UsageError


def coins(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random(count) < 0.5


def test_perfect_guesses_give_the_exact_bound() -> None:
    """All of r guesses right: the largest epsilon with (e^eps / (1 + e^eps))^r <= 0.05, by hand."""
    included = coins(400)
    found = lower_bound(included.astype(float), included, 200, 0.0)
    success = 0.05 ** (1 / 200)
    assert found.right == 200
    assert found.epsilon == pytest.approx(np.log(success / (1 - success)), abs=1e-3)


def test_delta_costs_certainty() -> None:
    included = coins(400)
    without, small, large = (
        lower_bound(included.astype(float), included, 200, delta).epsilon for delta in (0.0, 1e-5, 1e-2)
    )
    assert without > small > large


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0])
def test_randomised_response_is_bounded_rightly_and_closely(epsilon: float) -> None:
    """Each coin is told truly with probability e^eps / (1 + e^eps): exactly epsilon; never more is found."""
    found = []
    for seed in range(60):
        random = np.random.default_rng(seed)
        included = random.random(2000) < 0.5
        told = np.where(random.random(2000) < 1 / (1 + np.exp(-epsilon)), included, ~included)
        scores = told + random.random(2000) * 0.1
        found.append(lower_bound(scores, included, 2000, 0.0).epsilon)
    # At 95 % confidence three of sixty may be above.
    assert sum(one > epsilon for one in found) <= stats.binom.isf(1e-4, 60, 0.05)
    assert np.median(found) > 0.75 * epsilon


def test_guessing_gives_nothing() -> None:
    random = np.random.default_rng(3)
    assert lower_bound(random.random(1000), coins(1000, 4), 500, 1e-5).epsilon < 0.3


def test_senseless_questions_are_refused() -> None:
    for guesses in (0, 11):
        with pytest.raises(UsageError):
            lower_bound(np.zeros(10), coins(10), guesses, 0.0)
