"""Sealed rounds over mutual TLS: three parties keep the model in shares, hospitals alone put it together."""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from fedsec.aggregation.sealed import decode_model
from fedsec.aggregation.sealed_state import SealedStates
from fedsec.sharing import replicated

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from sealed_site import FRACTION_BITS, SealedSite, initial_model, mean_update, weight_of

WORD = 2.0**-FRACTION_BITS


@contextmanager
def site(folder, **options):
    with ExitStack() as stack:
        yield SealedSite(folder, stack, **options)


def held(here, number):
    """The state that the three parties hold together, as float64 arrays."""
    states = [
        SealedStates(here.state(one.name)).read(here.session, number) for one in here.cluster.parties[:3]
    ]
    words = replicated.reconstruct([state.share for state in states])
    return decode_model(words, states[0].arrays, FRACTION_BITS)


@pytest.mark.parametrize(("parties", "ring_bits"), [(3, 32), (5, 32), (3, 64)])
def test_three_sealed_rounds_are_federated_averaging(tmp_path, parties, ring_bits):
    with site(tmp_path, parties=parties) as here:
        plain = [one.astype(np.float64) for one in initial_model()]
        bound = 0.5 * WORD
        for number in (1, 2, 3):
            announcement = here.announcement(number, number - 1, ring_bits=ring_bits)
            models = here.take_part(announcement, here.open(announcement))
            for model in models.values():
                for got, first in zip(model, models[0], strict=True):
                    np.testing.assert_array_equal(got, first)
            result = here.collect(announcement)
            assert (result.state, result.not_sealed) == (number, "")
            assert result.arrays == ()
            assert result.total_weight == sum(weight_of(seed) for seed in range(3))
            bound += result.error_bound
            plain = [old + new for old, new in zip(plain, mean_update(number, range(3)), strict=True)]
            for got, expected in zip(held(here, number), plain, strict=True):
                assert np.abs(got - expected).max() <= bound
        assert bound < 2**-16 if ring_bits == 32 else bound < 2**-20
        last, model = here.clients[1].last_model(announcement, here.model)
        assert last == 3
        for got, expected in zip(model, held(here, 3), strict=True):
            np.testing.assert_array_equal(got, expected)
