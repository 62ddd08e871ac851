"""The planner's proof that no sum wraps, encode and decode. Expected values are plain Python integers."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.aggregation import (
    ArraySpec,
    Layout,
    MetricSpec,
    decode_sum,
    encode_update,
    plan_encoding,
)
from fedsec.aggregation.encoding import UpdateWords
from fedsec.errors import InputError, RangeError, RoundAbortedError

METRICS = (MetricSpec("loss", 0.0, 20.0),)


def layout(hospitals=10, clip=1.0, largest_weight=1000, mean=100.0, bits=32, *, shape=(3,)):
    encoding = plan_encoding(hospitals, clip, largest_weight, mean, bits)
    return Layout(encoding, (ArraySpec("a", "float32", shape, clip),), METRICS)


@settings(deadline=None)
@given(
    hospitals=st.integers(1, 2000),
    clip=st.floats(1e-6, 1e6),
    weight=st.integers(1, 10_000),
    bits=st.sampled_from([32, 64]),
)
def test_threat_09_the_sum_at_the_exact_bound_does_not_wrap(hospitals, clip, weight, bits):
    try:
        plan = layout(hospitals, clip, weight, float(weight), bits, shape=(2,))
    except RangeError:
        assert hospitals * weight > (2 ** (bits - 1) - 1) // 1 or weight * 2**10 > 2**bits / hospitals
        return
    words = encode_update(plan, [np.array([clip, -clip])], weight, {"loss": 20.0})
    signed = [int(word) for word in words.view(f"<i{bits // 8}")]
    assert all(abs(word) <= plan.encoding.largest_word for word in signed)
    total = [hospitals * word for word in signed]
    assert all(-(2 ** (bits - 1)) <= word < 2 ** (bits - 1) for word in total)
    wrapped = np.array([word % 2**bits for word in total], dtype=words.dtype)
    assert [int(word) for word in wrapped.view(f"<i{bits // 8}")] == total


def test_threat_09_one_more_than_the_bound_is_refused():
    largest = (2**31 - 1) // 1000
    plan_encoding(1000, 1.0, largest, largest)
    with pytest.raises(RangeError, match="can wrap"):
        plan_encoding(1000, 1.0, largest + 1, largest)


def test_the_error_bound_is_the_stated_formula():
    encoding = plan_encoding(100, 2.0, 60_000, 1_000)
    assert encoding.error_bound == pytest.approx(100 * 60_000 / (2**32 * 1_000) * 2.0, rel=1e-2)


def test_a_plan_too_coarse_to_be_of_use_is_refused():
    with pytest.raises(RangeError, match="off by up to"):
        plan_encoding(1000, 1.0, 1_000_000, 1)


@pytest.mark.parametrize("hospitals", [2, 10, 1000, 4096])
def test_a_mean_is_off_by_less_than_a_millionth_of_its_range_or_the_plan_is_refused(hospitals):
    for spread in (1, 4096, 8000, 8300, 1_000_000):
        largest, mean = 100_000, 100_000 * hospitals / max(spread, hospitals)
        expected = hospitals * largest / (2**32 * mean)
        if expected <= 2.0**-19:
            assert plan_encoding(hospitals, 1.0, largest, mean).error_bound < 2 * 2.0**-20
        else:
            with pytest.raises(RangeError, match="take 64 bits"):
                plan_encoding(hospitals, 1.0, largest, mean)
        assert plan_encoding(hospitals, 1.0, largest, mean, ring_bits=64).error_bound < 2.0**-20


@pytest.mark.parametrize(
    "arguments",
    [
        (0, 1.0, 10, 1),
        (5, 0.0, 10, 1),
        (5, math.inf, 10, 1),
        (5, 1e308, 1000, 1),
        (5, 1e-308, 10, 1),
        (5, 1.0, 10, 1e-320),
        (5, 1.0, 0, 1),
        (5, 1.0, 10, 0),
        (5, 1.0, 10, 11),
    ],
)
def test_plans_without_sense_are_refused(arguments):
    with pytest.raises(RangeError):
        plan_encoding(*arguments)
    with pytest.raises(RangeError):
        plan_encoding(5, 1.0, 10, 1, 16)


@settings(deadline=None)
@given(values=st.lists(st.floats(-1, 1), min_size=3, max_size=3), weight=st.integers(1, 1000))
def test_rounding_is_once_and_half_to_even(values, weight):
    plan = layout()
    words = encode_update(plan, [np.array(values)], weight, {"loss": 1.0})
    factor = weight * plan.encoding.scale(1.0)
    expected = [round(Fraction(float(np.float64(value) * factor))) for value in values]
    assert words[:3].view(np.int32).tolist() == expected
    assert int(words[3]) == weight


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1.0000001, -2.0, 1e300])
def test_threat_14_values_that_are_not_finite_or_over_the_clip_are_refused(bad):
    with pytest.raises(RangeError, match="nothing was sent") as caught:
        encode_update(layout(), [np.array([0.0, bad, 0.0])], 5, {"loss": 1.0})
    assert "array 'a'" in str(caught.value)


def test_denormal_and_zero_values_are_fine():
    words = encode_update(layout(), [np.array([5e-324, -0.0, 0.0])], 5, {"loss": 0.0})
    assert words[:3].tolist() == [0, 0, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.1, 20.1])
def test_threat_14_metrics_outside_their_range_are_refused(bad):
    with pytest.raises(RangeError, match="metric 'loss'"):
        encode_update(layout(), [np.zeros(3)], 5, {"loss": bad})


@pytest.mark.parametrize("weight", [0, -1, 1001, 10**9, 1.0, True, np.float32(3), "7"])
def test_threat_16_lying_weights_are_refused(weight):
    with pytest.raises(RangeError, match="nothing was sent"):
        encode_update(layout(), [np.zeros(3)], weight, {"loss": 1.0})


def test_threat_16_the_bound_holds_at_the_limit():
    assert int(encode_update(layout(), [np.zeros(3)], 1000, {"loss": 1.0})[3]) == 1000
    assert int(encode_update(layout(), [np.zeros(3)], np.int64(1000), {"loss": 1.0})[3]) == 1000


@pytest.mark.parametrize(
    ("update", "metrics"),
    [
        ([], {"loss": 1.0}),
        ([np.zeros(4)], {"loss": 1.0}),
        ([np.zeros((3, 1))], {"loss": 1.0}),
        ([np.zeros(3, dtype=object)], {"loss": 1.0}),
        ([np.zeros(3, dtype=complex)], {"loss": 1.0}),
        ([np.zeros(3)], {}),
        ([np.zeros(3)], {"loss": 1.0, "auc": 0.5}),
    ],
)
def test_shapes_and_names_must_be_those_of_the_round(update, metrics):
    with pytest.raises(InputError, match="nothing was sent"):
        encode_update(layout(), update, 5, metrics)


def saturated(plan, update):
    """The words of an update whose values may be out of range, and what was said about it."""
    source = UpdateWords(plan, [np.asarray(update)], 5, {"loss": 1.0}, saturate=True)
    words = np.empty(plan.payload_words, dtype=np.uint32)
    list(source.fill(words))
    return words, source.report


def test_threat_10_clipping_is_reported():
    words, report = saturated(layout(), np.array([0.5, 3.0, -7.0], np.float32))
    np.testing.assert_array_equal(words, encode_update(layout(), [np.array([0.5, 1, -1])], 5, {"loss": 1.0}))
    assert (report.clipped, report.total) == (2, 5)


def test_a_clip_that_float32_cannot_hold_is_clipped_below_it():
    plan = layout(clip=0.1)
    words, report = saturated(plan, np.array([0.1, -0.1, 9.0], np.float32))
    assert report.clipped == 3
    np.testing.assert_array_equal(words, encode_update(plan, [np.array([0.1, -0.1, 0.1])], 5, {"loss": 1.0}))


def sums(plan, array_words, weight, metric_word):
    return np.array([*array_words, weight, metric_word], dtype=np.int64).astype(np.uint32)


def test_threat_14_an_opened_mean_outside_the_clip_range_aborts():
    plan = layout()
    scale = plan.encoding.scale(1.0)
    inside = round(100 * scale)
    decode_sum(plan, sums(plan, [inside, -inside, 0], 100, 0), included=2)
    for bad in (inside + 3, -inside - 3, 2**31 - 1):
        with pytest.raises(RoundAbortedError, match="mean of 'a'"):
            decode_sum(plan, sums(plan, [bad, 0, 0], 100, 0), included=2)


@pytest.mark.parametrize("weight", [1, 0, -5, 2001])
def test_threat_14_an_impossible_total_weight_aborts(weight):
    with pytest.raises(RoundAbortedError, match="total weight"):
        decode_sum(layout(), sums(layout(), [0, 0, 0], weight, 0), included=2)


def test_threat_14_a_metric_outside_its_range_aborts():
    with pytest.raises(RoundAbortedError, match="mean of 'loss'"):
        decode_sum(layout(), sums(layout(), [0, 0, 0], 100, -100), included=2)
