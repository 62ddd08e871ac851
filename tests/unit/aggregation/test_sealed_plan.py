"""The constants of a sealed round: nothing can wrap, and the stated error holds for exact Python integers."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.aggregation.planner import ArraySpec, plan_encoding
from fedsec.aggregation.sealed.plan import change_of, plan_division
from fedsec.aggregation.sealed.terms import (
    SEALED_FRACTION_BITS,
    arrays_bytes,
    arrays_from,
    decode_model,
    encode_model,
)
from fedsec.errors import InputError, RangeError
from fedsec.mpc import simulate
from fedsec.ring import RING64, fresh_stream
from fedsec.sharing import replicated

F = SEALED_FRACTION_BITS


def specs_of(*clips: float, size: int = 4) -> tuple[ArraySpec, ...]:
    return tuple(ArraySpec(f"a{i}", "float32", (size,), clip) for i, clip in enumerate(clips))


@dataclass(frozen=True)
class Case:
    """The public constants of a round."""

    ring_bits: int
    hospitals: int
    largest_weight: int
    clips: tuple[float, ...]
    heaviness: float
    fraction_bits: int


CASES = st.builds(
    Case,
    ring_bits=st.sampled_from([32, 64]),
    hospitals=st.integers(2, 1000),
    largest_weight=st.integers(1, 2000),
    clips=st.lists(st.floats(0.01, 1e4), min_size=1, max_size=3).map(tuple),
    heaviness=st.floats(0.001, 1.0),
    fraction_bits=st.integers(16, 32),
)


@settings(deadline=None)  # no time is asserted; a busy machine is no fault
@given(CASES)
def test_no_honest_sum_leaves_its_range_and_the_error_is_the_stated_one(case: Case) -> None:
    """For the largest honest sums, in exact integers: lift, products and results stay in range."""
    largest_weight, hospitals = case.largest_weight, case.hospitals
    try:
        encoding = plan_encoding(
            2 * hospitals, max(case.clips), largest_weight, largest_weight, case.ring_bits
        )
    except RangeError:
        return
    total_weight = max(1, int(hospitals * largest_weight * case.heaviness))
    specs = specs_of(*case.clips)
    division = plan_division(encoding, specs, total_weight, case.fraction_bits)
    for spec, numerator in zip(specs, division.numerators, strict=True):
        # The mean at the end of its clip, each hospital's word rounded away by half.
        exact = Fraction(encoding.scale(spec.clip)) * total_weight * Fraction(spec.clip)
        largest = min(int(exact) + hospitals, hospitals * encoding.largest_word)
        assert largest < 2 ** (encoding.ring_bits - 2), "it can be lifted"
        for value in (largest, -largest, largest // 3, 1, 0, -1):
            for kept in {value >> division.dropped, (value >> division.dropped) + 1}:
                product = kept * numerator
                assert abs(product) + 2**division.bits < 2**62, "it can be truncated"
                wanted = Fraction(value, 1) / (Fraction(encoding.scale(spec.clip)) * total_weight)
                for word in {product >> division.bits, (product >> division.bits) + 1}:
                    error = abs(Fraction(word, 2**case.fraction_bits) - wanted)
                    # The rounding of the words is the encoding's error, not the division's.
                    slack = Fraction(hospitals) * Fraction(
                        numerator, 2 ** (division.bits + case.fraction_bits)
                    )
                    assert (
                        error
                        <= Fraction(division.error_bound) * Fraction(1001, 1000) + slack / 2**division.dropped
                    )


@pytest.mark.parametrize("ring_bits", [32, 64])
def test_the_protocol_computes_what_the_constants_say(ring_bits: int) -> None:
    encoding = plan_encoding(10, 2.0, 1000, 100.0, ring_bits)
    specs = specs_of(2.0, 0.25, size=300)
    division = plan_division(encoding, specs, 3210, F)
    means = np.concatenate([np.random.default_rng(3).uniform(-c, c, 300) for c in (2.0, 0.25)])
    means[:3] = 2.0, -2.0, 0.0
    scales = np.repeat([encoding.scale(2.0), encoding.scale(0.25)], 300)
    sums = np.rint(means * scales * 3210).astype(np.int64).astype(encoding.ring.dtype)
    shares = replicated.share(sums, fresh_stream())

    done = simulate(lambda party: change_of(party, shares[party.id], specs, division, F))

    change = replicated.reconstruct(done.results).astype(np.int64) * 2.0**-F
    assert np.abs(change - means).max() <= division.error_bound + (0.5 / (scales * 3210)).max()
    assert all(share.fraction_bits == F for share in done.results)


def test_the_result_is_shared_afresh_whatever_the_sums_sharing_is() -> None:
    """What hospitals are sent must not tell more than the state: one sum has other components each time.

    In the 64-bit ring the low bits of a truncated component that two parties know are those of the sum's.
    """
    encoding = plan_encoding(10, 2.0, 1000, 100.0, 64)
    specs = specs_of(2.0, size=500)
    division = plan_division(encoding, specs, 3210, F)
    shares = replicated.share(np.arange(500, dtype=np.uint64), fresh_stream())

    first, second = (
        simulate(lambda party: change_of(party, shares[party.id], specs, division, F)).results
        for _ in range(2)
    )

    for one, other in zip(first, second, strict=True):
        same = np.mean((one.own ^ other.own) & np.uint64(0xFFFF) == 0)
        assert same < 0.02, "the low bits of a component are the same in both runs"


def test_what_does_not_fit_is_refused() -> None:
    encoding = plan_encoding(10, 2.0, 1000, 100.0)
    with pytest.raises(RangeError, match="weight 0"):
        plan_division(encoding, specs_of(2.0), 0, F)
    wide = plan_encoding(10, 1e6, 1000, 100.0)
    with pytest.raises(RangeError, match="lower the clip"):
        plan_division(wide, specs_of(2.0**41), 3210, F)


def test_a_model_is_rounded_once_and_decoded_exactly() -> None:
    arrays = [np.array([[0.1, -0.2]], np.float32), np.array([1.5, 2.0**-25, -3.0], np.float64)]
    specs = (ArraySpec("a", "float32", (1, 2), 1.0), ArraySpec("b", "float64", (3,), 1.0))

    words = encode_model(arrays, F)
    decoded = decode_model(words, specs, F)

    assert words.dtype == RING64.dtype
    for got, wanted in zip(decoded, arrays, strict=True):
        assert got.shape == wanted.shape
        assert np.abs(got - wanted).max() <= 2.0 ** -(F + 1)
    # Float32 below 1 has no bits below 2^-24 that 24 fraction bits would not keep, but for the smallest.
    np.testing.assert_array_equal(encode_model(decoded, F), words)
    body = arrays[0].tobytes() + arrays[1].tobytes()
    assert arrays_bytes(specs) == len(body)
    for got, wanted in zip(arrays_from(body, specs), arrays, strict=True):
        np.testing.assert_array_equal(got, wanted)
    with pytest.raises(InputError):
        arrays_from(body[:-1], specs)
    with pytest.raises(InputError):
        decode_model(words[1:], specs, F)
    for wrong in (np.nan, np.inf, 2.0**40):
        with pytest.raises(RangeError, match="cannot be sealed"):
            encode_model([np.array([wrong])], F)
