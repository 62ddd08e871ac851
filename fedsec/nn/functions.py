"""Smooth functions as straight pieces whose largest error is known.

A function is given with its asymptotes, straight lines to which it comes closer and closer on both sides.
Between the places where it is close enough to them, knots are spread so that every piece bends alike: a
chord over h is off by h^2 |f''| / 8, half of it when the knots' values are moved to the middle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedsec.errors import UnsupportedModelError
from fedsec.nn.pieces import Pieces, join

Floats = npt.NDArray[np.float64]
Line = tuple[float, float]
"""Slope and offset."""

SLOPE_BITS = 14
MOST_PIECES = 120
_GRID = 1 << 14


@dataclass(frozen=True, slots=True)
class Smooth:
    """A function of one variable.

    Attributes:
        call: The function, element by element.
        left: Its asymptote towards minus infinity.
        right: Its asymptote towards plus infinity.
        low: The distance from ``left`` falls monotonically below here.
        high: The distance from ``right`` falls monotonically above here.
        bend: At least the largest |f''|, where there is one.
        kinks: Places where the slope jumps.
    """

    call: Callable[[Floats], Floats]
    left: Line
    right: Line
    low: float = -1.5
    high: float = 1.5
    bend: float = 1.0
    kinks: tuple[float, ...] = ()


def fit(function: Smooth, low: float, high: float, *, error: float, fraction_bits: int) -> Pieces:
    """Choose straight pieces for a function.

    Args:
        function: What to stand in for.
        low: No argument is below.
        high: No argument is above.
        error: The largest error that is allowed.
        fraction_bits: Of the arguments.

    Raises:
        UnsupportedModelError: If more pieces would be needed than are worth it.
    """
    reach = _reach(function, error / 2)
    if low >= reach[1] or high <= reach[0]:
        return _straight(function, low, high, fraction_bits)
    # At least some units, however little of the domain is bent.
    start, end = max(low, reach[0]), min(high, reach[1])
    start = min(start, end - 16 * 2.0**-fraction_bits)
    places, total = _bending(function, start, end)
    # With n pieces the error is about (total / n)^2 / 16.
    fewest = max(2, int(0.8 * total[-1] / 4 / math.sqrt(error)))
    for count in range(fewest, MOST_PIECES):
        chosen = np.interp(np.linspace(0.0, total[-1], count + 1), total, places)
        knots = _with_kinks(function, chosen, fraction_bits)
        if len(knots) > 1:
            pieces = _through(function, knots, (low, high), fraction_bits)
            if pieces.error <= error:
                return pieces
    raise UnsupportedModelError(
        f"a function needs more than {MOST_PIECES} pieces for an error of {error:g} between {low:g} and"
        f" {high:g}; allow a larger error"
    )


def _straight(function: Smooth, low: float, high: float, fraction_bits: int) -> Pieces:
    """Return the one line that a function is, but for a small error, where its asymptote is near."""
    at_right = low >= function.high
    line, nearest = (function.right, low) if at_right else (function.left, high)
    slope, offset = (round(math.ldexp(line[i], SLOPE_BITS + i * fraction_bits)) for i in (0, 1))
    # One knot, at which nothing changes.
    knot = round(math.ldexp(nearest, fraction_bits))
    error = abs(_distance(function, nearest, line)) + 1e-12
    return Pieces((knot,), (0,), slope, offset, SLOPE_BITS, error)


def _reach(function: Smooth, error: float) -> tuple[float, float]:
    """Return the places beyond which the asymptotes are within ``error``."""
    ends = []
    for place, line, sign in ((function.low, function.left, -1.0), (function.high, function.right, 1.0)):
        distance = 0.0
        while abs(_distance(function, place + sign * distance, line)) > error:
            distance += 1 / 16
        ends.append(place + sign * distance)
    return ends[0], ends[1]


def _distance(function: Smooth, x: float, line: Line) -> float:
    return float(function.call(np.array([x]))[0]) - (line[0] * x + line[1])


def _bending(function: Smooth, low: float, high: float) -> tuple[Floats, Floats]:
    """Return places, and how much the function bends up to each: the integral of sqrt(|f''|)."""
    x = np.linspace(low, high, _GRID)
    bend = np.abs(np.gradient(np.gradient(function.call(x), x), x))
    # A little everywhere, so that straight stretches have no knot too far away.
    density = (np.sqrt(bend) + 1e-3) * (x[1] - x[0])
    return x, np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])


def _with_kinks(function: Smooth, chosen: Floats, fraction_bits: int) -> npt.NDArray[np.int64]:
    """Return places as integers, with the function's kinks among them."""
    inside = [kink for kink in function.kinks if chosen[0] < kink < chosen[-1]]
    places = np.ldexp(chosen, fraction_bits)
    # The ends are rounded outwards, so that a domain that ends there is covered.
    ends = [np.floor(places[0]), np.ceil(places[-1])]
    between = np.rint([*places[1:-1], *np.ldexp(inside, fraction_bits)])
    return np.unique(np.concatenate([between, ends])).astype(np.int64)


def _through(
    function: Smooth, knots: npt.NDArray[np.int64], domain: tuple[float, float], fraction_bits: int
) -> Pieces:
    """Return pieces between given knots, with values moved so that errors are alike on both sides."""
    x = np.ldexp(knots.astype(np.float64), -fraction_bits)
    wanted = function.call(x) - _shift(function, x)
    ends: list[int | None] = [None, None]
    for place, line, goes_on in (
        (0, function.left, domain[0] < x[0]),
        (-1, function.right, domain[1] > x[-1]),
    ):
        if goes_on:
            # Beyond a knot that the domain reaches over, the asymptote goes on.
            wanted[place] = line[0] * x[place] + line[1]
            ends[place] = round(math.ldexp(line[0], SLOPE_BITS))
    heights = [round(math.ldexp(height, SLOPE_BITS + fraction_bits)) for height in wanted]
    found = join([int(knot) for knot in knots], heights, (ends[0], ends[-1]), SLOPE_BITS)
    return replace(found, error=_error(function, found, domain, fraction_bits))


def _shift(function: Smooth, x: Floats) -> Floats:
    """Return by how much a chord's ends are moved: half of how far it is off in its middle."""
    middles = (x[1:] + x[:-1]) / 2
    chords = (function.call(x[1:]) + function.call(x[:-1])) / 2
    off = (chords - function.call(middles)) / 2
    padded = np.concatenate([off[:1], off, off[-1:]])
    return np.asarray((padded[1:] + padded[:-1]) / 2)


def _error(function: Smooth, pieces: Pieces, domain: tuple[float, float], fraction_bits: int) -> float:
    """Return a proven bound of the pieces' error on the domain."""
    x = np.ldexp(np.array(pieces.knots, dtype=np.float64), -fraction_bits)
    low, high = max(domain[0], x[0] - 1.0), min(domain[1], x[-1] + 1.0)
    inner = [place for place in (*x, *function.kinks) if low < place < high]
    grid = np.sort(np.concatenate([np.linspace(low, high, _GRID), inner]))
    off = np.abs(evaluate(pieces, grid, fraction_bits) - function.call(grid))
    # Between two places the pieces are straight, and the function leaves its chord by no more than this.
    between = np.max(np.diff(grid)) ** 2 * function.bend / 8
    # Further out both are straight or nearly so: the error goes over into that of the asymptote.
    far = []
    for end, place, line in ((low, domain[0], function.left), (high, domain[1], function.right)):
        if place != end:
            at = np.array([end])
            far.append(abs(float(evaluate(pieces, at, fraction_bits)[0]) - line[0] * end - line[1]))
    return float(max(np.max(off), *far, 0.0) + between + 1e-12)


def evaluate(pieces: Pieces, x: Floats, fraction_bits: int) -> Floats:
    """Return the pieces' value on real numbers.

    Args:
        pieces: The pieces.
        x: Real numbers.
        fraction_bits: Of the pieces' knots.
    """
    y = np.ldexp(float(pieces.first_slope), -pieces.slope_bits) * x
    y = y + np.ldexp(float(pieces.offset), -pieces.slope_bits - fraction_bits)
    for knot, slope in zip(pieces.knots, pieces.slopes, strict=True):
        beyond = np.maximum(x - np.ldexp(float(knot), -fraction_bits), 0.0)
        y += np.ldexp(float(slope), -pieces.slope_bits) * beyond
    return np.asarray(y)


def _sigmoid(x: Floats) -> Floats:
    # Of the two forms the one whose exponential cannot overflow.
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1 / (1 + small), small / (1 + small)))


def _gelu(x: Floats) -> Floats:
    erf = np.array([math.erf(value) for value in (x / math.sqrt(2)).reshape(-1)]).reshape(x.shape)
    return np.asarray(x * (1 + erf) / 2)


def _gelu_tanh(x: Floats) -> Floats:
    return np.asarray(x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2)


def elu(alpha: float) -> Smooth:
    """Return alpha * (exp(x) - 1) below zero, x above."""
    return Smooth(
        lambda x: np.asarray(np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0)))),
        (0.0, -alpha),
        (1.0, 0.0),
        low=0.0,
        high=0.0,
        bend=max(abs(alpha), 1.0),
        kinks=(0.0,),
    )


SMOOTH = {
    "sigmoid": Smooth(_sigmoid, (0.0, 0.0), (0.0, 1.0)),
    "tanh": Smooth(np.tanh, (0.0, -1.0), (0.0, 1.0)),
    "gelu": Smooth(_gelu, (0.0, 0.0), (1.0, 0.0)),
    "gelu_tanh": Smooth(_gelu_tanh, (0.0, 0.0), (1.0, 0.0)),
    "silu": Smooth(lambda x: x * _sigmoid(x), (0.0, 0.0), (1.0, 0.0)),
    "softplus": Smooth(
        lambda x: np.asarray(np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))), (0.0, 0.0), (1.0, 0.0)
    ),
}
