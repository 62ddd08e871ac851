from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

from fedsec.errors import DeadlineError, PeerLostError, ProtocolError
from fedsec.transport import Deadline, Role, exchange, memory_mesh, rounds_of


def _soon() -> Deadline:
    return Deadline.after(30.0)


def test_messages_arrive_in_order_and_are_counted_at_both_ends() -> None:
    mesh = memory_mesh(["a", "b"], record=True)
    words = np.arange(6, dtype=np.uint64).reshape(2, 3)
    mesh["a", "b"].send("x/1", words, _soon())
    mesh["a", "b"].send("x/2", b"", _soon())
    got = mesh["b", "a"].receive("x/1", max_bytes=48, deadline=_soon())
    assert np.array_equal(np.frombuffer(got, np.uint64).reshape(2, 3), words)
    assert mesh["b", "a"].receive("x/2", max_bytes=0, deadline=_soon()) == b""
    assert mesh["a", "b"].meter.by_label() == {"x": (2, 48, 0, 0)}
    assert mesh["b", "a"].meter.by_label() == {"x": (0, 0, 2, 48)}
    assert [label for label, _ in mesh["b", "a"].received] == ["x/1", "x/2"]


def test_the_sender_may_use_its_buffer_again() -> None:
    mesh = memory_mesh(["a", "b"])
    buffer = bytearray(b"one")
    mesh["a", "b"].send("x", buffer, _soon())
    buffer[:] = b"two"
    assert mesh["b", "a"].receive("x", max_bytes=3, deadline=_soon()) == b"one"


def test_without_record_nothing_is_kept() -> None:
    mesh = memory_mesh(["a", "b"])
    mesh["a", "b"].send("x", b"1", _soon())
    mesh["b", "a"].receive("x", max_bytes=1, deadline=_soon())
    assert mesh["b", "a"].received == []
    assert mesh["b", "a"].meter.log == []


def test_another_step_is_refused_and_both_labels_are_named() -> None:
    mesh = memory_mesh(["a", "b"])
    mesh["a", "b"].send("multiply", b"1", _soon())
    with pytest.raises(ProtocolError, match=r"'reveal' from a.*sent as 'multiply'"):
        mesh["b", "a"].receive("reveal", max_bytes=1, deadline=_soon())
    with pytest.raises(PeerLostError):
        mesh["b", "a"].receive("reveal", max_bytes=1, deadline=_soon())


def test_too_long_a_message_is_refused() -> None:
    mesh = memory_mesh(["a", "b"])
    mesh["a", "b"].send("x", b"12345", _soon())
    with pytest.raises(ProtocolError, match="at most 4 bytes"):
        mesh["b", "a"].receive("x", max_bytes=4, deadline=_soon())


def test_a_wait_ends_with_the_name_of_the_silent_peer_and_can_be_repeated() -> None:
    mesh = memory_mesh(["a", "b"])
    with pytest.raises(DeadlineError, match="from a within"):
        mesh["b", "a"].receive("x", max_bytes=1, deadline=Deadline.after(0.02))
    mesh["a", "b"].send("x", b"1", _soon())
    mesh["b", "a"].wait(_soon())
    assert mesh["b", "a"].receive("x", max_bytes=1, deadline=_soon()) == b"1"


def test_a_closed_end_is_seen_at_the_other_one_after_what_was_sent() -> None:
    mesh = memory_mesh(["a", "b"])
    mesh["a", "b"].send("x", b"1", _soon())
    mesh["a", "b"].close()
    assert mesh["b", "a"].receive("x", max_bytes=1, deadline=_soon()) == b"1"
    with pytest.raises(PeerLostError, match="a"):
        mesh["b", "a"].receive("x", max_bytes=1, deadline=_soon())
    with pytest.raises(PeerLostError):
        mesh["a", "b"].send("x", b"1", _soon())


def test_transcripts_are_equal_at_both_ends_and_differ_between_links() -> None:
    mesh = memory_mesh(["a", "b", "c"])
    for sender, receiver in (("a", "b"), ("b", "a"), ("a", "c")):
        mesh[sender, receiver].send("x", b"1", _soon())
        mesh[receiver, sender].receive("x", max_bytes=1, deadline=_soon())
    assert mesh["a", "b"].transcript() == mesh["b", "a"].transcript()
    assert mesh["a", "b"].transcript() != mesh["a", "c"].transcript()


def test_roles_can_be_given() -> None:
    mesh = memory_mesh(["party-0", "h"], roles={"h": Role.HOSPITAL})
    assert mesh["party-0", "h"].peer.role is Role.HOSPITAL
    assert mesh["h", "party-0"].peer.role is Role.PARTY


def test_exchange_is_one_round_and_checks_exact_sizes() -> None:
    mesh = memory_mesh(["a", "b", "c"], record=True)
    names = ["a", "b", "c"]

    def ring(position: int) -> None:
        me, following, previous = names[position], names[(position + 1) % 3], names[position - 1]
        (got,) = exchange(
            [(mesh[me, following], "step", me.encode())], [(mesh[me, previous], "step", 1)], _soon()
        )
        assert got == previous.encode()

    threads = [threading.Thread(target=ring, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    logs = {
        name: [
            r for other in names if other != name for r in mesh[name, other].meter.log if r.event == "send"
        ]
        + [r for other in names if other != name for r in mesh[name, other].meter.log if r.event == "receive"]
        for name in names
    }
    assert rounds_of(logs) == 1
    mesh["a", "b"].send("y", b"12", _soon())
    with pytest.raises(ProtocolError, match="expected 3 bytes"):
        exchange([], [(mesh["b", "a"], "y", 3)], _soon())


def test_no_message_vanishes_when_threads_switch_often() -> None:
    # Mailboxes made on first use lost 76 of 3,000 messages this way.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(300):
            mesh = memory_mesh(["a", "b"])
            thread = threading.Thread(target=mesh["a", "b"].send, args=("x", b"1", _soon()))
            thread.start()
            assert mesh["b", "a"].receive("x", max_bytes=1, deadline=_soon()) == b"1"
            thread.join()
    finally:
        sys.setswitchinterval(interval)
