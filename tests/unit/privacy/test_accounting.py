"""Epsilon against published values, a numeric convolution of our own, and what has to be refused."""

import math

import numpy as np
import pytest
from scipy import stats

from fedsec.errors import UsageError
from fedsec.privacy.accounting import SampledGaussian, epsilon_of, noise_for, rounded_up


def test_the_tutorial_of_tensorflow_privacy() -> None:
    """Noise 1.3, batches of 250 of 60,000, 15 epochs, delta 1e-5; values of both accountants as published."""
    found = epsilon_of([SampledGaussian(1.3, 250 / 60_000, 15 * 240)], 1e-5)
    assert found.value == pytest.approx(0.853, abs=0.001)
    assert found.rdp == pytest.approx(0.942, abs=0.001)


def test_without_sampling_there_is_no_amplification() -> None:
    """15 visits of every record: RDP 17.6; exactly, 15 Gaussians are one with less noise."""
    found = epsilon_of([SampledGaussian(1.3, 1.0, 15)], 1e-5)
    assert found.rdp == pytest.approx(17.6, abs=0.1)
    assert found.value == pytest.approx(gaussian_epsilon(1.3 / math.sqrt(15), 1e-5), abs=1e-3)


def gaussian_epsilon(sigma: float, delta: float) -> float:
    """Return the exact epsilon of one Gaussian mechanism (Balle and Wang 2018, theorem 8)."""
    low, high = 0.0, 200.0
    for _ in range(100):
        epsilon = (low + high) / 2
        first = stats.norm.cdf(0.5 / sigma - epsilon * sigma)
        second = math.exp(epsilon) * stats.norm.cdf(-0.5 / sigma - epsilon * sigma)
        low, high = (epsilon, high) if first - second > delta else (low, epsilon)
    return high


def convolved_epsilon(sigma: float, rate: float, steps: int, delta: float) -> float:
    """Return epsilon from the privacy loss on a grid, convolved by Fourier transform: an own calculation.

    Removing a record: the outcome x is drawn from the mixture, compared with N(0, sigma). Adding one: the
    other way round. The larger of both.
    """
    x = np.linspace(-14 * sigma, 14 * sigma + 1, 400_001)
    without = stats.norm.pdf(x, 0, sigma)
    mixture = (1 - rate) * without + rate * stats.norm.pdf(x, 1, sigma)
    found = []
    for upper, lower in ((mixture, without), (without, mixture)):
        loss = np.log(upper) - np.log(lower)
        grid, half = 2e-4, 1 << 17
        index = np.rint(loss / grid).astype(int) + half
        mass = np.bincount(index, weights=upper * (x[1] - x[0]), minlength=2 * half)[: 2 * half]
        # Centred so that the product of the spectra stays the sum of the losses.
        spectrum = np.fft.rfft(np.roll(mass, -half))
        composed = np.roll(np.fft.irfft(spectrum**steps, 2 * half), half)
        losses = (np.arange(2 * half) - half) * grid

        def spent(epsilon: float, losses: np.ndarray = losses, composed: np.ndarray = composed) -> float:
            above = losses > epsilon
            return float(np.sum(composed[above] * (1 - np.exp(epsilon - losses[above]))))

        low, high = 0.0, 20.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if spent(middle) > delta else (low, middle)
        found.append(high)
    return max(found)


@pytest.mark.parametrize(("sigma", "rate", "steps"), [(1.0, 0.02, 200), (2.0, 0.1, 50), (0.8, 0.01, 100)])
def test_against_a_convolution_of_our_own(sigma: float, rate: float, steps: int) -> None:
    found = epsilon_of([SampledGaussian(sigma, rate, steps)], 1e-5)
    expected = convolved_epsilon(sigma, rate, steps, 1e-5)
    assert found.value == pytest.approx(expected, rel=0.01)
    assert found.value <= found.rdp


def test_mechanisms_compose() -> None:
    one, two = SampledGaussian(1.1, 0.02, 300), SampledGaussian(1.1, 0.02, 500)
    together = epsilon_of([one, two], 1e-5).value
    assert together == pytest.approx(epsilon_of([SampledGaussian(1.1, 0.02, 800)], 1e-5).value, rel=1e-6)
    assert together > epsilon_of([two], 1e-5).value
    assert epsilon_of([], 1e-5).value == 0
    assert epsilon_of([SampledGaussian(1.1, 0.02, 0)], 1e-5).value == 0


def test_no_noise_protects_nothing() -> None:
    found = epsilon_of([SampledGaussian(2.0, 0.1, 5), SampledGaussian(0.0, 0.1, 1)], 1e-5)
    assert math.isinf(found.value)
    assert "unbounded" in str(found)


def test_printed_epsilons_are_rounded_up() -> None:
    assert rounded_up(0.8531) == "0.854"
    assert rounded_up(2.0) == "2.000"
    assert rounded_up(1.0001, decimals=1) == "1.1"


@pytest.mark.parametrize(
    ("target", "rate", "steps"),
    [
        pytest.param(2.93, 256 / 60_000, 4700, marks=pytest.mark.slow),
        (1.0, 0.05, 200),
        (8.0, 1.0, 20),
    ],
)
def test_a_target_is_reached_from_below_and_closely(target: float, rate: float, steps: int) -> None:
    noise = noise_for(target, 1e-5, rate, steps)
    assert epsilon_of([SampledGaussian(noise, rate, steps)], 1e-5).value <= target
    assert epsilon_of([SampledGaussian(0.99 * noise, rate, steps)], 1e-5).value > target


def test_what_was_spent_counts_towards_the_target() -> None:
    before = [SampledGaussian(12.0, 1.0, 5)]
    noise = noise_for(1.0, 1e-5, 1.0, 5, before)
    assert noise > noise_for(1.0, 1e-5, 1.0, 5)
    assert epsilon_of([*before, SampledGaussian(noise, 1.0, 5)], 1e-5).value <= 1.0
    with pytest.raises(UsageError, match="used up"):
        noise_for(0.05, 1e-5, 1.0, 5, before)


@pytest.mark.parametrize(
    "call",
    [
        lambda: SampledGaussian(-1.0, 0.1, 1),
        lambda: SampledGaussian(math.nan, 0.1, 1),
        lambda: SampledGaussian(1.0, 0.0, 1),
        lambda: SampledGaussian(1.0, 1.1, 1),
        lambda: SampledGaussian(1.0, 0.1, -1),
        lambda: epsilon_of([], 0.0),
        lambda: noise_for(0.0, 1e-5, 0.1, 1),
        lambda: noise_for(1.0, 2.0, 0.1, 1),
        lambda: noise_for(1e-9, 1e-12, 1.0, 1000),
    ],
)
def test_what_makes_no_sense_is_refused(call) -> None:
    with pytest.raises(UsageError):
        call()
