from __future__ import annotations

import time

import pytest

from fedsec.errors import DeadlineError, PeerLostError
from fedsec.transport import Deadline


def test_remaining_counts_down_and_then_names_whom_we_waited_for() -> None:
    deadline = Deadline.after(60)
    assert 0 < deadline.remaining("bob") <= 60
    assert not deadline.passed
    deadline = Deadline.after(0.05)
    time.sleep(0.06)
    assert deadline.passed
    with pytest.raises(DeadlineError, match=r"bob within 0\.05 s"):
        deadline.remaining("bob")


def test_a_missed_deadline_is_a_lost_peer() -> None:
    assert issubclass(DeadlineError, PeerLostError)


def test_poll_never_gets_zero_milliseconds_while_time_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    # Zero would turn the last millisecond of a wait into a busy loop.
    assert Deadline.after(0.0005).poll_ms("bob") == 1
