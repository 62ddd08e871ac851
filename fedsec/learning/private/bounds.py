"""Upper bounds of the norms of gradients, whatever floating point makes of them.

A norm that comes out too small lets its example past the clip, and whoever chooses the parameters, or brings
a record, can choose values for which it does. So what is computed here is at least the norm of what is added
to the sum, for all finite values:

- **Underflow.** TensorFlow takes what is below :func:`tiny` for 0, in float32 the square of 1e-19. A sum of n
  squares loses less than n * tiny, so that is added. It counts where large activations meet small gradients
  behind them, and nowhere else.
- **Cancellation.** With <A A^T, B B^T> the norm of A^T B is a difference of large numbers, and so is A^T B
  itself. By the usual bound for sums and products of n terms in any order (Higham 2002, Accuracy and
  Stability of Numerical Algorithms, section 3.1) both are off by at most a part of |A|^2 |B|^2, which
  :func:`of_gram` adds.
- **Overflow** gives a norm that is not finite, and the example counts as nothing.
- **Rounding** of sums of squares: their relative error is bounded, and :func:`margin` is taken off the clip.
  TensorFlow adds a row up in a tree whose leaves are 1,024 terms a lane (Eigen, TensorReduction.h), so a sum
  of n squares is off by less than (1,024 + log2 n + 16) units, a norm from the product of two such sums by no
  more, and half of the margin is left for what :func:`of_gram` takes out of it.

The units are those of float32 and float64 on a CPU; there are none for narrower types.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedsec.learning.backend import tf

_MARGIN = 4096
"""Units that are taken off the clip: 0.024 % in float32."""


def unit(dtype: Any) -> float:
    """Return the largest relative error of one rounding: 2^-24 in float32."""
    return float(np.finfo(dtype.as_numpy_dtype).eps) / 2


def tiny(dtype: Any) -> float:
    """Return the smallest number that is not flushed to 0: 2^-126 in float32."""
    return float(np.finfo(dtype.as_numpy_dtype).tiny)


def margin(dtype: Any) -> float:
    """Return the part of the clip that is kept for rounding."""
    return _MARGIN * unit(dtype)


def squares(values: Any) -> Any:
    """Return at least the sum of squares of each example, but for the margin.

    Args:
        values: Shape [N, ...], all sizes but the first known.

    Returns:
        Shape [N].
    """
    lost = math.prod(values.shape[1:]) * tiny(values.dtype)
    return tf.reduce_sum(tf.square(values), axis=list(range(1, len(values.shape)))) + lost


def of_outer(a: Any, b: Any) -> Any:
    """Return at least |a|^2 |b|^2 of each example, but for the margin.

    Args:
        a: Shape [N, ...].
        b: Shape [N, ...].
    """
    return squares(a) * squares(b) + tiny(a.dtype)


def of_gram(a: Any, b: Any, sizes: Sequence[int]) -> Any:
    """Return at least |A^T B|^2 of each example, but for the margin, from A A^T and B B^T.

    With T places, D rows, P columns and the unit u, the entries of the Gram matrices are off by (D + P) u of
    |a_t| |a_s| |b_t| |b_s|, and their sum, line by line, by 2 T u more. A^T B itself, as it is added to the
    sum, is off by T u |A| |B|. |A| |B| stands for the sum of |a_t| |b_t|, which is no larger.

    Args:
        a: A A^T, shape [N, T, T].
        b: B B^T, shape [N, T, T].
        sizes: D and P.
    """
    places, (rows, columns) = a.shape[1], sizes
    part, least = _part(rows + columns, places, a.dtype), tiny(a.dtype)
    # An entry of A A^T loses up to 2 D * tiny to underflow, and counts T times |B|^2.
    of_a = tf.linalg.trace(a) + 2 * places * rows * least / part
    of_b = tf.linalg.trace(b) + 2 * places * columns * least / part
    return _by_line(a * b) + (part * of_a) * of_b + 2 * places**2 * least


def of_rows(same: Any, b: Any, columns: int) -> Any:
    """Return at least the squared norm of each example's sums of rows, but for the margin, from B B^T.

    It is :func:`of_gram` with |a_t| = 1, where only rows that are added to one another cancel.

    Args:
        same: 1 where two rows go into one sum, else 0; shape [N, T, T].
        b: B B^T, shape [N, T, T].
        columns: Of B.
    """
    places = b.shape[1]
    squared = tf.reduce_sum(same, axis=2) * tf.linalg.diag_part(b)
    lost = 4 * places**2 * columns * tiny(b.dtype)
    return _by_line(same * b) + _part(columns, places, b.dtype) * tf.reduce_sum(squared, axis=1) + lost


def _part(terms: int, places: int, dtype: Any) -> float:
    """Return which part of (sum |a_t| |b_t|)^2 bounds the errors of the norm and of what is added to the sum.

    With h = 4096 u, half of the margin of a square, and (T + 2) u as the error of a product of T terms:
    (|G| + e)^2 <= (1 + h) |G|^2 + (1 + 1 / h) e^2.
    """
    count = terms + 2 * places + (places + 2) ** 2 / _MARGIN + 8
    return count * unit(dtype) / (1 - 2 * count * unit(dtype))


def _by_line(values: Any) -> Any:
    """Return the sum of [N, T, T] in two steps, of T terms each."""
    return tf.reduce_sum(tf.reduce_sum(values, axis=2), axis=1)
