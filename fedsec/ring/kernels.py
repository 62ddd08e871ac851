"""Matrix products in the ring: a compiled kernel beside its plain twin.

The kernels are compiled by numba, which costs 0.3 s and 65 MB to import; both are paid at the first call,
never by importing this module (aggregation needs no kernel at all).
"""

from __future__ import annotations

import numpy as np

from fedsec.errors import InputError
from fedsec.ring.words import RingArray, ring_of


def matmul(a: RingArray, b: RingArray) -> RingArray:
    """Multiply two matrices modulo 2^k with the compiled kernel.

    Args:
        a: Ring elements, shape [M, K].
        b: Ring elements of the same ring, shape [K, N].

    Returns:
        Ring elements, shape [M, N]. Rings of 8 and 16 bits, which only tests use, take the plain twin.

    Raises:
        InputError: The shapes or the rings do not fit.
    """
    _check(a, b)
    if ring_of(a).bits < 32:
        return matmul_plain(a, b)
    from fedsec.ring import _compiled  # noqa: PLC0415 - numba is loaded at the first call, not at import

    product = np.empty((a.shape[0], b.shape[1]), dtype=a.dtype)
    _compiled.matmul(np.ascontiguousarray(a), np.ascontiguousarray(b), product)
    return product


def matmul_plain(a: RingArray, b: RingArray) -> RingArray:
    """Multiply two matrices modulo 2^k with numpy: the reference that ``matmul`` is tested against.

    Shapes, rings and errors are those of ``matmul``.
    """
    _check(a, b)
    product: RingArray = a @ b  # unsigned products and sums wrap modulo 2^k
    return product


def _check(a: RingArray, b: RingArray) -> None:
    if ring_of(a) != ring_of(b):
        raise InputError(f"a matrix product needs one ring, got dtypes {a.dtype} and {b.dtype}")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise InputError(f"a matrix product needs shapes [M, K] and [K, N], got {a.shape} and {b.shape}")
