"""What sums with Skellam noise cost: against divergences and losses computed from the law itself."""

from __future__ import annotations

import functools
import math

import dp_accounting
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from fedsec.errors import UsageError
from fedsec.privacy import skellam_accounting
from fedsec.privacy.accounting import SampledGaussian
from fedsec.privacy.skellam_accounting import (
    SkellamSum,
    epsilon_of_sums,
    rounded_l2,
    rounds_within,
    variance_for,
)

DELTA = 1e-5
Reals = npt.NDArray[np.float64]


@functools.lru_cache(maxsize=64)
def log_pmf(variance: float, last: int) -> Reals:
    """Logarithms of the probabilities of 0 to ``last``: the sum over what the smaller Poisson value is."""
    value = np.arange(last + 1)[:, None]
    number = np.arange(int(variance / 2 + 12 * math.sqrt(variance)) + 40)
    terms = (2 * number + value) * math.log(variance / 2) - variance
    terms = terms - special.gammaln(number + 1) - special.gammaln(number + value + 1)
    return np.asarray(special.logsumexp(terms, axis=1))


def exact_divergence(order: int, variance: float, shift: int) -> float:
    """Renyi divergence of one value from the same shifted, the other way round than by the proof."""
    last = (order - 1) * shift + int(12 * math.sqrt(variance)) + 40
    log = log_pmf(variance, last + shift)
    values = np.arange(-last, last + 1)
    terms = order * log[np.abs(values)] - (order - 1) * log[np.abs(values - shift)]
    return float(special.logsumexp(terms)) / (order - 1)


def exact_epsilon(variance: float, shift: int, rounds: int, grid: float = 1e-3) -> float:
    """Epsilon of rounds on one word, from the convolved losses; rounded down, so none is too large."""
    last = int(12 * math.sqrt(variance)) + 40
    log = log_pmf(variance, last + shift)
    values = np.arange(-last, last + 1)
    losses = np.floor((log[np.abs(values)] - log[np.abs(values - shift)]) / grid).astype(int)
    mass = np.bincount(losses - losses.min(), weights=np.exp(log[np.abs(values)]))
    size = (len(mass) - 1) * rounds + 1
    length = 1 << size.bit_length()
    whole = np.fft.irfft(np.fft.rfft(mass, length) ** rounds, length)[:size]
    loss = (np.arange(size) + losses.min() * rounds) * grid
    low, high = 0.0, float(loss[-1])
    while high - low > 1e-6:
        middle = (low + high) / 2
        above = loss > middle
        delta = float(np.sum(whole[above] * -np.expm1(middle - loss[above])))
        low, high = (middle, high) if delta > DELTA else (low, middle)
    return low


def bound(order: int, one: SkellamSum) -> float:
    orders = list(skellam_accounting._ORDERS)
    return float(skellam_accounting._divergence(one)[orders.index(order)])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    variance=st.floats(0.05, 300) | st.sampled_from([0.05, 1.0, 1000.0]),
    shift=st.integers(1, 12),
    order=st.integers(2, 40),
)
def test_the_bound_is_never_below_the_divergence(variance: float, shift: int, order: int) -> None:
    exact = exact_divergence(order, round(variance, 2), shift)
    one = SkellamSum(shift, shift, round(variance, 2))
    assert bound(order, one) >= exact * (1 - 1e-9)
    # On one word the sensitivities are the same number, and no smaller than in words of larger vectors.
    assert bound(order, SkellamSum.of(shift, 9, round(variance, 2))) >= bound(order, one)


@pytest.mark.parametrize("shift", [1, 3])
def test_the_bound_tends_to_the_divergence(shift: int) -> None:
    for times, factor in ((20, 1.2), (200, 1.02)):
        variance = float(times * shift**2)
        for order in (2, 8):
            found = bound(order, SkellamSum(shift, shift, variance))
            assert found <= factor * exact_divergence(order, variance, shift)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    times=st.floats(0.5, 150),
    shift=st.integers(1, 5),
    rounds=st.integers(1, 30),
)
def test_epsilon_is_never_below_that_of_convolved_losses(times: float, shift: int, rounds: int) -> None:
    variance = round(times * shift**2, 1)
    exact = exact_epsilon(variance, shift, rounds)
    claimed = epsilon_of_sums([SkellamSum(shift, shift, variance, rounds)], DELTA)
    assert claimed >= exact
    if times >= 100:
        assert claimed <= 1.15 * exact + 0.002 * rounds


@pytest.mark.parametrize("rounds", [1, 20])
@pytest.mark.parametrize("noise", [1.0, 2.7, 17.0])
def test_with_many_words_a_unit_it_is_the_gaussian_mechanism(noise: float, rounds: int) -> None:
    """By dp-accounting's RDP at the same orders, and never below its PLD."""
    clip = 1e6
    claimed = epsilon_of_sums([SkellamSum.of(clip, 22158, (noise * clip) ** 2, rounds)], DELTA)
    event = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(noise), rounds)
    relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    renyi = dp_accounting.rdp.RdpAccountant(list(range(2, 1025)), relation).compose(event)
    assert claimed == pytest.approx(renyi.get_epsilon(DELTA), rel=1e-4)
    tight = dp_accounting.pld.PLDAccountant(relation, value_discretization_interval=1e-3).compose(event)
    # Losses are rounded upwards, by a grid's step in all.
    assert claimed >= tight.get_epsilon(DELTA) - 1e-3


def test_rounds_of_different_kinds_and_gaussians_add_up() -> None:
    """The divergences of the parts, converted once by dp-accounting's formula."""
    orders = [float(order) for order in range(2, 258)]
    kinds = [SkellamSum(3, 9, 50.0, 4), SkellamSum.of(10.0, 100, 900.0, 2), SkellamSum(1, 1, 0.5)]
    gaussian = SampledGaussian(4.0, 1, 3)

    def by_hand(order: float) -> float:
        first = order * 9 / 100 + min(((2 * order - 1) * 9 + 54) / 1e4, 27 / 100)
        second = order * 100 / 1800 + min(((2 * order - 1) * 100 + 600) / (4 * 900**2), 300 / 1800)
        # Of so little noise the other bound is the smaller one at every order.
        third = order + 3 / (2 * 0.5)
        return 4 * first + 2 * second + third + 3 * order / 32

    expected, _ = dp_accounting.rdp.compute_epsilon(orders, [by_hand(order) for order in orders], DELTA)
    assert epsilon_of_sums(kinds, DELTA, [gaussian]) == pytest.approx(expected, rel=1e-12)
    assert epsilon_of_sums(kinds, DELTA) < epsilon_of_sums(kinds, DELTA, [gaussian])
    assert epsilon_of_sums([*kinds, *kinds], DELTA) > epsilon_of_sums(kinds, DELTA)


def test_no_rounds_cost_nothing_and_no_noise_costs_everything() -> None:
    assert epsilon_of_sums([], DELTA) == 0
    assert epsilon_of_sums([SkellamSum(1, 1, 0.0, 0)], DELTA) == 0
    assert epsilon_of_sums([SkellamSum(1, 1, 0.0)], DELTA) == math.inf
    assert epsilon_of_sums([], DELTA, [SampledGaussian(0.0, 1, 1)]) == math.inf


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    target=st.floats(0.05, 20),
    l2=st.floats(1, 1e9),
    words=st.integers(1, 10**6),
    rounds=st.integers(1, 300),
    delta=st.floats(1e-9, 1e-3),
)
def test_a_calibrated_variance_is_the_smallest_that_is_within(
    target: float, l2: float, words: int, rounds: int, delta: float
) -> None:
    l1 = SkellamSum.of(l2, words, 1.0).l1_sensitivity
    variance = variance_for(target, delta, l2, l1, rounds)
    planned = SkellamSum(l2, l1, variance, rounds)
    assert epsilon_of_sums([planned], delta) <= target
    assert epsilon_of_sums([SkellamSum(l2, l1, variance * (1 - 2e-6), rounds)], delta) > target
    assert rounds_within(target, delta, planned) == rounds


def test_what_was_spent_counts() -> None:
    first = SkellamSum(100.0, 1000.0, variance_for(2.0, DELTA, 100.0, 1000.0, 10), 10)
    assert rounds_within(2.0, DELTA, first, [first]) == 0
    assert rounds_within(2.0, DELTA, first, [SkellamSum(100.0, 1000.0, first.variance, 4)]) == 6
    more = variance_for(3.0, DELTA, 100.0, 1000.0, 10, spent=[first])
    assert more > variance_for(3.0, DELTA, 100.0, 1000.0, 10)
    assert epsilon_of_sums([first, SkellamSum(100.0, 1000.0, more, 10)], DELTA) <= 3.0
    with pytest.raises(UsageError, match=r"used up: what was done costs 2\.000 at delta 1e-05"):
        variance_for(1.99, DELTA, 100.0, 1000.0, 1, spent=[first])


def test_the_bounds_of_a_rounded_vector() -> None:
    """Every word moves by a half at most; integers are no larger than their squares."""
    assert rounded_l2(10.0, 16) == 12.0
    assert SkellamSum.of(12.0, 16, 1.0).l1_sensitivity == 48.0
    assert SkellamSum.of(3.0, 16, 1.0).l1_sensitivity == 9.0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: SkellamSum(0, 1, 1.0),
        lambda: SkellamSum(2, 1, 1.0),
        lambda: SkellamSum(math.nan, 1, 1.0),
        lambda: SkellamSum(1, math.inf, 1.0),
        lambda: SkellamSum(1, 1, -1.0),
        lambda: SkellamSum(1, 1, math.nan),
        lambda: SkellamSum(1, 1, 1.0, -1),
        lambda: SkellamSum.of(1, 0, 1.0),
        lambda: epsilon_of_sums([], 0.0),
        lambda: epsilon_of_sums([], DELTA, [SampledGaussian(1.0, 0.5, 1)]),
        lambda: variance_for(0.0, DELTA, 1, 1, 1),
        lambda: variance_for(1.0, DELTA, 1, 1, 0),
        lambda: variance_for(1e-4, DELTA, 1e15, 1e16, 1000),
        lambda: rounds_within(math.inf, DELTA, SkellamSum(1, 1, 1.0)),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: object) -> None:
    with pytest.raises(UsageError):
        wrong()  # type: ignore[operator]
