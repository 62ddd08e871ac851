"""The law of randomised response: its table against the published formula, and the epsilon that it gives."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedsec.errors import UsageError
from fedsec.mpc.randomised_response import ResponseLaw

CASES = [(classes, epsilon) for classes in (2, 3, 10, 100, 1000) for epsilon in (0.1, 1.0, 3.0, 5.0, 10.0)]
CASES = [case for case in CASES if case[0] <= 100 or case[1] >= 3.0]


def chances(law: ResponseLaw) -> np.ndarray:
    """P(answer | label) counted in the table of shifts: one row a label."""
    of_shift = np.bincount(law.shifts, minlength=law.classes) / 2**law.bits
    label, answer = np.indices((law.classes, law.classes))
    return of_shift[(answer - label) % law.classes]


@pytest.mark.parametrize(("classes", "epsilon"), CASES)
def test_the_table_spends_what_the_law_says_and_never_more_than_was_asked(
    classes: int, epsilon: float
) -> None:
    law = ResponseLaw.of(classes, epsilon)

    of_answers = chances(law)

    np.testing.assert_allclose(of_answers.sum(axis=1), 1.0, rtol=1e-12)
    # The definition: how much likelier any answer is under one label than under any other.
    spent = math.log((of_answers.max(axis=0) / of_answers.min(axis=0)).max())
    assert float(law.exactly) == pytest.approx(spent, rel=1e-12)
    assert spent <= epsilon
    assert spent <= law.epsilon <= spent + 1e-6
    assert round(law.epsilon * 1e6) == law.epsilon_millionths


@pytest.mark.parametrize(("classes", "epsilon"), CASES)
def test_the_law_is_near_the_published_one(classes: int, epsilon: float) -> None:
    """Kairouz, Oh, Viswanath 2014: the truth with e^epsilon / (e^epsilon + K - 1), any other 1 of it."""
    law = ResponseLaw.of(classes, epsilon)
    published = math.exp(epsilon) / (math.exp(epsilon) + classes - 1)

    assert law.truth <= published
    # Each wrong label gets at most one entry too many.
    if law.bits == 16:
        assert law.truth >= published - (classes - 1) / 2**16
    else:
        assert law.epsilon >= 0.98 * epsilon


def test_small_tables_are_counted_out_by_hand() -> None:
    law = ResponseLaw(classes=3, bits=3, others=2)

    assert law.shifts.tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    assert (law.truth, law.epsilon_millionths) == (0.5, 693_148)  # ln 2 = 0.693147...


@pytest.mark.parametrize(("classes", "bits"), [(2, 8), (128, 8), (129, 16), (1024, 16)])
def test_a_label_and_a_shift_fit_the_words(classes: int, bits: int) -> None:
    law = ResponseLaw.of(classes, 9.0)

    assert law.ring.bits == bits
    assert 2 * (classes - 1) < 2**law.sum_bits <= 2**bits


@pytest.mark.parametrize("epsilon", [0.0, -1.0, 10.1, math.inf, math.nan])
def test_an_epsilon_without_noise_or_without_sense_is_refused(epsilon: float) -> None:
    with pytest.raises(UsageError, match="above 0 and up to 10"):
        ResponseLaw.of(10, epsilon)


def test_an_epsilon_too_small_for_so_many_classes_is_refused() -> None:
    with pytest.raises(UsageError, match="among 1000 classes: give a larger one"):
        ResponseLaw.of(1000, 1.0)


@pytest.mark.parametrize(
    ("classes", "bits", "others"), [(1, 8, 1), (3, 0, 1), (3, 4, 0), (3, 4, 6), (3, 4, 7), (4, 2, 1)]
)
def test_a_table_that_is_no_law_is_refused(classes: int, bits: int, others: int) -> None:
    with pytest.raises(UsageError, match="the likeliest answer"):
        ResponseLaw(classes, bits, others)


def test_the_page_of_serving_says_what_noise_costs_in_accuracy(pytestconfig: pytest.Config) -> None:
    """Asked, spent, p, and p a + q (1 - a) for a = 0.98: of the table as it is, near the published law."""
    page = (pytestconfig.rootpath / "docs" / "explanation" / "serving.md").read_text()
    head = "| E, ten classes | spent on an image | p | of 98 % right answers are left |"
    lines = page[page.index(head) :].split("\n\n")[0].splitlines()[2:]

    assert len(lines) == 8
    for line in lines:
        asked, spent, p, left = (cell.strip(" %") for cell in line.strip("|").split("|"))
        shifts = ResponseLaw.of(10, float(asked)).shifts
        truth = float(np.mean(shifts == 0))
        wrong = (1 - truth) / 9
        assert p == f"{truth:.3f}"
        assert spent == f"{math.log(truth / wrong):.3f}"
        assert left == f"{100 * (truth * 0.98 + wrong * 0.02):.1f}"
        published = math.exp(float(asked)) / (math.exp(float(asked)) + 9)
        assert published - 0.01 <= truth <= published
