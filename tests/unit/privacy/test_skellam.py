"""The sampler of Skellam noise, against the law it is to have.

Keys are fixed, so no test here fails by chance; the limit of 1e-9 says how unlikely its value is.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from fedsec.errors import UsageError
from fedsec.privacy.skellam import LARGEST_VARIANCE, SkellamSampler, largest_noise
from fedsec.privacy.skellam_strips import CHOICE_BITS, WIDE_FROM, Strips, declined, strips_of
from fedsec.ring import RING64, KeyedStream, Ring, RingArray, derive_key

P_LIMIT = 1e-9
COUNT = 1 << 18

Values = npt.NDArray[np.int64]


def key(purpose: str) -> KeyedStream:
    return KeyedStream(derive_key(bytes(32), purpose="test", context=purpose.encode()))


def drawn(variance: float, count: int = COUNT, purpose: str = "draws") -> Values:
    return SkellamSampler(variance, key(f"{purpose} {variance}")).draw(count)


def plain(variance: float, count: int, stream: KeyedStream) -> Values:
    """The definition: two Poisson values by inversion, term after term."""
    values = np.zeros(count, dtype=np.int64)
    for sign in (1, -1):
        uniform = (stream.words(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        term = done = math.exp(-variance / 2)
        for number in range(1, int(variance + 12 * math.sqrt(variance)) + 20):
            values += sign * (uniform >= done)
            term *= variance / 2 / number
            done += term
    return values


def series(variance: float, last: int) -> list[Fraction]:
    """Exact probabilities of 0 to ``last``: the sum over what the smaller Poisson value is."""
    with localcontext(prec=60):
        half, found = Decimal(variance) / 2, []
        for value in range(last + 1):
            term = (half**value) / math.factorial(value)
            total, number = term, 0
            while term > total * Decimal(10) ** -45:
                number += 1
                term *= half * half / (number * (number + value))
                total += term
            found.append(Fraction(total * (-Decimal(variance)).exp()))
        return found


def recurrence(variance: float, last: int) -> list[Fraction]:
    """Exact probabilities of 0 to ``last`` by Miller's recurrence, for variances too large for the series."""
    above, here = 0, 1 << 400
    found = [here]
    for order in range(3 * last, 0, -1):
        above, here = here, above + Fraction(2 * order, 1) / Fraction(variance) * here // 1
        found.append(here)
    total = found[-1] + 2 * sum(found[:-1])
    return [Fraction(one, total) for one in reversed(found[-last - 1 :])]


def law(strips: Strips) -> dict[int, Fraction]:
    """What the table draws, exactly: the strip, the value in it, and what is rejected."""
    ends = [0, *strips.ends, 1 << CHOICE_BITS]
    width, found = 1 << strips.bits, {}
    for j in range(width):
        lost = -np.expm1(-declined(strips.decline, float(j)))
        for place, (near, sign) in enumerate(zip(strips.nearest, strips.signs, strict=True)):
            kept = 1 - Fraction(float(lost[place]))
            found[int(near + sign * j)] = (ends[place + 1] - ends[place]) * kept
    total = sum(found.values())
    return {value: weight / total for value, weight in found.items()}


def furthest(found: dict[int, Fraction], exact: list[Fraction]) -> float:
    """Return the largest ratio of a probability to the true one, less 1, either way round."""
    return float(max(abs(one / exact[abs(x)] - 1) for x, one in found.items()))


@pytest.mark.parametrize("variance", [1e-6, 0.01, 0.5, 2.0, 37.3, 300.0])
def test_the_table_is_the_law_but_for_its_tail(variance: float) -> None:
    found = law(strips_of(variance))
    exact = series(variance, max(found))
    tail = 1 - (exact[0] + 2 * sum(exact[1:]))
    assert 0 <= tail < Fraction(1, 2**70)
    # What is cut makes the rest more likely; the series has 45 digits.
    assert furthest(found, exact) < float(tail) + 2.0**-100


@pytest.mark.parametrize(
    ("variance", "factor", "distance"),
    [
        (WIDE_FROM, 2.0**-50, 2.0**-54),
        pytest.param(WIDE_FROM - 1, 2.0**-69, 2.0**-69, marks=pytest.mark.slow),
    ],
)
def test_narrow_and_wide_strips_are_as_near_as_stated_where_they_meet(
    variance: float, factor: float, distance: float
) -> None:
    found = law(strips_of(variance))
    exact = recurrence(variance, max(found) + 1)
    assert furthest(found, exact) < factor
    assert float(sum(abs(found[x] - exact[abs(x)]) for x in found)) / 2 < distance


@pytest.mark.parametrize("variance", [WIDE_FROM, 1e6, 3.3e9, LARGEST_VARIANCE])
def test_wide_strips_have_the_probabilities_of_bessels_integral(variance: float) -> None:
    """``exp(-v) I_n(v)`` is the mean of ``exp(v (cos t - 1)) cos(n t)`` (DLMF 10.32.3)."""
    strips, deviation = strips_of(variance), math.sqrt(variance)
    step = 0.02 / deviation
    angles = np.arange(-500, 501) * step
    heights = np.exp(-2 * variance * np.sin(angles / 2) ** 2) * step / (2 * math.pi)
    ends = np.diff([0, *strips.ends, 1 << CHOICE_BITS])
    proposed = np.array([float(Fraction(part, 1 << (CHOICE_BITS + strips.bits))) for part in ends])
    inside = np.array([0, 1, (1 << strips.bits) // 2, (1 << strips.bits) - 1])
    kept = np.exp(-declined(strips.decline[:, :, None], inside.astype(np.float64)))
    values = strips.nearest[:, None] + strips.signs[:, None] * inside
    near = np.abs(values) < 3 * deviation
    exact = np.cos(np.outer(values[near].astype(np.float64), angles)) @ heights
    # What is kept in all: of each strip the mean over its values, by Simpson's rule on the ends and middle.
    mean = 1 - (1 - kept[:, 2] + (1 - kept[:, 3]) / 4) * 2 / 3
    found = (proposed[:, None] * kept)[near] / np.sum(proposed * mean * 2**strips.bits)
    np.testing.assert_allclose(found / found.max(), exact / exact.max(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("variance", [0.0, 0.01, 300.0, WIDE_FROM, 1e6, 2.0**30 - 1, LARGEST_VARIANCE])
def test_strips_hold_every_value_once(variance: float) -> None:
    strips = strips_of(variance)
    furthest = strips.nearest + strips.signs * ((1 << strips.bits) - 1)
    lows, highs = np.minimum(strips.nearest, furthest), np.maximum(strips.nearest, furthest)
    np.testing.assert_array_equal(lows[1:], highs[:-1] + 1)
    assert lows[0] <= -largest_noise(variance, 1, 2.0**-70)
    assert highs[-1] >= largest_noise(variance, 1, 2.0**-70)


def test_within_a_strip_the_law_falls_as_it_should() -> None:
    """Without rejection values were even within strips; 13 standard deviations, and 6.2 are allowed."""
    count, width, deviation = 1 << 21, 2.0**15, 2.0**20
    sizes = np.abs(drawn(LARGEST_VARIANCE, count)) / width
    grid = (np.arange(1 << 16) + 0.5) / (1 << 13)
    heights = np.exp(-(grid**2) / 2)

    def leaning(sizes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        strip = np.floor(sizes)
        return (sizes - strip - 0.5) * strip * width / deviation

    expected = np.average(leaning(grid * deviation / width), weights=heights)
    found = leaning(sizes)
    error = float(np.std(found)) / math.sqrt(count)
    assert abs(np.mean(found) - expected) < 6.2 * error
    assert abs(expected) > 2 * 6.2 * error


def surprise(values: Values, variance: float) -> float:
    """Return the p-value of chi-squared, over values or, where they are many, over 64 likely ranges."""
    deviation = math.sqrt(variance)
    if variance <= 100:
        last = next(
            m for m in range(1000) if len(values) * stats.skellam.sf(m, variance / 2, variance / 2) < 20
        )
        edges = np.arange(-last, last + 2)
        below = stats.skellam.cdf(edges - 1, variance / 2, variance / 2)
    else:
        # The law is the normal one but for terms of 1 / (24 v).
        edges = np.unique(np.round(stats.norm.ppf(np.arange(1, 64) / 64) * deviation)).astype(np.int64)
        below = stats.norm.cdf((edges - 0.5) / deviation)
    expected = np.diff(below, prepend=0, append=1) * len(values)
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(expected))
    return float(stats.chisquare(counts, expected).pvalue)


VARIANCES = [0.01, 0.7, 16.0, 1e4, WIDE_FROM - 1, WIDE_FROM, 1e6, LARGEST_VARIANCE]


@pytest.mark.parametrize("variance", VARIANCES)
def test_values_have_the_law(variance: float) -> None:
    values = drawn(variance)
    assert values.dtype == np.int64
    assert surprise(values, variance) > P_LIMIT


@pytest.mark.parametrize("variance", [0.7, 16.0])
def test_the_plain_way_has_the_same_law(variance: float) -> None:
    assert surprise(plain(variance, COUNT, key("plain")), variance) > P_LIMIT


def rounded_gaussian(variance: float) -> Values:
    return np.rint(np.random.default_rng(1).normal(0, math.sqrt(variance), COUNT)).astype(np.int64)


@pytest.mark.parametrize("variance", [0.7, 16.0, 1e4, 1e6, LARGEST_VARIANCE])
@pytest.mark.parametrize(
    "mistake", ["variance 5 % low", "sign lost", "mean shifted", "one value twice as often"]
)
def test_power_wrong_laws_are_found(variance: float, mistake: str) -> None:
    values = drawn(variance)
    wrong = {
        "variance 5 % low": lambda: drawn(0.95 * variance),
        "sign lost": lambda: np.abs(values),
        "mean shifted": lambda: values + max(1, round(0.05 * math.sqrt(variance))),
        "one value twice as often": lambda: np.where(np.arange(COUNT) % 20 == 0, 0, values),
    }[mistake]()
    assert surprise(wrong, variance) < P_LIMIT


@pytest.mark.parametrize("variance", [0.01, 0.7, 4.0])
def test_power_a_rounded_gaussian_is_found_where_it_differs(variance: float) -> None:
    assert surprise(rounded_gaussian(variance), variance) < P_LIMIT


@pytest.mark.parametrize("variance", VARIANCES)
def test_moments_to_the_fourth(variance: float) -> None:
    """Mean 0, variance v, third 0, fourth 3 v^2 + v; within 7 of their standard deviations."""
    values = drawn(variance, purpose="moments").astype(np.float64) / math.sqrt(variance)
    for order, expected in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3 + 1 / variance)):
        powers = values**order
        # Of large variances; tiny ones have few values other than 0, and then their own spread.
        spread = max(float(np.std(powers)), 0.1)
        assert abs(np.mean(powers) - expected) < 7 * spread / math.sqrt(COUNT)


@pytest.mark.parametrize("variance", [0.7, 1e6])
def test_what_three_add_up_has_the_law_of_the_whole(variance: float) -> None:
    whole = sum(drawn(variance / 3, purpose=f"part {number}") for number in range(3))
    assert surprise(np.asarray(whole), variance) > P_LIMIT


@pytest.mark.parametrize("variance", [64.0**2, 1e6, LARGEST_VARIANCE])
def test_the_last_bits_are_uniform(variance: float) -> None:
    """Of a smooth law they are, but for exp(-2 (pi sigma / 16)^2); rounding or coarse strips would show."""
    assert stats.chisquare(np.bincount(drawn(variance) % 16, minlength=16)).pvalue > P_LIMIT


def test_one_key_gives_one_sequence_and_fresh_keys_differ() -> None:
    for variance in (16.0, 1e6):
        first, again = drawn(variance, 5000), drawn(variance, 5000)
        np.testing.assert_array_equal(first, again)
        mine = SkellamSampler(variance)
        assert not np.array_equal(mine.draw(1000), mine.draw(1000))
        assert not np.array_equal(SkellamSampler(variance).draw(1000), SkellamSampler(variance).draw(1000))


class Scripted(KeyedStream):
    """Gives one word again and again, and then the rest of its number."""

    def __init__(self, number: int) -> None:
        super().__init__(bytes(32))
        self._number = number

    def words(self, shape: int | tuple[int, ...], ring: Ring = RING64) -> RingArray:
        return np.full(shape, self._number >> (CHOICE_BITS - 64), dtype=np.uint64)

    def take(self, size: int) -> bytes:
        return (self._number % (1 << (CHOICE_BITS - 64))).to_bytes(size, "big")


def test_a_word_that_is_a_strips_end_is_decided_by_the_rest() -> None:
    """It happens once in 2^50 draws, which are more than any test's."""
    table = strips_of(16.0)
    for strip, end in enumerate(table.ends):
        for number, expected in ((end, strip + 1), (end - 1, strip)):
            values = SkellamSampler(16.0, Scripted(number)).draw(2)
            assert values.tolist() == [table.nearest[expected]] * 2


def test_neighbouring_values_are_unrelated() -> None:
    """Also where rejected ones are filled in; 7 standard deviations."""
    values = drawn(1e6) / 1e3
    for lag in (1, 2, 1 << 15):
        assert abs(np.mean(values[lag:] * values[:-lag])) < 7 / math.sqrt(COUNT - lag)


@pytest.mark.parametrize("size", [0, 1, 3, (1 << 15) + 1])
def test_any_number_of_values_is_drawn(size: int) -> None:
    for variance in (0.0, 0.5, 1e12):
        values = SkellamSampler(variance, key("sizes")).draw(size)
        assert values.shape == (size,)
        assert variance > 0 or not values.any()


@pytest.mark.parametrize("variance", [-1.0, math.nan, math.inf, 2.0**40 + 1])
def test_a_variance_that_cannot_be_drawn_is_refused(variance: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 2\\^40"):
        SkellamSampler(variance)


def test_a_negative_number_of_values_is_refused() -> None:
    with pytest.raises(UsageError, match="zero or more"):
        SkellamSampler(1.0).draw(-1)


@pytest.mark.parametrize("variance", [0.01, 1.0, 100.0, 1e4])
@pytest.mark.parametrize("probability", [1e-3, 2.0**-40])
def test_the_stated_largest_noise_holds_and_is_near(variance: float, probability: float) -> None:
    found = largest_noise(variance, 1, probability)
    half = variance / 2
    assert 2 * stats.skellam.sf(found, half, half) <= probability
    # The bound leaves out a factor of at most about 40, the number of standard deviations squared.
    assert 2 * stats.skellam.sf(0.8 * found - 2, half, half) > probability
    assert largest_noise(variance, 1000, probability) == largest_noise(variance, 1, probability / 1000)


def test_the_largest_noise_of_none_is_none_and_bad_arguments_are_refused() -> None:
    assert largest_noise(0.0, 10) == 0
    for arguments in ((-1.0, 1, 0.5), (1.0, 0, 0.5), (1.0, 1, 0.0), (1.0, 1, 1.0), (math.inf, 1, 0.5)):
        with pytest.raises(UsageError, match="expected a variance"):
            largest_noise(*arguments)
