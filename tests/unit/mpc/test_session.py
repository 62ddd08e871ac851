"""Session keys: agreed by both ends, fresh every time, refused on any disagreement."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from fedsec.errors import DeadlineError, ProtocolError, UsageError
from fedsec.mpc import Party, establish, multiply, reveal, session
from fedsec.ring import RING32, RING64, Ring, fresh_stream
from fedsec.sharing import replicated
from fedsec.transport import Deadline, memory_mesh

NAMES = ("alice", "bob", "carol")


def _establish_all(
    settings: Mapping[int, Mapping[str, Any]] = MappingProxyType({}),
    then: Callable[[Party], Any] = lambda party: party,
    seconds: float = 2.0,
    mesh: Mapping[tuple[str, str], Any] | None = None,
) -> tuple[list[Any], list[BaseException | None]]:
    """All three parties establish a session, some settings changed; returns results and errors by party."""
    mesh = memory_mesh(NAMES) if mesh is None else mesh
    results: list[Any] = [None] * 3
    errors: list[BaseException | None] = [None] * 3

    def join(i: int) -> None:
        own = {"session": b"s", "ring": RING64, "party_id": i} | dict(settings.get(i, {}))
        try:
            party = establish(
                own["party_id"], mesh[NAMES[i], NAMES[i - 1]], mesh[NAMES[i], NAMES[(i + 1) % 3]],
                own["session"], Deadline.after(seconds), ring=own["ring"],
            )  # fmt: skip
            results[i] = then(party)
        except (ProtocolError, DeadlineError, UsageError) as error:
            errors[i] = error

    threads = [threading.Thread(target=join, args=(i,), name=NAMES[i]) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results, errors


def test_three_parties_agree_on_keys_and_compute() -> None:
    shares = replicated.share(np.array([7], dtype=RING64.dtype), fresh_stream())

    def compute(party: Party) -> int:
        return int(reveal(party, multiply(party, shares[party.id], shares[party.id]))[0])

    results, errors = _establish_all(then=compute)

    assert errors == [None, None, None]
    assert results == [49, 49, 49]


def _stream_words(party: Party) -> dict[int, bytes]:
    return {other: party.stream_with(other).words(8).tobytes() for other in range(3) if other != party.id}


def test_threat_52_a_new_session_of_the_same_parties_has_new_streams() -> None:
    seen: list[bytes] = []
    for _ in range(5):
        (first, second, third), _errors = _establish_all(then=_stream_words)
        assert first[1] == second[0]
        assert first[2] == third[0]
        assert second[2] == third[1]
        seen += [first[1], first[2], second[2]]

    assert len(set(seen)) == 15


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"session": b"another"}, "another session"),
        ({"ring": RING32}, "expected ring"),
        ({"party_id": 0}, "place in the circle"),
    ],
)
def test_a_party_that_disagrees_is_named_and_no_key_is_made(changed: dict[str, Any], text: str) -> None:
    results, errors = _establish_all({1: changed}, seconds=0.3)

    assert results == [None, None, None]
    assert any(text in str(error) and "bob" in str(error) for error in errors)


def test_another_version_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        session._Hello, "to_bytes", lambda self: b"fedsec-mpc/9" + bytes(session._HELLO_BYTES - 12)
    )

    _results, errors = _establish_all(seconds=0.3)

    assert all("another version" in str(error) for error in errors)


def test_a_contribution_other_than_the_committed_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An end that could choose its contribution after seeing the other's could steer the key."""
    honest = session._both_ways

    def late_change(label: str, links: Any, payloads: Any, size: int, deadline: Deadline) -> Any:
        if label == "session/contribution" and links[0].me == "carol":
            payloads = [bytes(32) for _ in payloads]
        return honest(label, links, payloads, size, deadline)

    monkeypatch.setattr(session, "_both_ways", late_change)

    results, errors = _establish_all(seconds=0.3)

    assert results[:2] == [None, None]
    assert all("carol sent another contribution" in str(error) for error in errors[:2])


def _hello_of(party_id: int, contribution: bytes) -> bytes:
    digest = hashlib.sha256(b"s").digest()
    commitment = session._commitment(digest, party_id, contribution)
    return session._Hello(64, party_id, digest, commitment).to_bytes()


def test_no_contribution_leaves_before_both_commitments_are_here() -> None:
    """Bob commits, carol does not: alice opens her own commitment to neither."""
    mesh = memory_mesh(NAMES, record=True)
    mesh["bob", "alice"].send("session/hello", _hello_of(1, bytes(32)), Deadline.after(1))

    with pytest.raises(DeadlineError, match="carol"):
        establish(0, mesh["alice", "carol"], mesh["alice", "bob"], b"s", Deadline.after(0.1))

    for other in ("bob", "carol"):
        sent = [r.label for r in mesh["alice", other].meter.log if r.event == "send"]
        assert sent == ["session/hello"]


def _contributions(mesh: Mapping[tuple[str, str], Any]) -> list[bytes]:
    return [
        payload
        for channel in mesh.values()
        for label, payload in channel.received
        if label == "session/contribution"
    ]


def test_every_end_of_every_link_contributes_fresh_bytes_in_every_session() -> None:
    """One contribution for both neighbours would tell the third party half of a pair's secret."""
    contributions: list[bytes] = []
    for _ in range(3):
        mesh = memory_mesh(NAMES, record=True)
        _results, errors = _establish_all(mesh=mesh)
        assert errors == [None, None, None]
        contributions += _contributions(mesh)

    assert len(contributions) == 18
    assert len(set(contributions)) == 18


def test_a_secret_is_fresh_if_one_ends_generator_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alice's generator gives the same bytes again and again; the keys of her pairs do not repeat."""
    fresh = session.fresh_key
    monkeypatch.setattr(
        session, "fresh_key", lambda: bytes(32) if threading.current_thread().name == "alice" else fresh()
    )

    seen = [_establish_all(then=_stream_words)[0][0] for _ in range(2)]

    assert len({words for of_session in seen for words in of_session.values()}) == 4


def test_both_contributions_and_the_hellos_enter_the_key() -> None:
    ends = [(0, "a", b"\1" * 32, b"hello a"), (1, "b", b"\2" * 32, b"hello b")]
    variations = [
        ends,
        [(0, "a", b"\3" * 32, b"hello a"), ends[1]],
        [ends[0], (1, "b", b"\3" * 32, b"hello b")],
        [(0, "a", b"\1" * 32, b"other"), ends[1]],
        [(0, "ab", b"\1" * 32, b"hello a"), ends[1]],
    ]

    assert len({session._pair_secret(variation) for variation in variations}) == len(variations)


def test_a_commitment_belongs_to_one_session_and_sender() -> None:
    made = {session._commitment(d, i, b"\0" * 32) for d in (bytes(32), b"\1" * 32) for i in range(3)}

    assert len(made) == 6


def test_an_absent_party_ends_the_wait() -> None:
    mesh = memory_mesh(NAMES)

    with pytest.raises(DeadlineError):
        establish(0, mesh["alice", "carol"], mesh["alice", "bob"], b"s", Deadline.after(0.05), ring=Ring(64))


def test_a_party_id_out_of_range_is_refused_before_anything_is_sent() -> None:
    mesh = memory_mesh(NAMES, record=True)

    with pytest.raises(UsageError, match="id 0, 1 or 2, got 5"):
        establish(5, mesh["alice", "carol"], mesh["alice", "bob"], b"s", Deadline.after(1))
    assert mesh["alice", "bob"].meter.messages == 0
