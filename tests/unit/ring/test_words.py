import numpy as np
import pytest

from fedsec.errors import InputError, UsageError
from fedsec.ring import RING32, RING64, WORD_SIZES, Ring, ring_of, signed

BYTES = np.arange(256, dtype=np.uint8)


@pytest.mark.parametrize("bits", WORD_SIZES)
def test_a_ring_names_its_words(bits):
    ring = Ring(bits)

    assert ring.dtype == np.dtype(f"uint{bits}")
    assert ring.element_bytes * 8 == bits
    assert ring.modulus == 2**bits
    assert ring_of(np.zeros(3, dtype=ring.dtype)) == ring


def test_the_two_rings_in_use():
    assert (RING32.bits, RING64.bits) == (32, 64)


@pytest.mark.parametrize("bits", [0, 1, 7, 24, 65, 128, -8])
def test_other_word_sizes_are_refused(bits):
    with pytest.raises(UsageError, match="8, 16, 32 or 64"):
        Ring(bits)


@pytest.mark.parametrize("dtype", ["int64", "float64", "bool", "object"])
def test_only_unsigned_arrays_are_ring_elements(dtype):
    with pytest.raises(InputError, match="unsigned"):
        ring_of(np.zeros(2, dtype=dtype))
    with pytest.raises(InputError, match="unsigned"):
        signed(np.zeros(2, dtype=dtype))


def test_every_sum_difference_and_product_of_bytes_wraps():
    a, b = BYTES[:, None], BYTES[None, :]
    x, y = a.astype(int), b.astype(int)

    np.testing.assert_array_equal(a + b, (x + y) % 256)
    np.testing.assert_array_equal(a - b, (x - y) % 256)
    np.testing.assert_array_equal(a * b, (x * y) % 256)
    np.testing.assert_array_equal(-BYTES, (-BYTES.astype(int)) % 256)


def test_every_byte_in_twos_complement():
    expected = [value if value < 128 else value - 256 for value in range(256)]

    np.testing.assert_array_equal(signed(BYTES), expected)


@pytest.mark.parametrize("bits", WORD_SIZES)
def test_twos_complement_at_the_edges(bits):
    words = np.array([0, 1, 2 ** (bits - 1) - 1, 2 ** (bits - 1), 2**bits - 1], dtype=Ring(bits).dtype)

    expected = [0, 1, 2 ** (bits - 1) - 1, -(2 ** (bits - 1)), -1]
    assert [int(value) for value in signed(words)] == expected


def test_signed_is_a_view():
    words = np.zeros((2, 3), dtype=np.uint64)
    signed(words)[1, 2] = -1

    assert words[1, 2] == 2**64 - 1
