from __future__ import annotations

import hashlib
import struct

import pytest

from fedsec.errors import ProtocolError
from fedsec.transport.frames import HEADER_BYTES, WHOLE_BYTES, Direction, step_tag


def test_a_header_is_the_bytes_that_the_page_on_the_wire_format_draws() -> None:
    header = Direction("alice", "bob", b"session").seal("multiply/3", b"12345")
    digest = hashlib.sha256(b"fedsec step 1")
    for part in (b"session", b"multiply/3", b"alice", b"bob"):
        digest.update(struct.pack(">I", len(part)) + part)
    assert header == b"FS\x01\x00" + struct.pack(">IQ", 5, 0) + digest.digest()[:8]
    assert len(header) == HEADER_BYTES


def test_names_and_labels_cannot_run_into_each_other() -> None:
    assert step_tag(b"", "ab", "c", "d") != step_tag(b"", "a", "bc", "d")
    assert step_tag(b"a", "b", "c", "d") != step_tag(b"", "ab", "c", "d")


@pytest.mark.parametrize(
    ("sender", "receiver", "session", "label"),
    [
        ("bob", "alice", b"s", "x"),
        ("alice", "bob", b"t", "x"),
        ("alice", "bob", b"s", "y"),
    ],
    ids=["direction", "session", "step"],
)
def test_a_frame_of_another_step_session_or_direction_is_refused(
    sender: str, receiver: str, session: bytes, label: str
) -> None:
    header = Direction(sender, receiver, session).seal(label, b"")
    with pytest.raises(ProtocolError, match="another step or session"):
        Direction("alice", "bob", b"s").check(header, ("x",), 100)


def test_a_replayed_frame_is_refused_by_its_number() -> None:
    sender, receiver = Direction("a", "b"), Direction("a", "b")
    header = sender.seal("x", b"1")
    receiver.check(header, ("x",), 1)
    receiver.accept(header, b"1")
    with pytest.raises(ProtocolError, match="expected message number 1 from a, got 0"):
        receiver.check(header, ("x",), 1)


def test_a_frame_that_is_too_long_is_refused_by_its_header_alone() -> None:
    header = Direction("a", "b").seal("x", b"12345")
    with pytest.raises(ProtocolError, match="at most 4 bytes"):
        Direction("a", "b").check(header, ("x",), 4)
    assert Direction("a", "b").check(header, ("w", "x"), 5) == ("x", 5)


@pytest.mark.parametrize(
    ("position", "byte", "text"),
    [(0, 0x16, "no message"), (2, 9, "wire version 1 from a, got 9"), (3, 1, "no message")],
)
def test_other_bytes_and_versions_are_refused(position: int, byte: int, text: str) -> None:
    header = bytearray(Direction("a", "b").seal("x", b""))
    header[position] = byte
    with pytest.raises(ProtocolError, match=text):
        Direction("a", "b").check(header, ("x",), 0)


def test_the_transcript_depends_on_every_header_and_payload() -> None:
    seen = set()
    for label, payload in (("x", b"1"), ("x", b"2"), ("y", b"1")):
        direction = Direction("a", "b")
        direction.seal(label, payload)
        seen.add(direction.transcript())
    assert len(seen) == 3


def test_the_transcript_holds_payloads_up_to_16_kib_whole_and_longer_ones_by_step_number_and_length() -> None:
    def transcript_of(label: str, payload: bytes) -> bytes:
        direction = Direction("a", "b")
        direction.seal(label, payload)
        return direction.transcript()

    whole, long = bytes(WHOLE_BYTES), bytes(WHOLE_BYTES + 1)
    header = Direction("a", "b").header("x", WHOLE_BYTES)
    assert transcript_of("x", whole) == hashlib.sha256(b"fedsec transcript 2" + header + whole).digest()
    assert transcript_of("x", whole) != transcript_of("x", whole[:-1] + b"1")
    assert transcript_of("x", long) == transcript_of("x", long[:-1] + b"1")
    assert transcript_of("x", long) != transcript_of("y", long)
    assert transcript_of("x", long) != transcript_of("x", long + b"0")


def test_a_new_session_makes_new_tags_for_labels_that_were_used_before() -> None:
    direction = Direction("a", "b", b"one")
    before = direction.header("x", 0)
    direction.session = b"two"
    assert direction.header("x", 0) == Direction("a", "b", b"two").header("x", 0) != before


def test_labels_that_are_never_used_again_do_not_pile_up() -> None:
    direction = Direction("a", "b")
    for number in range(2000):
        direction.header(f"deal/{number}", 0)
    assert len(direction._tags) < 1000
