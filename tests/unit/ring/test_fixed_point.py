from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.errors import InputError, RangeError, UsageError
from fedsec.ring import RING32, RING64, WORD_SIZES, Ring, decode, encode

RINGS = [Ring(bits) for bits in WORD_SIZES]


def test_every_byte_decodes_and_encodes_back():
    words = np.arange(256, dtype=np.uint8)
    for fraction_bits in range(8):
        reals = decode(words, fraction_bits)
        expected = [(value if value < 128 else value - 256) / 2**fraction_bits for value in range(256)]
        np.testing.assert_array_equal(reals, expected)

        encodable = words != 128  # -2^(k-1) is left out, so that every encoding has a negative
        np.testing.assert_array_equal(encode(reals[encodable], fraction_bits, Ring(8)), words[encodable])
        with pytest.raises(RangeError):
            encode(reals[128], fraction_bits, Ring(8))


def test_every_sum_of_bytes_inside_the_range_is_exact():
    reals = np.arange(-127, 128) / 16
    words = encode(reals, 4, Ring(8))
    total = reals[:, None] + reals[None, :]
    inside = np.abs(total) < 8

    np.testing.assert_array_equal(decode(words[:, None] + words[None, :], 4)[inside], total[inside])


@pytest.mark.parametrize("ring", RINGS, ids=str)
def test_the_largest_values_fit_and_the_next_do_not(ring):
    largest = (
        float(np.nextafter(2.0 ** (ring.bits - 1), 0)) if ring.bits == 64 else 2.0 ** (ring.bits - 1) - 1
    )
    for sign in (1, -1):
        assert decode(encode([sign * largest], 0, ring), 0)[0] == sign * largest
        with pytest.raises(RangeError):
            encode([sign * 2.0 ** (ring.bits - 1)], 0, ring)


def test_a_value_that_rounds_up_to_the_limit_is_refused():
    """127.5 is below 2^7 but its encoding would be 128, which reads as -128."""
    with pytest.raises(RangeError):
        encode([127.5], 0, Ring(8))
    assert encode([127.4999], 0, Ring(8))[0] == 127


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300, -1e300, np.finfo(float).max])
@pytest.mark.parametrize("ring", [RING32, RING64], ids=str)
def test_threat_14_what_is_not_finite_or_too_large_is_refused(bad, ring):
    with pytest.raises(RangeError, match="nothing was encoded") as refused:
        encode([0.0, bad, 1.0], 16, ring)
    assert str(bad) not in str(refused.value)


def test_threat_14_denormals_round_to_zero():
    np.testing.assert_array_equal(encode([5e-324, -5e-324, 2.2e-308], 63, RING64), [0, 0, 0])


def test_ties_go_to_even():
    np.testing.assert_array_equal(
        encode([0.5, 1.5, 2.5, -0.5, -1.5, -2.5], 0, Ring(8)), [0, 2, 2, 0, 254, 254]
    )


@settings(deadline=None)
@given(
    value=st.floats(allow_nan=False, allow_infinity=False, width=64),
    fraction_bits=st.integers(0, 31),
    ring=st.sampled_from([RING32, RING64]),
)
def test_the_encoding_is_the_exact_product_rounded_once(value, fraction_bits, ring):
    exact = round(Fraction(value) * 2**fraction_bits)  # Python rounds fractions half to even
    if abs(exact) >= 2 ** (ring.bits - 1):
        with pytest.raises(RangeError):
            encode(value, fraction_bits, ring)
    else:
        assert int(encode(value, fraction_bits, ring)) == exact % ring.modulus


@settings(deadline=None)
@given(values=st.lists(st.floats(-1000, 1000), max_size=20), fraction_bits=st.integers(0, 40))
def test_a_round_trip_errs_by_at_most_half_a_unit(values, fraction_bits):
    back = decode(encode(values, fraction_bits), fraction_bits)

    assert np.all(np.abs(back - np.array(values, dtype=float)) <= 2.0 ** -(fraction_bits + 1))


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "int8", "uint8", "int64", "uint64", "bool"]
)
def test_shapes_are_kept_for_every_real_dtype(dtype):
    for shape in [(), (0,), (3,), (2, 0, 3), (2, 3)]:
        words = encode(np.ones(shape, dtype=dtype), 8)
        assert words.shape == shape
        assert words.dtype == np.uint64
        np.testing.assert_array_equal(decode(words, 8), np.ones(shape))


def test_integers_that_float64_cannot_hold_are_refused():
    assert int(encode(2**53, 0)) == 2**53
    for value in (2**53 + 2, -(2**53) - 2, 2**64 - 1):
        with pytest.raises(RangeError, match="2\\^53"):
            encode(np.array([value]), 0)


@pytest.mark.parametrize("values", [[1j], ["1"], [None], [2**70]])
def test_what_is_no_real_number_is_refused(values):
    with pytest.raises(InputError, match="real numbers"):
        encode(values, 4)


@pytest.mark.parametrize("fraction_bits", [-1, 32, 100])
def test_fraction_bits_outside_the_ring_are_refused(fraction_bits):
    with pytest.raises(UsageError, match="0 to 31"):
        encode([1.0], fraction_bits, RING32)
    with pytest.raises(UsageError, match="0 to 31"):
        decode(np.zeros(1, dtype=np.uint32), fraction_bits)


def test_only_ring_elements_are_decoded():
    with pytest.raises(InputError):
        decode(np.zeros(1), 4)
