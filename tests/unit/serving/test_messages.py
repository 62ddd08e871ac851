"""Messages: what is too long, unknown or of another type is refused while decoding."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.errors import FedsecError
from fedsec.serving import agreement, messages, table, weights
from fedsec.transport.decoding import MALFORMED

ALL = [
    value
    for value in vars(messages).values()
    if isinstance(value, type) and issubclass(value, messages.Message) and value is not messages.Message
]


def test_every_message_has_a_tag_of_its_own() -> None:
    tags = [message.__struct_config__.tag for message in ALL]
    assert len(set(tags)) == len(tags)
    assert all(isinstance(tag, str) for tag in tags)


@pytest.mark.parametrize("message", ALL, ids=lambda message: message.__name__)
def test_threat_38_unknown_fields_are_refused(message: type[msgspec.Struct]) -> None:
    payload = msgspec.msgpack.encode({"type": message.__struct_config__.tag, "surprise": 1})
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(payload, type=message)


@pytest.mark.parametrize(
    "change",
    [
        {"images": 0},
        {"images": messages.MAX_IMAGES + 1},
        {"images": True},
        {"request": b"r" * 15},
        {"request": b"r" * 17},
        {"service": "s" * 16},
    ],
)
def test_threat_34_values_outside_their_range_are_refused(change: dict[str, object]) -> None:
    good: dict[str, object] = {"type": "query", "service": b"s" * 16, "request": b"r" * 16, "images": 1}
    msgspec.msgpack.decode(msgspec.msgpack.encode(good), type=messages.Query)
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(good | change), type=messages.Query)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_threat_38_random_bytes_raise_one_kind_of_error(data: bytes) -> None:
    for message in (messages.Query, agreement.Proposal, agreement.Ballot, messages.ShareModel):
        try:
            msgspec.msgpack.decode(data, type=message)
        except MALFORMED:
            continue


@pytest.mark.parametrize(
    "data", [bytes.fromhex("81ab") + bytes(10) + b"\x80", b"\x81\xa3\xff\xfe\xfd\x00", b"\x91" * 100_000]
)
def test_threat_38_what_msgspec_lets_through_is_caught(data: bytes) -> None:
    with pytest.raises(MALFORMED):
        msgspec.msgpack.decode(data, type=messages.Query)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_a_plan_of_random_bytes_is_refused(data: bytes) -> None:
    with pytest.raises(FedsecError):
        weights.plan_from_wire(data, hashlib.sha256(data).digest())


def test_threat_38_a_deeply_nested_plan_is_refused() -> None:
    data = b'{"layers":[{"x":' + b"[" * 100_000
    with pytest.raises(FedsecError, match="nested too deeply"):
        weights.plan_from_wire(data, hashlib.sha256(data).digest())


def test_a_plan_with_another_digest_or_encoding_is_refused(model: tuple) -> None:
    text, digest = weights.plan_to_wire(model[0])
    assert weights.plan_from_wire(text, digest) == model[0]
    with pytest.raises(FedsecError, match="digest"):
        weights.plan_from_wire(text, bytes(32))
    spaced = text.replace(b",", b", ", 1)
    with pytest.raises(FedsecError, match="canonical"):
        weights.plan_from_wire(spaced, hashlib.sha256(spaced).digest())


def test_the_largest_proposal_fits_its_limit() -> None:
    entries = tuple(messages.Entry(b"f" * 32, b"r" * 16, 1) for _ in range(messages.MAX_IMAGES))
    ahead = agreement.Ballot((), True, entries)
    ballot = agreement.Ballot((6,) * messages.MAX_IMAGES, True)
    proposal = agreement.Proposal(entries, ballot, ahead=(ahead, ahead))
    assert len(msgspec.msgpack.encode(proposal)) <= table.STEP_BYTES
