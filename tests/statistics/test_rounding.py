"""Encoding rounds without a bias; rounding that has one is caught."""

import numpy as np
import pytest
from scipy import stats

from fedsec.ring import decode, encode

P_LIMIT = 1e-6
SAMPLES = 200_000
FRACTION_BITS = 10


def _reals(stream):
    """Uniform in [-8, 8) with 43 bits behind the point of the encoding."""
    return stream.words(SAMPLES).astype(np.float64) * 2.0**-60 - 8


def _bias(errors):
    """p-value of: the errors, in units of the last place, have mean 0."""
    return stats.ttest_1samp(errors, 0).pvalue


def _ups(errors):
    """p-value of: as many errors are positive as negative."""
    return stats.binomtest(int(np.sum(errors > 0)), errors.size).pvalue


def test_encoding_errors_are_uniform_in_half_a_unit_around_zero(stream):
    reals = _reals(stream)
    errors = (decode(encode(reals, FRACTION_BITS), FRACTION_BITS) - reals) * 2**FRACTION_BITS

    assert _bias(errors) > P_LIMIT
    assert stats.kstest(errors, stats.uniform(-0.5, 1).cdf).pvalue > P_LIMIT


def test_ties_round_up_as_often_as_down(stream):
    """Middles between two encodings are frequent after halving; half to even keeps their mean."""
    halves = np.floor(_reals(stream) * 2**FRACTION_BITS) + 0.5
    errors = decode(encode(halves, 0), 0) - halves

    assert set(np.unique(errors)) == {-0.5, 0.5}
    assert _ups(errors) > P_LIMIT


@pytest.mark.parametrize("rounding", [np.floor, np.ceil, np.trunc], ids=["floor", "ceil", "towards zero"])
def test_power_biased_rounding_is_caught(rounding, stream):
    reals = np.abs(_reals(stream)) * 2**FRACTION_BITS

    assert _bias(rounding(reals) - reals) < P_LIMIT


def test_power_ties_that_always_go_up_are_caught(stream):
    halves = np.floor(_reals(stream) * 2**FRACTION_BITS) + 0.5

    assert _ups(np.floor(halves + 0.5) - halves) < P_LIMIT
