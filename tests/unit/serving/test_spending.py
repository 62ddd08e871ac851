"""Epsilon of noisy answers: added up per certificate and over all, durably, with a stop for each."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from fedsec.errors import ServiceEndedError, TrustError, UsageError
from fedsec.mpc.randomised_response import ResponseLaw
from fedsec.nn import Plan
from fedsec.serving.agreement import Verdict, Wish, judge, judge_alone, key_of
from fedsec.serving.book import ServiceBook
from fedsec.serving.ledger import Ledger
from fedsec.serving.messages import Entry, LabelNoise
from fedsec.serving.refusals import refusal
from fedsec.serving.spending import Price, check_noise

MODEL, SERVICE = b"m" * 16, b"s" * 16
ANNA, BERT = b"a" * 32, b"b" * 32

PRICE = Price(answer=400_000, identity=1_000_000, total=1_600_000)
"""Two images a certificate, four in all."""


def entry(number: int, images: int = 1, user: bytes = ANNA) -> Entry:
    return Entry(user, number.to_bytes(16, "big"), images, "label")


def opened(path: Path, price: Price | None = PRICE, service: bytes = SERVICE) -> ServiceBook:
    return Ledger(path).open_service(service, MODEL, num_requests=None, quota=None, price=price)


def test_each_image_spends_and_both_limits_count(tmp_path: Path) -> None:
    book = opened(tmp_path / "l")
    assert (book.left(), book.left_for(ANNA), book.left_for(BERT)) == (4, 2, 2)

    book.charge([entry(1, 2)])

    assert (book.left(), book.left_for(ANNA), book.left_for(BERT)) == (2, 0, 2)
    assert (book.spent_epsilon(), book.answer_epsilon) == (0.8, 0.4)
    book.charge([entry(2, 2, BERT)])
    assert (book.left(), book.left_for(b"c" * 32)) == (0, 2)
    assert not book.finished()  # it goes on to refuse


def test_the_smaller_of_two_limits_counts(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    book = ledger.open_service(SERVICE, MODEL, num_requests=3, quota=1, price=PRICE)

    assert (book.left(), book.left_for(ANNA)) == (3, 1)

    ample = Price(answer=400_000)
    without = ledger.open_service(b"t" * 16, MODEL, num_requests=None, quota=None, price=ample)
    assert (without.left(), without.left_for(ANNA)) == (None, None)


def test_what_was_spent_is_kept_over_restarts_services_and_other_noise(tmp_path: Path) -> None:
    book = opened(tmp_path / "l")
    book.charge([entry(1, 2)])
    book.ledger.close()

    again = opened(tmp_path / "l", Price(answer=100_000, identity=1_000_000, total=1_000_000), b"t" * 16)

    assert (again.left(), again.left_for(ANNA), again.left_for(BERT)) == (2, 2, 10)
    assert again.spent_epsilon() == 0.8
    (record,) = again.ledger.queries(None, 9)
    assert (record.images, record.epsilon, record.answered) == (2, 0.8, True)


def test_an_answer_without_noise_spends_nothing_that_is_counted(tmp_path: Path) -> None:
    book = opened(tmp_path / "l", None)
    book.charge([entry(1, 2)])

    assert (book.spent_epsilon(), book.answer_epsilon, book.left(), book.left_for(ANNA)) == (0, 0, None, None)
    assert book.ledger.spent_on(MODEL) == 0


def test_what_is_charged_ahead_is_spent_when_it_is_decided_or_when_the_party_dies(tmp_path: Path) -> None:
    book = opened(tmp_path / "l")
    book.charge_ahead([entry(1), entry(2)])
    assert (book.left(), book.left_for(ANNA), book.ledger.spent_on(MODEL)) == (4, 2, 800_000)
    book.charge([entry(1)])
    assert (book.left(), book.left_for(ANNA)) == (3, 1)
    book.take_back({key_of(entry(2))})
    book.ledger.close()

    # As a crash would leave it: the second is in the file, undecided.
    again = opened(tmp_path / "l", service=b"t" * 16)
    assert (again.left(), again.left_for(ANNA)) == (2, 0)


def test_what_nobody_got_an_answer_to_stays_spent(tmp_path: Path) -> None:
    book = opened(tmp_path / "l")
    book.charge([entry(1, 2)])
    book.void([entry(1, 2)])

    assert (book.left(), book.left_for(ANNA), book.answered()) == (2, 0, 0)


def test_requests_that_fit_alone_but_not_together_are_put_off(tmp_path: Path) -> None:
    book = opened(tmp_path / "l")
    asked = [entry(1), entry(2), entry(3), entry(4, 2, BERT), entry(5, 1, b"c" * 32)]
    held = {key_of(one): Wish(one.images, one.reveal) for one in asked}

    crowded, accept = Verdict.CROWDED, Verdict.ACCEPT
    assert judge(asked, held, book) == (accept, accept, crowded, accept, crowded)


@pytest.mark.parametrize(
    ("images", "before", "verdict", "expected"),
    [
        (3, [], Verdict.QUOTA, (TrustError, "certificate may spend epsilon 1 .* 0 is spent, .* costs 0.4")),
        (1, [entry(1, 2)], Verdict.QUOTA, (TrustError, "epsilon 1 .* 0.8 is spent, .* 1 image")),
        (
            1,
            [entry(2, 2, BERT), entry(3, 2, b"c" * 32)],
            Verdict.ENDED,
            (ServiceEndedError, "all users together may spend epsilon 1.6 .* 1.6 is spent"),
        ),
    ],
)
def test_at_a_stop_the_error_says_what_is_spent(
    tmp_path: Path, images: int, before: list[Entry], verdict: Verdict, expected: tuple[type[Exception], str]
) -> None:
    book = opened(tmp_path / "l")
    for one in before:
        book.charge([one])
    asked = entry(9, images)

    assert judge_alone(key_of(asked), images, book) is verdict
    with pytest.raises(expected[0], match=f"{expected[1]}.*nothing was charged"):
        raise refusal(verdict, images, book, ANNA)


def test_a_limit_in_images_is_told_as_before(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "l").open_service(SERVICE, MODEL, num_requests=1, quota=1, price=Price(400_000))

    with pytest.raises(TrustError, match="may ask for 1 more images"):
        raise refusal(Verdict.QUOTA, 2, book, ANNA)
    with pytest.raises(ServiceEndedError, match="answers 1 more images"):
        raise refusal(Verdict.ENDED, 2, book, ANNA)


def test_a_ledger_from_before_noisy_answers_is_read(tmp_path: Path) -> None:
    """The tables as they were, by SQLite itself."""
    with sqlite3.connect(tmp_path / "l") as db:
        db.execute(
            "CREATE TABLE charge (number INTEGER PRIMARY KEY, at REAL NOT NULL, name TEXT NOT NULL,"
            " model BLOB NOT NULL, fingerprint BLOB NOT NULL, request BLOB NOT NULL, service BLOB NOT NULL,"
            " images INTEGER NOT NULL, reveal TEXT NOT NULL, void INTEGER NOT NULL DEFAULT 0,"
            " UNIQUE (model, fingerprint, request))"
        )
        row = (1.0, "anna", MODEL, ANNA, b"r" * 16, SERVICE, 2, "label")
        db.execute("INSERT INTO charge VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, 0)", row)
        db.execute("PRAGMA user_version=2")
    db.close()

    book = Ledger(tmp_path / "l").open_service(b"t" * 16, MODEL, num_requests=None, quota=3, price=PRICE)

    assert (book.left_for(ANNA), book.spent_epsilon()) == (1, 0)
    book.charge([entry(1)])
    assert [record.epsilon for record in book.ledger.queries(None, 9)] == [0.4, 0]


def test_a_price_is_that_of_the_law(model: tuple[Plan, object]) -> None:
    plan = model[0]
    law = ResponseLaw.of(plan.output_shape[-1], 1.5)

    price = Price.of(LabelNoise(1.5, 3.0, None), plan)

    assert price == Price(law.epsilon_millionths, 3_000_000, None)
    assert price.answer <= 1_500_000


@pytest.mark.parametrize("noise", [LabelNoise(1.0, 0.5), LabelNoise(1.0, None, 0.9)])
def test_a_limit_that_allows_no_answer_is_refused(noise: LabelNoise, model: tuple[Plan, object]) -> None:
    with pytest.raises(UsageError, match="allows none"):
        Price.of(noise, model[0])


def test_beside_noisy_labels_nothing_is_revealed() -> None:
    check_noise(LabelNoise(1.0), ["label"])
    check_noise(None, ["logits", "label"])
    with pytest.raises(UsageError, match="logits and top3 cannot be revealed"):
        check_noise(LabelNoise(1.0), ["logits", "label", "top3"])
