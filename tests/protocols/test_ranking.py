"""The indices of the largest values against a stable sort."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from fedsec.errors import UsageError
from fedsec.mpc import simulate, top_k
from fedsec.ring import RING32, RING64, Ring, RingArray, fresh_stream, signed
from fedsec.sharing import replicated
from fedsec.testing import Secret, check_protocol

pytest_plugins = ["fedsec.testing"]


def plain_top_k(x: RingArray, k: int) -> Any:
    """The largest first; of equal ones the lowest index first."""
    return np.argsort(-signed(x).astype(np.int64), axis=1, kind="stable")[:, :k].astype(x.dtype)


@check_protocol(top_k, inputs={"x": Secret((2,), low=-4, high=3), "k": 1, "window_bits": 4})
def test_top_1_of_2(x: Any, k: int, window_bits: int) -> Any:
    return plain_top_k(x, k)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_every_order_of_four_values_ties_included(k: int) -> None:
    x = np.array(list(product(range(4), repeat=4)), dtype=np.uint64)
    shares = replicated.share(x, fresh_stream())

    done = simulate(lambda party: top_k(party, shares[party.id], k, 3))

    assert np.array_equal(replicated.reconstruct(done.results), plain_top_k(x, k))


@pytest.mark.parametrize("ring", [RING32, RING64], ids=str)
@pytest.mark.parametrize(("values", "k"), [(10, 1), (10, 3), (10, 10), (129, 5), (300, 1)])
def test_many_values_at_their_declared_cost(values: int, k: int, ring: Ring) -> None:
    stream = fresh_stream()
    # Few distinct values, so that many are equal.
    x = (stream.words((4, values), ring) >> ring.dtype.type(ring.bits - 7)) - ring.dtype.type(64)
    shares = replicated.share(x, stream, fraction_bits=3)

    done = simulate(lambda party: top_k(party, shares[party.id], k, 8), record=True)

    assert np.array_equal(replicated.reconstruct(done.results), plain_top_k(x, k))
    assert done.cost == top_k.cost(shares[0], k, 8)
    assert done.results[0].fraction_bits == 0
    assert done.results[0].shape == (4, k)


@pytest.mark.parametrize(("shape", "k"), [((5,), 1), ((2, 1), 1), ((2, 5), 0), ((2, 5), 6)])
def test_what_has_no_such_places_is_refused(shape: tuple[int, ...], k: int) -> None:
    shares = replicated.share(np.zeros(shape, dtype=RING64.dtype), fresh_stream())

    with pytest.raises(UsageError, match="largest of at least two values"):
        simulate(lambda party: top_k(party, shares[party.id], k, 8))
