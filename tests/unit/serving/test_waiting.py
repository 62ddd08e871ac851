"""The waiting room: bounded, and nothing that is being decided can slip away."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from fedsec.errors import DeadlineError, PeerLostError, ServiceEndedError, UsageError
from fedsec.ring import RING64
from fedsec.serving import parts
from fedsec.serving import waiting as waiting_module
from fedsec.serving.agreement import RequestKey, Wish
from fedsec.serving.parts import Part
from fedsec.serving.waiting import WaitingRoom
from fedsec.transport.several import wait_any


def part() -> Part:
    return parts.join(0, parts.split(np.zeros(1, np.uint64))[0], 1, RING64)


def key(number: int, user: bytes = b"u" * 32) -> RequestKey:
    return RequestKey(user, number.to_bytes(16, "big"))


def room(longest_s: float = 60.0) -> WaitingRoom:
    return WaitingRoom(max_images=10, max_per_user=3, max_images_per_user=7, longest_s=longest_s)


def test_oldest_first_and_answered_once() -> None:
    waiting = room()
    first, second = waiting.admit(key(2), 1, "logits", part), waiting.admit(key(1), 2, "logits", part)
    assert list(waiting.held().items()) == [(key(2), Wish(1, "logits")), (key(1), Wish(2, "logits"))]
    waiting.resolve(key(1), b"answer")
    assert second.outcome() == b"answer"
    assert waiting.held() == {key(2): Wish(1, "logits")}
    assert not first.done.is_set()


def test_threat_37_the_room_is_bounded_in_images_and_a_user() -> None:
    waiting = room()
    for number in range(3):
        waiting.admit(key(number), 1, "logits", part)
    with pytest.raises(UsageError, match="ask again later"):
        waiting.admit(key(9), 1, "logits", part)
    waiting.admit(key(9, b"v" * 32), 6, "logits", part)
    with pytest.raises(UsageError, match=r"9 images in all \(of 10\)"):
        waiting.admit(key(10, b"w" * 32), 2, "logits", part)


def test_threat_37_half_of_the_room_is_for_newcomers() -> None:
    waiting = room()
    waiting.admit(key(1), 4, "logits", part)
    with pytest.raises(UsageError, match=r"\(of 5\)"):
        waiting.admit(key(2), 2, "logits", part)
    waiting.admit(key(2, b"v" * 32), 6, "logits", part)


def test_threat_37_a_part_that_is_being_read_has_its_place() -> None:
    waiting = room()

    def read() -> Part:
        # Nothing to compute on yet, and no room for more.
        assert waiting.held() == waiting.reserve([key(1)]) == {}
        with pytest.raises(UsageError, match="ask again later"):
            waiting.admit(key(2), 1, "logits", part)
        with pytest.raises(UsageError, match="fresh id"):
            waiting.admit(key(1), 1, "logits", part)
        return part()

    waiting.admit(key(1), 7, "logits", read)
    assert waiting.held() == {key(1): Wish(7, "logits")}


def test_a_part_that_does_not_come_leaves_its_place() -> None:
    waiting = room()

    def read() -> Part:
        raise PeerLostError("the user is gone")

    for _ in range(5):
        with pytest.raises(PeerLostError):
            waiting.admit(key(1), 7, "logits", read)
    waiting.admit(key(1), 7, "logits", part)


def test_a_service_that_ends_while_a_part_is_read_refuses_it() -> None:
    waiting = room()

    def read() -> Part:
        waiting.close(ServiceEndedError("the service has ended"))
        return part()

    with pytest.raises(ServiceEndedError):
        waiting.admit(key(1), 1, "logits", read)
    assert waiting.held() == {}


def test_threat_37_nobody_takes_all_the_room() -> None:
    waiting = WaitingRoom(max_images=100, max_per_user=3, max_images_per_user=7, longest_s=60)
    waiting.admit(key(1), 7, "logits", part)
    with pytest.raises(UsageError, match=r"7 images \(of 7\)"):
        waiting.admit(key(2), 1, "logits", part)
    waiting.admit(key(2, b"v" * 32), 3, "logits", part)


def test_the_same_request_waits_once() -> None:
    waiting = room()
    waiting.admit(key(1), 1, "logits", part)
    with pytest.raises(UsageError, match="fresh id"):
        waiting.admit(key(1), 1, "logits", part)


def test_a_request_that_was_put_off_can_be_withdrawn() -> None:
    waiting = room()
    ticket = waiting.admit(key(1), 1, "logits", part)
    assert waiting.reserve([key(1), key(2)]) == {key(1): Wish(1, "logits")}
    waiting.put_off(key(1), "bob got no part of it")
    assert ticket.lacking == "bob got no part of it"
    waiting.withdraw(ticket, DeadlineError("too late"))
    with pytest.raises(DeadlineError, match="too late"):
        ticket.outcome()
    assert waiting.held() == {}


def test_what_is_withdrawn_while_the_parties_decide_goes_when_it_is_put_off() -> None:
    waiting = room()
    ticket = waiting.admit(key(1), 1, "logits", part)
    waiting.reserve([key(1)])
    waiting.withdraw(ticket, DeadlineError("too late"))
    assert not ticket.done.is_set()
    # Nobody decides on it a second time.
    assert waiting.held() == waiting.reserve([key(1)]) == {}
    waiting.put_off(key(1), "bob got no part of it")
    with pytest.raises(DeadlineError, match="too late"):
        ticket.outcome()


def test_what_is_withdrawn_while_the_parties_decide_is_answered_if_they_accept_it() -> None:
    waiting = room()
    ticket = waiting.admit(key(1), 1, "logits", part)
    waiting.reserve([key(1)])
    waiting.withdraw(ticket, DeadlineError("too late"))
    assert len(waiting.parts([key(1)])) == 1
    waiting.resolve(key(1), b"answer")
    assert ticket.outcome() == b"answer"


def test_withdrawing_an_old_ticket_leaves_a_new_one_of_the_same_key() -> None:
    waiting = room()
    old = waiting.admit(key(1), 1, "logits", part)
    waiting.resolve(key(1), b"")
    new = waiting.admit(key(1), 1, "logits", part)
    waiting.withdraw(old, DeadlineError("late"))
    assert waiting.held() == {key(1): Wish(1, "logits")}
    assert not new.done.is_set()


def test_closing_refuses_all_that_wait_and_all_that_come() -> None:
    waiting = room()
    ticket = waiting.admit(key(1), 1, "logits", part)
    waiting.reserve([key(1)])
    waiting.close(ServiceEndedError("the service has ended"))
    with pytest.raises(ServiceEndedError):
        ticket.outcome()
    with pytest.raises(ServiceEndedError, match="has ended"):
        waiting.admit(key(2), 1, "logits", part)


def test_a_part_that_comes_between_looking_and_sleeping_wakes_the_compute_thread() -> None:
    waiting = room()
    waiting.bell.hush()
    waiting.admit(key(1), 1, "logits", part)
    sleeper = threading.Thread(target=wait_any, args=([], 60, waiting.bell))
    sleeper.start()
    sleeper.join(30)
    assert not sleeper.is_alive()


def test_wake_ends_the_sleep() -> None:
    waiting = room()
    sleeper = threading.Thread(target=wait_any, args=([], 60, waiting.bell))
    sleeper.start()
    waiting.wake()
    sleeper.join(30)
    assert not sleeper.is_alive()


def test_a_draining_room_refuses_what_is_new_and_waits_for_what_it_has() -> None:
    waiting = room()
    waiting.admit(key(1), 1, "logits", part)
    drained = threading.Thread(target=waiting.drain, args=(ServiceEndedError("it ends"), 60.0))
    drained.start()
    while True:
        try:
            waiting.admit(key(2), 1, "logits", part)
        except ServiceEndedError:
            break
        waiting.refuse(key(2), UsageError("too early"))
    assert drained.is_alive()
    assert waiting.occupied == 1
    waiting.resolve(key(1), b"answer")
    drained.join(30)
    assert not drained.is_alive()


def test_draining_ends_also_if_something_waits_for_ever() -> None:
    waiting = room()
    waiting.admit(key(1), 1, "logits", part)
    waiting.drain(ServiceEndedError("it ends"), 0.05)
    assert waiting.occupied == 1


def test_threat_37_a_part_that_nobody_gives_up_goes_after_the_longest_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(waiting_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    waiting = room(longest_s=0.05)
    left = waiting.admit(key(1), 1, "logits", part)
    waiting.release()
    assert list(waiting.held()) == [key(1)]
    now[0] += 0.06
    being_decided = waiting.admit(key(2), 1, "logits", part)
    waiting.release()
    assert list(waiting.held()) == [key(2)]
    with pytest.raises(DeadlineError, match=r"0\.05 s"):
        left.outcome()
    waiting.reserve([key(2)])
    now[0] += 0.06
    waiting.release()
    assert (waiting.occupied, being_decided.done.is_set()) == (1, False)
    waiting.put_off(key(2), "nobody knows")
    assert waiting.occupied == 0
