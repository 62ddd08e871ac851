"""Products of secrets, and the step that makes an additive sharing replicated again."""

from __future__ import annotations

from typing import Any

from fedsec.mpc import and_bits, multiply, reshare
from fedsec.ring import RING32
from fedsec.sharing.boolean import unpack_bits
from fedsec.testing import Additive, Bits, Secret, check_protocol

pytest_plugins = ["fedsec.testing"]


@check_protocol(multiply, inputs={"x": Secret(), "y": Secret()})
def test_multiply(x: Any, y: Any) -> Any:
    return x * y


@check_protocol(multiply, inputs={"x": Secret(), "y": Secret()}, ring=RING32)
def test_multiply_in_the_32_bit_ring(x: Any, y: Any) -> Any:
    return x * y


@check_protocol(reshare, inputs={"words": Additive((2,))})
def test_reshare(words: Any) -> Any:
    return words


@check_protocol(and_bits, inputs={"x": Bits(2), "y": Bits(2)})
def test_and_bits(x: Any, y: Any) -> Any:
    return unpack_bits(x & y, 64 * x.shape[1])
