"""Fixed point: real numbers as ring elements, with every range checked before anything is shared.

The real number v is held as the ring element ``round(v * 2^f) mod 2^k``, negative ones in two's complement. A
sum of encodings is the encoding of the sum as long as it stays inside [-2^(k-1), 2^(k-1)); nothing in the
ring can tell when it did not, so whoever adds must know a bound beforehand (see
docs/explanation/fixed-point.md).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fedsec.errors import InputError, RangeError, UsageError
from fedsec.ring.words import RING64, Ring, RingArray, ring_of, signed

_EXACT_FLOAT_BITS = 53


def encode(values: npt.ArrayLike, fraction_bits: int, ring: Ring = RING64) -> RingArray:
    """Encode real numbers as ring elements: ``round_half_even(v * 2^fraction_bits) mod 2^k``.

    Scaling by a power of two is exact in float64, so rounding to an integer is the only error: at most half a
    unit, 2^-(fraction_bits + 1).

    Args:
        values: Integers, floats or booleans of any shape.
        fraction_bits: Number of binary digits kept behind the point, 0 <= fraction_bits < k.
        ring: The ring of the result.

    Returns:
        Ring elements with the shape of ``values``.

    Raises:
        UsageError: ``fraction_bits`` does not fit the ring.
        InputError: The values are not real numbers.
        RangeError: A value is NaN or infinite, is an integer that float64 cannot hold, or its rounded
            encoding is not inside (-2^(k-1), 2^(k-1)). The texts never show the value.
    """
    _check_fraction_bits(fraction_bits, ring)
    reals = _as_float64(values)
    with np.errstate(
        over="ignore"
    ):  # an overflow becomes infinity, which the range check refuses with our own text
        scaled = np.rint(np.ldexp(reals, fraction_bits))
    limit = 2.0 ** (ring.bits - 1)
    # Maximum and minimum carry NaN along and NaN compares false, so these two comparisons refuse it as well.
    fits = np.max(scaled, initial=0.0) < limit and np.min(scaled, initial=0.0) > -limit
    if not fits:
        raise RangeError(
            f"values must be finite and below 2^{ring.bits - 1 - fraction_bits} in size to be encoded with "
            f"{fraction_bits} fraction bits in the {ring.bits}-bit ring; at least one is not; "
            "nothing was encoded"
        )
    return np.asarray(scaled.astype(np.int64).astype(ring.dtype))


def decode(words: RingArray, fraction_bits: int) -> npt.NDArray[np.float64]:
    """Decode ring elements into real numbers: two's complement times 2^-fraction_bits.

    Args:
        words: Ring elements of any shape; the dtype names the ring.
        fraction_bits: Number of binary digits behind the point, 0 <= fraction_bits < k.

    Returns:
        A float64 array of the same shape; exact for elements of up to 53 bits, otherwise rounded to nearest.

    Raises:
        UsageError: ``fraction_bits`` does not fit the ring.
        InputError: ``words`` is not an array of ring elements.
    """
    _check_fraction_bits(fraction_bits, ring_of(words))
    return np.asarray(np.ldexp(signed(words).astype(np.float64), -fraction_bits))


def _check_fraction_bits(fraction_bits: int, ring: Ring) -> None:
    if not 0 <= fraction_bits < ring.bits:
        raise UsageError(
            f"fraction_bits must be 0 to {ring.bits - 1} in the {ring.bits}-bit ring, got {fraction_bits}"
        )


def _as_float64(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    array: npt.NDArray[Any] = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise InputError(
            f"only real numbers can be encoded, got dtype {array.dtype}; convert them to float first"
        )
    reals = array.astype(np.float64, copy=False)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:  # noqa: SIM102 - the second test reads the whole array
        if np.max(np.abs(reals), initial=0.0) > 2.0**_EXACT_FLOAT_BITS:
            raise RangeError(
                f"integers up to 2^{_EXACT_FLOAT_BITS} can be encoded exactly; at least one is larger; "
                "nothing was encoded"
            )
    return reals
