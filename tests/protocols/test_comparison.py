"""Signs, bits as words, and selection, against plain comparisons."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsec.errors import UsageError
from fedsec.mpc import bits_to_words, is_negative, select, simulate
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


@check_protocol(is_negative, inputs={"x": Secret(low=-256, high=255, window_bits=3), "window_bits": 9})
def test_is_negative_by_a_tree_of_chunks(x: Any, window_bits: int) -> Any:
    return signed(x) < 0


@check_protocol(bits_to_words, inputs={"bit": Bits()})
def test_bits_to_words(bit: Any) -> Any:
    return unpack_bits(bit, 64 * bit.shape[1])


@check_protocol(bits_to_words, inputs={"bit": Bits(), "ring": RING8})
def test_bits_to_words_of_a_small_ring(bit: Any, ring: Ring) -> Any:
    return unpack_bits(bit, 64 * bit.shape[1], ring)


@check_protocol(select, inputs={"bit": Bits(), "x": Secret()})
def test_select(bit: Any, x: Any) -> Any:
    return np.where(unpack_bits(bit, x.size), x, 0)


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


def test_bits_become_words_one_plane_at_a_time() -> None:
    bits = boolean.share(np.zeros((2, 1), dtype=np.uint64), 5, fresh_stream())

    with pytest.raises(UsageError, match="one plane"):
        simulate(lambda party: bits_to_words(party, bits[party.id]))
