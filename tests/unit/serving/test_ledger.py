"""The durable book of charges: across reopening, in parallel, damaged, on a full disk."""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path

import pytest

from fedsec.errors import StateError, UsageError
from fedsec.serving.agreement import RequestKey
from fedsec.serving.book import ServiceBook
from fedsec.serving.ledger import Ledger
from fedsec.serving.messages import Entry

MODEL, SERVICE, USER = b"m" * 16, b"s" * 16, b"u" * 32


def entry(number: int, images: int = 1, user: bytes = USER) -> Entry:
    return Entry(user, number.to_bytes(16, "big"), images)


def test_charges_count_against_service_and_user(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "l").open_service(SERVICE, MODEL, num_requests=10, quota=6)
    book.charge([entry(1, 2), entry(2, 3)])
    assert (book.answered(), book.left(), book.left_for(USER), book.left_for(b"x" * 32)) == (5, 5, 1, 6)
    assert book.used(RequestKey(USER, entry(1).request))
    assert not book.used(RequestKey(b"x" * 32, entry(1).request))


def test_no_limits_means_none(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "l").open_service(SERVICE, MODEL, num_requests=None, quota=None)
    book.charge([entry(1, 128)])
    assert book.left() is None
    assert book.left_for(USER) is None


def test_a_void_charge_frees_the_services_count_but_not_the_users(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "l").open_service(SERVICE, MODEL, num_requests=5, quota=5)
    book.charge([entry(1, 2)])
    book.void([entry(1, 2)])
    book.void([entry(1, 2)])  # once is all it can be voided
    assert (book.left(), book.left_for(USER)) == (5, 3)
    assert book.used(RequestKey(USER, entry(1).request))


def test_threat_33_the_quota_survives_a_restart_and_a_new_service(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    ledger.open_service(SERVICE, MODEL, num_requests=None, quota=3).charge([entry(1, 2)])
    ledger.close()
    again = Ledger(tmp_path / "l").open_service(b"t" * 16, MODEL, num_requests=None, quota=3)
    assert again.left_for(USER) == 1
    assert again.used(RequestKey(USER, entry(1).request))


def test_a_services_id_never_comes_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    ledger.open_service(SERVICE, MODEL, num_requests=1, quota=None)
    with pytest.raises(UsageError, match="fresh id"):
        ledger.open_service(SERVICE, MODEL, num_requests=1, quota=None)


def test_a_batch_is_charged_whole_or_not_at_all(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "l").open_service(SERVICE, MODEL, num_requests=9, quota=None)
    book.charge([entry(1)])
    with pytest.raises(StateError):
        book.charge([entry(2), entry(1)])
    assert book.left() == 8
    assert not book.used(RequestKey(USER, entry(2).request))


def test_what_is_charged_ahead_is_in_the_file_and_counts_against_no_limit(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    book = ledger.open_service(SERVICE, MODEL, num_requests=9, quota=6)
    book.charge_ahead([entry(1, 2), entry(2, 3)])
    assert (book.left(), book.left_for(USER), book.answered()) == (9, 6, 0)
    assert not book.used(RequestKey(USER, entry(1).request))
    assert ledger.answered(SERVICE) == 5
    book.charge([entry(1, 2)])
    assert (book.left(), book.left_for(USER), ledger.answered(SERVICE)) == (7, 4, 5)
    assert book.used(RequestKey(USER, entry(1).request))
    book.charge_ahead([entry(2, 3)])  # it is there already
    assert ledger.answered(SERVICE) == 5


def test_threat_33_a_crash_leaves_charged_what_was_charged_ahead(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    ledger.open_service(SERVICE, MODEL, num_requests=3, quota=3).charge_ahead([entry(1, 2), entry(2, 2)])
    ledger.close()
    again = Ledger(tmp_path / "l")
    assert again.answered(SERVICE) == 3  # no more than the service may answer
    book = again.open_service(b"t" * 16, MODEL, num_requests=None, quota=3)
    assert book.left_for(USER) == 0
    assert book.used(RequestKey(USER, entry(1).request))


def test_what_is_never_decided_is_taken_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    book = ledger.open_service(SERVICE, MODEL, num_requests=9, quota=6)
    book.charge_ahead([entry(1, 2), entry(2, 3)])
    book.take_back({RequestKey(USER, entry(1).request)})
    assert (ledger.answered(SERVICE), set(book.ahead)) == (2, {RequestKey(USER, entry(1).request)})
    book.charge([entry(1, 2), entry(2, 3)])
    assert (ledger.answered(SERVICE), book.answered()) == (5, 5)
    book.take_back(())
    assert ledger.answered(SERVICE) == 5


def test_an_id_that_comes_back_for_another_number_of_images_is_charged_for_that(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    book = ledger.open_service(SERVICE, MODEL, num_requests=None, quota=None)
    book.charge_ahead([entry(1, 2)])
    book.charge([entry(1, 5)])
    assert (ledger.answered(SERVICE), book.answered()) == (5, 5)


def test_parallel_charges_of_one_id_are_charged_once(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "l").open_service(SERVICE, MODEL, num_requests=None, quota=None)
    failures: list[Exception] = []

    def charge() -> None:
        try:
            book.charge([entry(7)])
        except StateError as error:
            failures.append(error)

    threads = [threading.Thread(target=charge) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(failures), book.answered()) == (7, 1)


def test_the_file_is_private_and_synchronous(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        ledger = Ledger(tmp_path / "l")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "l").stat().st_mode) == 0o600
    assert ledger.read_one("PRAGMA synchronous", ()) == 2  # FULL in SQLite's documentation


@pytest.mark.parametrize("damage", ["garbage", "truncated", "version"])
def test_threat_44_a_damaged_ledger_stops_serving(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "l"
    ledger = Ledger(path)
    ledger.open_service(SERVICE, MODEL, num_requests=None, quota=None).charge([entry(n) for n in range(500)])
    if damage == "version":
        ledger.read_one("PRAGMA user_version=9", ())
    ledger.close()
    if damage == "garbage":
        path.write_bytes(b"not a database" * 100)
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:20_000])
    text = "quotas and spent epsilon would be forgotten.* both begin at zero"
    with pytest.raises(StateError, match=text if damage == "version" else "the ledger"):
        Ledger(path)


def test_threat_44_a_full_disk_fails_closed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    book = ledger.open_service(SERVICE, MODEL, num_requests=None, quota=None)
    pages = ledger.read_one("PRAGMA page_count", ())
    ledger.read_one(f"PRAGMA max_page_count={pages}", ())  # SQLite's own way to a full disk
    numbers, charged = iter(range(1_000_000)), 0

    def charge_until_full() -> None:
        nonlocal charged
        while charged < 100_000:
            book.charge([entry(next(numbers)) for _ in range(500)])
            charged += 500

    # Free pages of the file hold some thousands of charges, then there are no more.
    with pytest.raises(StateError, match="full"):
        charge_until_full()
    assert book.answered() == ledger.answered(SERVICE) == charged


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="missing"):
        Ledger(tmp_path / "missing" / "l")


def test_a_page_of_the_ledger_says_who_when_how_much_and_what(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    book = ledger.open_service(SERVICE, MODEL, num_requests=None, quota=None)
    book.meet(USER, "anna")
    before = time.time()
    book.charge([Entry(USER, b"1" * 16, 2, "label"), entry(2, 3, b"x" * 32)])
    book.void([entry(2, 3, b"x" * 32)])
    unnamed, named = ledger.queries(None, 10)
    assert (named.name, named.fingerprint, named.images, named.reveal) == ("anna", USER, 2, "label")
    assert named.answered
    assert before <= named.at <= time.time()
    assert (unnamed.name, unnamed.images, unnamed.reveal, unnamed.answered) == ("", 3, "logits", False)
    assert ledger.queries(unnamed.number, 10) == [named]
    assert ledger.queries(None, 1) == [unnamed]


def test_a_resumed_service_counts_what_was_answered_before(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    book = ledger.open_service(SERVICE, MODEL, num_requests=5, quota=None, answered=3)
    book.charge([entry(1)])
    assert (book.answered(), book.left(), ledger.answered(SERVICE)) == (4, 1, 4)
    assert ledger.answered(b"never ran here.."[:16]) is None


def test_counts_in_memory_are_those_of_the_file_after_a_failed_charge(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    book = ledger.open_service(SERVICE, MODEL, num_requests=9, quota=9)
    assert book.left_for(USER) == 9
    book.charge([entry(1, 2)])
    with pytest.raises(StateError):
        book.charge([entry(2), entry(1)])
    fresh = ServiceBook(ledger, SERVICE, MODEL, 9, 9, answered=ledger.answered(SERVICE) or 0)
    assert (book.left(), book.left_for(USER)) == (fresh.left(), fresh.left_for(USER)) == (7, 7)
