"""Straight pieces between knots, in integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Pieces:
    """A function of straight pieces, as ``plan.PiecewiseLinear`` has it, and its largest error."""

    knots: tuple[int, ...]
    slopes: tuple[int, ...]
    """Changes of slope at the knots."""

    first_slope: int
    offset: int
    slope_bits: int
    error: float = 0.0


def join(
    knots: Sequence[int], heights: Sequence[int], ends: tuple[int | None, int | None], slope_bits: int
) -> Pieces:
    """Return pieces that go through given heights, as nearly as their slopes' fraction bits allow.

    Args:
        knots: Rising, with the argument's fraction bits.
        heights: At the knots, with ``slope_bits`` more.
        ends: Slopes before the first and after the last knot; None goes on as the piece beside it.
        slope_bits: Fraction bits of the slopes.
    """
    height, slopes = heights[0], []
    # Rounding a slope moves all that follows; the next slope aims from where the last one led.
    for (left, right), wanted in zip(pairwise(knots), heights[1:], strict=True):
        width = right - left
        slopes.append((2 * (wanted - height) + width) // (2 * width))
        height += slopes[-1] * width
    first = slopes[0] if ends[0] is None else ends[0]
    last = slopes[-1] if ends[1] is None else ends[1]
    every = [first, *slopes, last]
    changes = tuple(right - left for left, right in pairwise(every))
    return Pieces(tuple(knots), changes, first, heights[0] - first * knots[0], slope_bits)
