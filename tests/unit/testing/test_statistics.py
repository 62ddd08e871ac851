"""The statistics of the view checks, against scipy and against samples with a known defect."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fedsec.ring import KeyedStream, derive_key
from fedsec.testing.statistics import (
    Looks,
    Span,
    chi_squared_tail,
    fair_by_parity,
    fair_in_blocks,
    fair_in_cells,
    normal_tail,
    row_as_integer,
    uniform_bytes,
)

STREAM = KeyedStream(derive_key(bytes(32), purpose="test statistics"))
LANES = 1 << 14


def _rows(count: int) -> np.ndarray:
    return STREAM.words((count, LANES // 64)).astype(np.uint64)


@pytest.mark.parametrize("degrees", [255, 1000, 4095.5])
@pytest.mark.parametrize("p", [0.5, 1e-3, 1e-6, 1e-9, 1e-12])
def test_chi_squared_tail_is_close_to_the_exact_one(degrees: float, p: float) -> None:
    statistic = stats.chi2.isf(p, degrees)

    assert math.isclose(chi_squared_tail(statistic, degrees), p, rel_tol=0.2)


@pytest.mark.parametrize("p", [0.5, 1e-3, 1e-6, 1e-9, 1e-12])
def test_with_few_degrees_it_is_never_too_small_and_at_most_thrice_too_large(p: float) -> None:
    assert 0.99 <= chi_squared_tail(stats.chi2.isf(p, 32), 32) / p <= 3


@pytest.mark.parametrize("z", [-1.0, 0.0, 3.0, 6.0])
def test_normal_tail_is_the_exact_one(z: float) -> None:
    assert math.isclose(normal_tail(z), stats.norm.sf(z), rel_tol=1e-9)


def test_uniform_bytes_pass_and_one_bad_column_is_noticed() -> None:
    samples = STREAM.words((LANES, 8)).view(np.uint8)
    assert uniform_bytes(samples) > 1e-6

    samples[:, 3] &= 0x7F
    assert uniform_bytes(samples) < 1e-12


def test_a_bound_that_excludes_the_top_value_is_noticed() -> None:
    """Threat 6: a sampler that never gives the largest byte."""
    samples = STREAM.words((1 << 14, 1)).view(np.uint8).reshape(-1, 1).copy()
    samples[samples == 255] = 0

    assert uniform_bytes(samples) < 1e-12


def _runs(values: np.ndarray, lanes: int) -> np.ndarray:
    return np.repeat(values.astype(np.uint8), lanes // len(values)).reshape(-1, 1)


def test_bytes_that_are_constant_in_half_of_the_blocks_are_noticed_though_uniform_over_all() -> None:
    samples = STREAM.words((1 << 13, 1)).view(np.uint8)[:, :1].copy()
    constants = _runs(np.arange(32) * 37, len(samples))
    blocks = np.repeat(np.arange(32), len(samples) // 32)
    samples[blocks % 2 == 0] = constants[blocks % 2 == 0]

    assert uniform_bytes(samples, 32) < 1e-12
    # One in a block only, so that over all samples it hardly shows.
    shifted = (STREAM.words((1 << 13, 1)).view(np.uint8)[:, :1] & 0x7F) + _runs(
        np.arange(32) % 2 * 128, 1 << 13
    )
    assert uniform_bytes(shifted) > 1e-6
    assert uniform_bytes(shifted.astype(np.uint8), 32) < 1e-12


def test_fair_samples_in_blocks_pass_as_often_as_they_should() -> None:
    """Of 2,000 p-values about 20 are below 1 %."""
    octets = [uniform_bytes(STREAM.words(1 << 10).view(np.uint8).reshape(-1, 1), 32) for _ in range(2000)]
    bits = [fair_in_blocks(_rows(1), 32) for _ in range(2000)]

    for found in (octets, bits):
        assert sum(p < 0.01 for p in found) < 60
        assert min(found) > 1e-8


def test_a_plane_that_leans_this_way_and_that_from_block_to_block_is_noticed() -> None:
    leaning = _rows(1) & _rows(1)  # one in four
    planes = np.where(np.arange(LANES // 64) // 8 % 2, leaning, ~leaning).astype(np.uint64)

    assert fair_by_parity(planes[0], _rows(1)) > 1e-6
    assert fair_in_blocks(np.concatenate([_rows(3), planes]), 32) < 1e-12


def test_looks_are_counted() -> None:
    looks = Looks()
    assert looks.p == 1.0
    for p in (0.5, 0.01, 0.9, 0.04):
        looks.add(p)
    assert looks.p == pytest.approx(0.04)


def test_p_values_of_fair_samples_are_not_small() -> None:
    known = _rows(20)

    for target in _rows(50):
        assert fair_by_parity(target, known) > 1e-6
        assert fair_in_cells(target, list(known)) > 1e-6


def test_what_follows_by_xor_of_any_number_is_noticed() -> None:
    known = _rows(30)
    span = Span(LANES)
    assert all(span.add(row_as_integer(row)) for row in known)

    mixture = np.bitwise_xor.reduce(known[::2], axis=0)

    assert not span.add(row_as_integer(mixture))
    assert not span.add(row_as_integer(~mixture)), "a complement follows as well"
    assert span.add(row_as_integer(_rows(1)[0]))


def test_a_weak_bias_is_noticed_alone_and_beside_one_and_two_known_bits() -> None:
    known = _rows(10)
    leaning = _rows(1)[0] & _rows(1)[0] & _rows(1)[0]  # one in eight

    for hidden_by in (0, known[4], known[4] ^ known[9]):
        assert fair_by_parity(leaning ^ hidden_by, known) < 1e-12


def test_a_nonlinear_function_of_known_bits_is_noticed_in_cells() -> None:
    known = _rows(6)
    # A bent function: no parity of known bits leans more than 1/8, yet the bits determine it.
    bent = (known[0] & known[1]) ^ (known[2] & known[3]) ^ (known[4] & known[5])

    assert fair_in_cells(bent, list(known)) < 1e-12
    assert fair_in_cells(bent ^ _rows(1)[0], list(known)) > 1e-6


def test_no_known_bits_is_no_cell() -> None:
    assert fair_in_cells(_rows(1)[0], []) == 1.0
