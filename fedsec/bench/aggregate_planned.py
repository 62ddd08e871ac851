"""What the planner says of the error of a mean before anything is sent."""

from __future__ import annotations

from typing import Any

from fedsec.aggregation.planner import plan_encoding
from fedsec.errors import RangeError

LARGEST_SPREAD = 4096
"""hospitals * largest weight / mean weight, up to which 32 bits must do."""
_HOSPITALS = (2, 10, 100, 1000, 4096)


def planned() -> dict[str, Any]:
    """Ask the planner for rounds at the largest spread, and beyond it.

    Returns:
        ``bound``: the largest error stated for a mean at the largest spread in 32 bits, as a part of the clip
        range (twice the clip). ``coarse``: how many plans with four times that spread were neither refused
        in 32 bits nor that precise.
    """
    at_most = max(_bound(hospitals, LARGEST_SPREAD) for hospitals in _HOSPITALS)
    return {"bound": at_most, "coarse": sum(_is_coarse(hospitals) for hospitals in _HOSPITALS)}


def _bound(hospitals: int, spread: float, ring_bits: int = 32) -> float:
    largest = 100_000
    mean = max(1.0, min(largest, largest * hospitals / spread))
    clip = 3.0
    return plan_encoding(hospitals, clip, largest, mean, ring_bits).error_bound / (2 * clip)


def _is_coarse(hospitals: int) -> bool:
    try:
        return _bound(hospitals, 4 * LARGEST_SPREAD) > 2.0**-20
    except RangeError:
        return False
