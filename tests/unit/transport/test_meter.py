from __future__ import annotations

import threading

import pytest

from fedsec.errors import ProtocolError
from fedsec.transport import MessageRecord, Meter, bytes_of, rounds_of


def _send(sender: str, receiver: str, number: int, size: int = 8) -> MessageRecord:
    return MessageRecord("send", sender, receiver, "step", number, size)


def _got(sender: str, receiver: str, number: int, size: int = 8) -> MessageRecord:
    return MessageRecord("receive", sender, receiver, "step", number, size)


def test_counts_are_kept_by_kind_and_by_peer() -> None:
    meter = Meter()
    meter.sent("a", "b", "upload/request", 0, 10)
    meter.sent("a", "c", "upload/body", 0, 5)
    meter.received("b", "a", "reply", 0, 7)
    assert (meter.sent_bytes, meter.received_bytes, meter.messages) == (15, 7, 3)
    assert meter.by_label() == {"reply": (0, 0, 1, 7), "upload": (2, 15, 0, 0)}
    assert meter.by_peer() == {"b": (1, 10, 1, 7), "c": (1, 5, 0, 0)}
    assert meter.snapshot()["by_label"]["upload"] == [2, 15, 0, 0]
    assert meter.log == []


def test_one_meter_serves_many_threads() -> None:
    meter = Meter(logging=True)

    def count() -> None:
        for number in range(500):
            meter.sent("a", "b", "x", number, 2)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert meter.sent_bytes == 8 * 500 * 2
    assert len(meter.log) == 8 * 500


def test_messages_in_a_ring_at_the_same_time_are_one_round() -> None:
    names = ["a", "b", "c"]
    logs = {
        name: [_send(name, names[(i + 1) % 3], 0), _got(names[i - 1], name, 0)]
        for i, name in enumerate(names)
    }
    assert rounds_of(logs) == 1


def test_a_chain_is_as_many_rounds_as_it_has_links() -> None:
    logs = {
        "a": [_send("a", "b", 0), _got("c", "a", 0)],
        "b": [_got("a", "b", 0), _send("b", "c", 0)],
        "c": [_got("b", "c", 0), _send("c", "a", 0)],
    }
    assert rounds_of(logs) == 3


def test_sending_twice_without_receiving_is_still_one_round() -> None:
    logs = {"a": [_send("a", "b", 0), _send("a", "b", 1)], "b": [_got("a", "b", 0), _got("a", "b", 1)]}
    assert rounds_of(logs) == 1


def test_no_messages_are_no_round() -> None:
    assert rounds_of({"a": [], "b": []}) == 0


def test_a_log_without_its_sender_is_refused() -> None:
    with pytest.raises(ProtocolError, match="no log holds it as sent"):
        rounds_of({"b": [_got("a", "b", 0)]})


def test_bytes_of_counts_what_each_sent() -> None:
    logs = {"a": [_send("a", "b", 0, 5), _send("a", "b", 1, 6)], "b": [_got("a", "b", 0, 5)]}
    assert bytes_of(logs) == {"a": 11, "b": 0}
