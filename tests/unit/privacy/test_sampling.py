"""Samples and noise: the right distributions, from the stream alone."""

import numpy as np
import pytest
from scipy import stats

from fedsec.errors import UsageError
from fedsec.privacy.sampling import GaussianNoise, PoissonSampler
from fedsec.ring.streams import KeyedStream

KEY = bytes(range(32))


def test_sizes_of_samples_are_binomial() -> None:
    sampler = PoissonSampler(1000, 0.1, KeyedStream(KEY))
    sizes = [len(sampler.draw()) for _ in range(2000)]
    assert np.mean(sizes) == pytest.approx(100, abs=4 * np.sqrt(90 / 2000))
    assert np.var(sizes) == pytest.approx(90, rel=0.15)


def test_each_record_is_as_likely_as_another_and_independent() -> None:
    sampler = PoissonSampler(50, 0.3, KeyedStream(KEY))
    seen = np.zeros((4000, 50))
    for row in seen:
        row[sampler.draw()] = 1
    assert stats.chisquare(seen.sum(axis=0)).pvalue > 1e-4
    assert np.abs(np.corrcoef(seen.T) - np.eye(50)).max() < 0.09
    # A sampler of fixed sizes, which the accounting does not cover, has correlated records.
    fixed = np.zeros((4000, 50))
    order = np.random.default_rng(1)
    for row in fixed:
        row[order.permutation(50)[:15]] = 1
    assert np.corrcoef(fixed.T)[np.triu_indices(50, 1)].mean() < -0.015
    assert abs(np.corrcoef(seen.T)[np.triu_indices(50, 1)].mean()) < 0.005


def test_a_rate_of_one_takes_all() -> None:
    assert list(PoissonSampler(5, 1.0).draw()) == [0, 1, 2, 3, 4]


def test_samples_follow_from_the_key_and_differ_without() -> None:
    first, second = (PoissonSampler(500, 0.5, KeyedStream(KEY)).draw() for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(PoissonSampler(500, 0.5).draw(), PoissonSampler(500, 0.5).draw())


def test_noise_is_normal() -> None:
    values = GaussianNoise(200_001, KeyedStream(KEY)).draw(2.5)
    assert values.shape == (200_001,)
    assert stats.kstest(values / 2.5, "norm").pvalue > 1e-3
    assert np.std(values) == pytest.approx(2.5, rel=0.01)
    assert np.abs(values).max() > 4 * 2.5
    # The two halves come from the same pairs; they must not tell of each other.
    assert abs(np.corrcoef(values[:100_000], values[100_001:200_001])[0, 1]) < 0.015


def test_noise_is_drawn_anew() -> None:
    noise = GaussianNoise(10)
    assert not np.array_equal(noise.draw(1.0), noise.draw(1.0))
    assert not np.array_equal(GaussianNoise(10).draw(1.0), GaussianNoise(10).draw(1.0))
    assert np.array_equal(noise.draw(0.0), np.zeros(10))


def test_senseless_samplers_are_refused() -> None:
    for records, rate in ((0, 0.5), (5, 0.0), (5, 1.5)):
        with pytest.raises(UsageError):
            PoissonSampler(records, rate)
