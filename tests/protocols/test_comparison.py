"""Signs, selection and ReLU, against plain comparisons."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsec.errors import UsageError
from fedsec.mpc import is_negative, relu, select, simulate
from fedsec.ring import RING32, RING64, Ring, fresh_stream, signed
from fedsec.sharing import boolean, replicated
from fedsec.sharing.boolean import unpack_bits
from fedsec.testing import Bits, Secret, check_protocol

pytest_plugins = ["fedsec.testing"]

RING8 = Ring(8)


@check_protocol(is_negative, inputs={"x": Secret(low=-16, high=15, window_bits=5), "window_bits": 5})
def test_is_negative(x: Any, window_bits: int) -> Any:
    return signed(x) < 0


@check_protocol(
    is_negative,
    inputs={"x": Secret(low=-4, high=3, window_bits=3), "window_bits": 3},
    ring=RING32,
)
def test_is_negative_in_the_32_bit_ring(x: Any, window_bits: int) -> Any:
    return signed(x) < 0


@check_protocol(select, inputs={"bit": Bits(), "x": Secret()})
def test_select(bit: Any, x: Any) -> Any:
    return np.where(unpack_bits(bit, x.size), x, 0)


@check_protocol(relu, inputs={"x": Secret(low=-8, high=7, window_bits=4), "window_bits": 4})
def test_relu(x: Any, window_bits: int) -> Any:
    return np.maximum(signed(x), 0)


@pytest.mark.parametrize("window_bits", range(2, 9))
def test_every_value_of_every_window_of_the_8_bit_ring(window_bits: int) -> None:
    half = 1 << (window_bits - 1)
    values, x_2 = np.meshgrid(np.arange(-half, half, dtype=np.int8), np.arange(256, dtype=np.uint8))
    secret = values.ravel().astype(np.uint8)
    parts = [fresh_stream().words(secret.shape, RING8)]
    parts += [np.asarray(secret - parts[0] - x_2.ravel()), x_2.ravel()]
    shares = [replicated.RepShare(parts[i], parts[(i + 1) % 3]) for i in range(3)]

    done = simulate(lambda party: relu(party, shares[party.id], window_bits), ring=RING8)

    assert np.array_equal(signed(replicated.reconstruct(done.results)), np.maximum(signed(secret), 0))


@pytest.mark.parametrize("window_bits", [3, 14, 21, 22, 33, 64])
@pytest.mark.parametrize("count", [1, 63, 65])
def test_relu_of_other_windows_and_counts_at_their_declared_cost(window_bits: int, count: int) -> None:
    stream = fresh_stream()
    half = 1 << (window_bits - 1)
    values = (stream.words(count) & np.uint64(2 * half - 1)) - np.uint64(half)
    values[0] = -half % 2**64  # the smallest value that fits
    shares = replicated.share(values, stream)

    done = simulate(lambda party: relu(party, shares[party.id], window_bits), record=True)

    assert np.array_equal(signed(replicated.reconstruct(done.results)), np.maximum(signed(values), 0))
    declared = relu.cost(shares[0], window_bits)
    assert done.cost.sent == declared.sent
    # Party 0 receives nothing in the first round: in deep trees its lead shortens the longest chain.
    assert declared.rounds - 1 <= done.cost.rounds <= declared.rounds


def test_rounds_grow_with_the_logarithm_of_the_window() -> None:
    shares = replicated.share(np.zeros(64, dtype=RING64.dtype), fresh_stream())

    rounds = {bits: relu.cost(shares[0], bits).rounds for bits in (2, 3, 5, 17, 21, 33, 64)}

    assert rounds == {2: 3, 3: 4, 5: 5, 17: 7, 21: 8, 33: 8, 64: 9}


def test_relu_keeps_shape_and_fraction_bits() -> None:
    shares = replicated.share(np.zeros((2, 3, 4), dtype=RING64.dtype), fresh_stream(), fraction_bits=13)

    done = simulate(lambda party: relu(party, shares[party.id], 20))

    assert done.results[0].shape == (2, 3, 4)
    assert done.results[0].fraction_bits == 13


@pytest.mark.parametrize("window_bits", [1, 65])
def test_a_window_that_does_not_fit_is_refused(window_bits: int) -> None:
    shares = replicated.share(np.zeros(1, dtype=RING64.dtype), fresh_stream())

    with pytest.raises(UsageError, match="window of 2 to 64 bits"):
        simulate(lambda party: is_negative(party, shares[party.id], window_bits))


def test_a_selection_needs_one_bit_an_element() -> None:
    stream = fresh_stream()
    shares = replicated.share(stream.words(5), stream)
    bits = boolean.share(np.zeros((2, 1), dtype=np.uint64), 5, stream)

    with pytest.raises(UsageError, match="one bit an element"):
        simulate(lambda party: select(party, bits[party.id], shares[party.id]))
