"""State files of the sealed model: whole or refused, private, and no more of them than asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedsec.aggregation.announcement import Member
from fedsec.aggregation.planner import ArraySpec
from fedsec.aggregation.sealed import state as sealed_state
from fedsec.aggregation.sealed.state import SealedState, SealedStates
from fedsec.errors import ProtocolError, StateError
from fedsec.ring import fresh_stream
from fedsec.sharing.replicated import RepShare

SESSION = bytes(range(16))
ARRAYS = (ArraySpec("kernel", "float32", (3, 5), 1.0), ArraySpec("bias", "float32", (2,), 0.5))


def state(number: int = 4, **fields: object) -> SealedState:
    words = fresh_stream().words((2, 17))
    values = {
        "session": SESSION,
        "arrays": ARRAYS,
        "fraction_bits": 24,
        "share": RepShare(words[0], words[1], 24),
    }
    return SealedState(number=number, **{**values, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize("closed", [True, False])
def test_what_was_written_is_read_back_whole(tmp_path: Path, closed: bool) -> None:
    written = state(
        closed=closed, roster=(Member("h0", bytes(32)),), serves=b"s" * 32, origin=b"o" * 32, before=3
    )
    SealedStates(tmp_path).write(written)

    read = SealedStates(tmp_path).read(SESSION, 4)

    np.testing.assert_array_equal(read.share.own, written.share.own)
    np.testing.assert_array_equal(read.share.next, written.share.next)
    assert read.share.fraction_bits == 24
    header = SealedStates(tmp_path).header(SESSION, 4)
    assert header.words == 17
    for name in (
        "session",
        "number",
        "arrays",
        "fraction_bits",
        "closed",
        "roster",
        "serves",
        "origin",
        "before",
    ):
        assert getattr(read, name) == getattr(written, name) == getattr(header, name)


def test_a_header_is_that_of_its_file_and_of_its_size(tmp_path: Path) -> None:
    states = SealedStates(tmp_path)
    states.write(state())
    path = tmp_path / "sealed" / SESSION.hex() / "4.state"
    with pytest.raises(ProtocolError, match="no sealed state 5"):
        states.header(SESSION, 5)
    path.with_name("5.state").write_bytes(path.read_bytes())
    with pytest.raises(StateError, match="another one"):
        states.header(SESSION, 5)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StateError, match="damaged"):
        states.header(SESSION, 4)


def test_files_and_folders_are_the_owners_alone(tmp_path: Path) -> None:
    SealedStates(tmp_path).write(state())

    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file.relative_to(tmp_path) == Path("sealed", SESSION.hex(), "4.state")
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_damage_anywhere_is_noticed(tmp_path: Path) -> None:
    states = SealedStates(tmp_path)
    states.write(state())
    path = tmp_path / "sealed" / SESSION.hex() / "4.state"
    whole = path.read_bytes()

    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(StateError):
            states.read(SESSION, 4)
    for wrong in (whole[:-1], whole + b"\0", whole[:20], b""):
        path.write_bytes(wrong)
        with pytest.raises(StateError):
            states.read(SESSION, 4)


def test_a_state_under_another_number_is_refused(tmp_path: Path) -> None:
    states = SealedStates(tmp_path)
    states.write(state(4))
    folder = tmp_path / "sealed" / SESSION.hex()
    (folder / "4.state").rename(folder / "5.state")

    with pytest.raises(StateError, match="another state"):
        states.read(SESSION, 5)


def test_what_is_not_there_is_a_protocol_error(tmp_path: Path) -> None:
    states = SealedStates(tmp_path)

    with pytest.raises(ProtocolError, match="no sealed state 4"):
        states.read(SESSION, 4)
    with pytest.raises(ProtocolError, match="16 bytes"):
        states.read(b"../../etc", 4)


def test_only_what_is_to_be_kept_stays(tmp_path: Path) -> None:
    states = SealedStates(tmp_path)
    for number in (0, 3, 12):
        states.write(state(number))
    assert (states.numbers(SESSION), states.sessions()) == ((0, 3, 12), (SESSION,))
    (tmp_path / "sealed" / SESSION.hex() / "13.ab12.draft").write_bytes(b"half")

    states.keep(SESSION, {3, 12})

    assert states.numbers(SESSION) == (3, 12)
    assert len(list(tmp_path.rglob("*.*"))) == 2


def test_a_party_keeps_a_bounded_number_of_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed_state, "MOST_SESSIONS", 2)
    states = SealedStates(tmp_path)
    for number in range(2):
        states.write(state(1, session=bytes([number]) * 16))

    states.write(state(2, session=bytes(16)))
    with pytest.raises(StateError, match="2 sealed models"):
        states.write(state(1, session=b"\7" * 16))
