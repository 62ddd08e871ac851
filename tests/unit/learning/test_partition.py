from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.errors import InputError
from fedsec.learning import partition

LABELS = np.repeat(np.arange(10), 600)


@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(st.integers(0, 9), min_size=1, max_size=200),
    hospitals=st.integers(1, 30),
    alpha=st.floats(0.01, 100),
    seed=st.integers(0, 2**32),
)
def test_every_example_goes_to_exactly_one_hospital(
    labels: list[int], hospitals: int, alpha: float, seed: int
) -> None:
    array = np.array(labels)
    hospitals = min(hospitals, len(labels))
    for parts in (
        partition.equal(array, hospitals, seed),
        partition.dirichlet(array, hospitals, alpha, seed),
    ):
        assert len(parts) == hospitals
        assert all(len(part) >= 1 for part in parts)
        assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))


def test_equal_is_equal_and_reproducible() -> None:
    parts = partition.equal(LABELS, 10, seed=4)

    assert {len(part) for part in parts} == {600}
    # Random, not in the order of the labels: no class is missing anywhere.
    assert all(len(np.unique(LABELS[part])) == 10 for part in parts)
    for one, other in zip(parts, partition.equal(LABELS, 10, seed=4), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(parts[0], partition.equal(LABELS, 10, seed=5)[0])


def test_a_small_alpha_is_skewed_and_a_large_one_is_not() -> None:
    def largest_class(alpha: float) -> float:
        parts = partition.dirichlet(LABELS, 10, alpha, seed=1)
        return float(np.mean([np.bincount(LABELS[part]).max() / len(part) for part in parts]))

    assert largest_class(0.1) > 0.45
    assert largest_class(1000.0) < 0.15


def test_what_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(InputError, match="at least one example each"):
        partition.equal(LABELS[:3], 4, seed=0)
    with pytest.raises(InputError, match="above 0"):
        partition.dirichlet(LABELS, 4, 0.0, seed=0)
