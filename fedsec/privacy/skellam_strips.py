"""The strips from which Skellam values are drawn: how likely each is, and how its values are thinned out.

The probabilities are computed with integers and decimals of many digits, so that none of the error that
:mod:`fedsec.privacy.skellam` states comes from floating point but where it says so.

With variance v, ``a = |x|``, ``r = sqrt(a^2 + v^2)`` and ``t = (a / r)^2``, the probability of x is
``exp(-v) I_a(v)``, I the modified Bessel function. Debye's expansion (DLMF 10.41.3; Olver 1974, chapter 10,
section 7) gives its logarithm, up to a constant, as::

    -phi(a) = a^2 / (r + v) - a asinh(a / v) - ln(r) / 2 + (3 - 5 t) / (24 r) + (1 - 6 t + 5 t^2) / (16 r^2)

The next term is ``(375 - 4779 t + ...) / (5760 r^3)``. Strips that are wider than one value begin at
v = 2^18; its constant is of no effect, and there what depends on t is below 2^-65 within the strips.
"""

from __future__ import annotations

import decimal
import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

TAIL = 2.0**-70
"""Bound on the probability of everything beyond the strips."""
WIDE_FROM = 2.0**18
"""Variance from which a strip holds more than one value."""
_WIDTHS = 32
"""A wide strip is the largest power of two that is at most a 32nd of the standard deviation."""
_DIGITS = 40
_SPARE = 1 << 256
"""Where the recurrence begins, so that a division that rounds down changes nothing that matters."""
CHOICE_BITS = 192
"""Of the number that chooses a strip: even the rarest has its probability to a part in 2^100."""


@dataclass(frozen=True, slots=True)
class Strips:
    """What a sampler looks up; n strips, from the most negative to the most positive.

    Attributes:
        bits: A strip has ``2^bits`` values, 0 to 15.
        ends: Strip k is taken for a uniform number of 192 bits with exactly k of these at or below it; n - 1,
            ascending.
        thresholds: Their first 64 bits, dtype uint64, shape [n - 1].
        nearest: The value of each strip that is nearest to zero, its most likely one, int64 [n].
        signs: 1, or -1 for strips of negative values, int64 [n]; the values are ``nearest + signs * j``.
        doubted: A value is in doubt when ``64 - bits`` uniform bits are below this, uint64 [n].
        decline: Coefficients of j to j^4 of the logarithm of how much less likely the j-th value is than the
            nearest, float64 [4, n].
    """

    bits: int
    ends: tuple[int, ...]
    thresholds: npt.NDArray[np.uint64]
    nearest: npt.NDArray[np.int64]
    signs: npt.NDArray[np.int64]
    doubted: npt.NDArray[np.uint64]
    decline: npt.NDArray[np.float64]


@functools.lru_cache(maxsize=16)
def strips_of(variance: float) -> Strips:
    """Return the strips of a variance, 0 to 2^40."""
    last = largest(variance, math.log(TAIL))
    if variance < WIDE_FROM:
        weights = _each(Fraction(variance), last)
        nearest = np.arange(-last, last + 1)
        ends = _ends([*reversed(weights[1:]), *weights], last)
        return Strips(0, ends, _first_words(ends), nearest, _signs(nearest), *_no_thinning(len(nearest)))
    bits = int(math.log2(math.isqrt(int(variance)) // _WIDTHS))
    count = last // (1 << bits) + 1
    # Zero is among the positive ones, so the negative strips are all one further out.
    starts = np.arange(count) << bits
    nearest = np.concatenate([-(starts[::-1] + 1), starts])
    ends = _ends(_likelihoods(variance, [abs(int(value)) for value in nearest]), count)
    decline = _decline(variance, np.abs(nearest).astype(np.float64))
    return Strips(bits, ends, _first_words(ends), nearest, _signs(nearest), _doubted(decline, bits), decline)


def largest(variance: float, log_probability: float) -> int:
    """Return the smallest m with P(|x| > m) at most a probability, by Chernoff's bound.

    ``E exp(s x) = exp(v (cosh s - 1))``, and ``s = asinh(m / v)`` is the best s.

    Args:
        variance: 0 or more.
        log_probability: Natural logarithm of the probability, below 0.
    """
    if variance == 0:
        return 0

    def enough(beyond: int) -> bool:
        tilt = beyond * math.asinh(beyond / variance) - beyond**2 / (math.hypot(beyond, variance) + variance)
        return math.log(2) - tilt <= log_probability

    return _first(enough) - 1


def _first(enough: Callable[[int], bool]) -> int:
    """Return the first positive number that is enough; so is every larger one."""
    low, high = 0, 1
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _each(variance: Fraction, last: int) -> list[int]:
    """Return numbers in proportion to the probabilities of 0 to ``last``.

    ``I_(a-1) = I_(a+1) + (2 a / v) I_a`` taken downwards forgets where it began (Miller; Olver and Sookne
    1972): it begins so far out that what it had wrong is far below a unit.
    """
    if variance == 0:
        return [1]
    above, here = 0, _SPARE
    found = [here]
    for order in range(2 * last + 8, 0, -1):
        above, here = here, above + 2 * order * here * variance.denominator // variance.numerator
        found.append(here)
    return found[::-1][: last + 1]


def _likelihoods(variance: float, values: list[int]) -> list[int]:
    """Return numbers in proportion to the probabilities of values 0 or more, for variances from 2^18 on."""
    with decimal.localcontext(prec=_DIGITS):
        v = decimal.Decimal(variance)
        scale = decimal.Decimal(_SPARE) * v.sqrt()
        found = []
        for value in values:
            a = decimal.Decimal(value)
            r = (a * a + v * v).sqrt()
            t = (a / r) ** 2
            exponent = a * a / (r + v) - a * ((a + r) / v).ln()
            exponent += (3 - 5 * t) / (24 * r) + (1 - 6 * t + 5 * t * t) / (16 * r * r)
            found.append(int(exponent.exp() / r.sqrt() * scale))
    return found


def _ends(weights: list[int], middle: int) -> tuple[int, ...]:
    """Return where the strips end in 2^192 equal parts; what rounding leaves goes to the likeliest."""
    total = sum(weights)
    parts = [(weight << CHOICE_BITS) // total for weight in weights]
    parts[middle] += (1 << CHOICE_BITS) - sum(parts)
    return tuple(itertools.accumulate(parts[:-1]))


def _first_words(ends: tuple[int, ...]) -> npt.NDArray[np.uint64]:
    return np.array([end >> (CHOICE_BITS - 64) for end in ends], dtype=np.uint64)


def _signs(nearest: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.where(nearest < 0, -1, 1)


def _no_thinning(count: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float64]]:
    return np.zeros(count, dtype=np.uint64), np.zeros((4, count))


def _decline(v: float, a: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return Taylor's coefficients of phi(a + j) - phi(a) in j, for variances from 2^18 on.

    What is left out is below 2^-58 for j up to a 32nd of the standard deviation, 10 of those from zero.
    """
    r = np.hypot(a, v)
    t = (a / r) ** 2
    first = np.arcsinh(a / v) + a / (2 * r**2) + a * (13 - 15 * t) / (24 * r**3) + 7 * a / (8 * r**4)
    second = 1 / r + (v**2 - a**2) / (2 * r**4) + 13 / (24 * r**3)
    third = -a / r**3 + a * (a**2 - 3 * v**2) / r**6
    fourth = (2 * a**2 - v**2) / r**5
    return np.stack([first, second / 2, third / 6, fourth / 24])


def _doubted(decline: npt.NDArray[np.float64], bits: int) -> npt.NDArray[np.uint64]:
    """Return a bound on how many of ``2^(64 - bits)`` words have a value rejected, for any j."""
    most = float((1 << bits) - 1)
    # phi grows with j; the factor covers the roundings.
    largest_loss = -np.expm1(-declined(decline, most)) * (1 + 1e-9)
    return np.ceil(np.ldexp(largest_loss, 64 - bits)).astype(np.uint64)


def declined(decline: npt.NDArray[np.float64], j: float | npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the polynomials of ``decline`` at j."""
    first, second, third, fourth = decline
    value: npt.NDArray[np.float64] = j * (first + j * (second + j * (third + j * fourth)))
    return value
