"""Straight pieces stay within their stated error of the function, everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.errors import UnsupportedModelError
from fedsec.nn import functions
from fedsec.nn.functions import SMOOTH, elu, evaluate, fit
from fedsec.nn.network import FUNCTIONS
from fedsec.nn.pieces import Pieces, join

BY_NAME = {**SMOOTH, "elu": elu(1.0), "elu, half": elu(0.5), "elu, double": elu(2.0)}


def places(low: float, high: float) -> np.ndarray:
    generator = np.random.default_rng(0)
    near = np.clip(generator.uniform(-8.0, 8.0, 20_000), low, high)
    return np.concatenate([generator.uniform(low, high, 20_000), near, [low, high]])


def test_every_function_of_a_network_has_pieces() -> None:
    assert set(FUNCTIONS) - set(SMOOTH) == {"softmax", "elu"}


@pytest.mark.parametrize("error", [2.0**-7, 2.0**-9, 2.0**-11])
@pytest.mark.parametrize("domain", [(-30.0, 30.0), (-1.0, 2.5), (-1000.0, 0.5), (2.0, 2.25), (20.0, 30.0)])
@pytest.mark.parametrize("name", BY_NAME)
def test_pieces_are_within_the_stated_error(name: str, domain: tuple[float, float], error: float) -> None:
    pieces = fit(BY_NAME[name], *domain, error=error, fraction_bits=13)
    x = places(*domain)

    seen = np.abs(evaluate(pieces, x, 13) - BY_NAME[name].call(x)).max()

    assert seen <= pieces.error <= error
    # The bound is one that is reached.
    assert pieces.error <= 1.01 * seen + 1e-6


@pytest.mark.parametrize(
    ("name", "most"), [("sigmoid", 18), ("tanh", 24), ("gelu", 20), ("silu", 27), ("softplus", 21)]
)
def test_pieces_are_few(name: str, most: int) -> None:
    """Each costs a comparison for every value; the best that is possible is about 8/10 of these."""
    assert len(fit(SMOOTH[name], -100.0, 100.0, error=2.0**-9, fraction_bits=13).knots) <= most


@settings(deadline=None, max_examples=30)
@given(
    name=st.sampled_from(sorted(BY_NAME)),
    low=st.floats(-50, 49.9),
    width=st.floats(0.01, 100),
    bits=st.integers(8, 16),
)
def test_any_domain_and_any_fraction_bits_will_do(name: str, low: float, width: float, bits: int) -> None:
    pieces = fit(BY_NAME[name], low, low + width, error=2.0**-6, fraction_bits=bits)
    x = places(low, low + width)

    assert np.abs(evaluate(pieces, x, bits) - BY_NAME[name].call(x)).max() <= pieces.error <= 2.0**-6


def test_far_away_a_function_is_its_asymptote() -> None:
    tanh = fit(SMOOTH["tanh"], -1e4, 1e4, error=2.0**-9, fraction_bits=13)
    gelu = fit(SMOOTH["gelu"], -1e4, 1e4, error=2.0**-9, fraction_bits=13)

    far = np.array([-1e4, 1e4])
    np.testing.assert_allclose(evaluate(tanh, far, 13), [-1.0, 1.0], atol=2.0**-9)
    np.testing.assert_allclose(evaluate(gelu, far, 13), [0.0, 1e4], atol=2.0**-9)


def test_an_error_that_needs_too_many_pieces_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "MOST_PIECES", 20)

    with pytest.raises(UnsupportedModelError, match=r"more than 20 pieces .* allow a larger error"):
        fit(SMOOTH["tanh"], -5.0, 5.0, error=2.0**-12, fraction_bits=13)


def test_pieces_go_through_their_heights() -> None:
    found = join([-4, 0, 10], [8, 0, 20], (-3, None), 0)

    assert found == Pieces((-4, 0, 10), (1, 4, 0), -3, -4, 0)
    x = np.array([-6.0, -4.0, -2.0, 0.0, 5.0, 10.0, 12.0])
    np.testing.assert_array_equal(evaluate(found, x, 0), [14, 8, 4, 0, 10, 20, 24])


def test_rounded_slopes_do_not_add_up() -> None:
    """A third has no binary digits; every piece makes up for what the last one lost."""
    knots = list(range(0, 3000, 3))
    found = join(knots, [knot // 3 for knot in knots], (None, None), 0)

    x = np.array(knots, dtype=float)
    assert np.abs(evaluate(found, x, 0) - x / 3).max() <= 1.5
