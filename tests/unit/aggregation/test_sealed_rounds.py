"""What an announcement of a sealed round may say, the two-part commitment, which uploads are in the sum."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from aggregation_world import World

from fedsec.aggregation import plan_encoding
from fedsec.aggregation.agreement import IncludedSet, without_other_models
from fedsec.aggregation.announcement import Announcement
from fedsec.aggregation.messages import ExcludedUpload, ListEntry
from fedsec.aggregation.policy import Policy
from fedsec.aggregation.sealed.model import model_tag
from fedsec.aggregation.sealed.sum import (
    bind_sum,
    fresh_nonce,
    opened_words,
    sealed_part,
    server_part,
    server_part_bytes,
)
from fedsec.aggregation.sealed.terms import Sealed
from fedsec.errors import ProtocolError, TrustError


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as one:
        yield one


def sealed(world: World, part: dict[str, Any] | None = None, **fields: Any) -> Announcement:
    values: dict[str, Any] = {
        "parties": tuple(one.name for one in world.parties[:3]),
        "fraction_bits": 24,
        "base": 0,
        "keep_closed": False,
    }
    made = Sealed(**{**values, **(part or {})})
    encoding = plan_encoding(2 * world.hospital_count, 1.0, 1000, 10.0)
    return world.announcement(**{"reveal_to": "hospitals", "sealed": made, "encoding": encoding, **fields})


FAULTS: list[tuple[dict[str, Any] | None, dict[str, Any], str]] = [
    (None, {"reveal_to": "server"}, "the sealed part"),
    (None, {"reveal_to": "everybody"}, "none of server, hospitals, nobody"),
    (None, {"sealed": None}, "the sealed part"),
    ({"parties": ("agg-0", "agg-1")}, {}, "three computing parties"),
    ({"parties": ("agg-0", "agg-1", "agg-1")}, {}, "three computing parties"),
    ({"parties": ("agg-0", "agg-1", "other")}, {}, "three computing parties"),
    ({"fraction_bits": 7}, {}, "fraction bits"),
    ({"fraction_bits": 33}, {}, "fraction bits"),
    ({"base": 1}, {"round": 1}, "not an earlier one"),
    ({"base": 4}, {"round": 3, "phase": "evaluate"}, "not an earlier one"),
    ({"base": -1}, {}, "not an earlier one"),
    ({"keep_closed": True}, {}, "model for nobody"),
    ({"keep_closed": True}, {"reveal_to": "nobody", "phase": "evaluate"}, "model for nobody"),
    ({"serves": bytes(32)}, {}, "only a closed state is served"),
    ({"keep_closed": True, "serves": bytes(31)}, {"reveal_to": "nobody"}, "digest of its plan"),
    (None, {"encoding": plan_encoding(4, 1.0, 1000, 10.0)}, "twice the roster"),
    ({"fraction_bits": 32}, {"round": 2**30}, "do not fit the sealed words"),
]


@pytest.mark.parametrize(("part", "fields", "text"), FAULTS)
def test_an_announcement_that_is_not_consistent_is_refused(
    world: World, part: dict[str, Any] | None, fields: dict[str, Any], text: str
) -> None:
    sealed(world).check()
    with pytest.raises(ProtocolError, match=text):
        sealed(world, part, **fields).check()


def test_the_right_ones_pass(world: World) -> None:
    sealed(world, {"base": 2}, round=3).check()
    sealed(world, {"base": 3}, round=3, phase="evaluate").check()
    sealed(world, {"keep_closed": True, "serves": bytes(32)}, reveal_to="nobody").check()


def test_an_aggregator_admits_what_its_policy_says(world: World) -> None:
    announcement = sealed(world)
    signed = world.sign(announcement)
    fields = {name: getattr(world.policy, name) for name in Policy.__slots__}
    assert world.policy.check("agg-0", signed) == announcement
    for admitted in (("server",), ("nobody",)):
        with pytest.raises(TrustError, match="reveal_to 'hospitals'"):
            Policy(**{**fields, "reveal_to": admitted}).check("agg-0", signed)


def h(label: str, *fields: bytes) -> bytes:
    """The hash of docs/reference/wire-format.md."""
    framed = [b"fedsec/aggregation/1/" + label.encode(), *fields]
    return hashlib.sha256(b"".join(len(one).to_bytes(8, "big") + one for one in framed)).digest()


def test_the_commitment_has_two_parts_and_the_server_gets_one(world: World) -> None:
    announcement = sealed(world)
    layout, key = announcement.layout, announcement.id.key
    words = np.arange(1, layout.words + 1, dtype=np.uint32)
    nonce = fresh_nonce(announcement)
    bound = bind_sum(announcement, "agg-1", nonce, words.tobytes())

    hidden = words[: layout.update_words].tobytes() + words[layout.payload_words :].tobytes()
    metrics = words[layout.update_words : layout.payload_words].tobytes()
    digest = h("sealed update", key, b"agg-1", nonce[:32], hidden)
    assert bound == h(
        "sealed sum share", key, b"agg-1", digest, h("sealed metrics", key, b"agg-1", nonce[32:], metrics)
    )

    body = server_part(announcement, "agg-1", nonce + words.tobytes())
    assert body == nonce[32:] + digest + metrics
    assert len(body) == server_part_bytes(announcement)
    opened = opened_words(announcement, "agg-1", body, bound)
    np.testing.assert_array_equal(opened, words[layout.update_words : layout.payload_words])
    for at in range(len(body)):
        altered = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        with pytest.raises(ProtocolError, match="'agg-1' sent another"):
            opened_words(announcement, "agg-1", altered, bound)
    share, weight = sealed_part(announcement, nonce + words.tobytes())
    np.testing.assert_array_equal(share, words[: layout.update_words])
    assert weight == words[layout.update_words]


def test_one_nonce_for_both_parts_would_let_the_server_test_guesses(world: World) -> None:
    nonce = fresh_nonce(sealed(world))
    assert len(nonce) == 64
    assert nonce[:32] != nonce[32:]


def entry(name: str) -> ListEntry:
    return ListEntry(name, bytes(16), bytes(32), 0)


@pytest.mark.parametrize(
    ("tags", "left_out"),
    [
        ({"a": b"x", "b": b"x", "c": b"y"}, ["c"]),
        ({"a": b"y", "b": b"x", "c": b"x"}, ["a"]),
        ({"a": b"x", "b": b"y"}, ["b"]),
        ({"a": b"y", "b": b"x"}, ["a"]),
        ({"a": b"x", "b": b"x"}, []),
        ({}, []),
    ],
)
def test_the_most_common_model_counts(tags: dict[str, bytes], left_out: list[str]) -> None:
    names = sorted(tags) or ["a", "b"]
    found = IncludedSet([entry(name) for name in names], [ExcludedUpload("z", "missing")])

    result = without_other_models(found, tags)

    assert [one.hospital for one in result.included] == [name for name in names if name not in left_out]
    assert result.excluded == [*(ExcludedUpload(one, "other_model") for one in left_out), found.excluded[0]]


def test_a_models_tag_is_keyed_and_names_session_and_state(world: World) -> None:
    words = np.arange(5, dtype=np.uint64)
    base = sealed(world, {"base": 1}, round=2)
    tag = model_tag(b"s" * 32, base, words)
    others = [
        model_tag(b"t" * 32, base, words),
        model_tag(b"s" * 32, base, words + np.uint64(1)),
        model_tag(b"s" * 32, sealed(world, {"base": 2}, round=3), words),
        model_tag(b"s" * 32, msgspec.structs.replace(base, session=bytes(16)), words),
    ]
    assert len({tag, *others}) == 5
    assert model_tag(b"s" * 32, base, words.copy()) == tag
