"""The round announcement: everything a round depends on, in one canonical, signed byte string.

Its digest is in every upload. A server that sends two hospitals different models or learning rates needs
two announcements; no aggregator takes both, and the two signatures prove what it did.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from fedsec.aggregation.noise.terms import noise_faults
from fedsec.aggregation.planner import ArraySpec, Encoding, Layout, MetricSpec
from fedsec.aggregation.sealed.terms import Sealed, sealed_faults
from fedsec.aggregation.signing import DIGEST_BYTES, PUBLIC_KEY_BYTES, Signer, digest, sign
from fedsec.errors import ProtocolError, UsageError
from fedsec.transport.decoding import MALFORMED, decode_as

ANNOUNCEMENT_VERSION = 1
SESSION_BYTES = 16
FEWEST_AGGREGATORS, MOST_AGGREGATORS = 2, 7
SMALLEST_COHORT = 2
MOST_WORDS = 2**28
"""The largest vector: 1 GiB in 32 bits. Checked before anything is allocated."""
MOST_ROUNDS = 2**32 - 1
SIGNATURE_LABEL = "announcement"

Phase = Literal["train", "evaluate"]
ConfigValue = bool | int | float | str | bytes | Sequence[Any]


class RoundId(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One aggregation: a session (one run of a ServerApp), a round in it and what is summed."""

    session: bytes
    round: int
    phase: Phase

    @property
    def key(self) -> bytes:
        """21 bytes that name the round in hashes, tables and file names."""
        return self.session + self.round.to_bytes(4, "big") + self.phase[:1].encode()

    @property
    def position(self) -> int:
        """The place in the session: a round trains first, then evaluates."""
        return 2 * self.round + (self.phase == "evaluate")

    def __str__(self) -> str:
        """Return a text for error messages and logs."""
        return f"round {self.round} ({self.phase}) of session {self.session.hex()[:8]}"


class Member(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A participant by name and raw Ed25519 public key."""

    name: str
    public_key: bytes


class Announcement(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, dict=True):
    """One round as the Flower server signs it. Lists are in canonical (sorted by name) order.

    What takes time that grows with the roster is found once and kept.
    """

    version: int
    session: bytes
    round: int
    phase: Phase
    roster: tuple[Member, ...]
    aggregators: tuple[Member, ...]
    vector_rule: Literal["rotate"]
    reveal_to: str
    recipient: Member
    arrays: tuple[ArraySpec, ...]
    array_digests: tuple[bytes, ...]
    config: tuple[tuple[str, bytes], ...]
    metrics: tuple[MetricSpec, ...]
    encoding: Encoding
    minimum_cohort: int
    upload_seconds: float
    sealed: Sealed | None = None

    @property
    def id(self) -> RoundId:
        """The round this announces."""
        return RoundId(self.session, self.round, self.phase)

    @property
    def layout(self) -> Layout:
        """The shared vector: with the model's arrays when training, without when evaluating."""
        return Layout(self.encoding, self.arrays if self.phase == "train" else (), self.metrics)

    def encode(self) -> bytes:
        """Return the canonical bytes that are signed and hashed."""
        return msgspec.msgpack.encode(self)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the canonical bytes under a label; it is in every upload."""
        return announcement_digest(self.encode())

    def public_key_of(self, hospital: str) -> bytes:
        """Return the hospital's key in the roster.

        Raises:
            ProtocolError: The hospital is not in this round.
        """
        if (place := self._places.get(hospital)) is not None:
            return self.roster[place].public_key
        msg = f"hospital '{hospital}' is not in the roster of {self.id}"
        raise ProtocolError(msg)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {member.name: place for place, member in enumerate(self.roster)}

    def vector_holder(self, hospital: str) -> str:
        """Return the aggregator that gets this hospital's full vector; the others get seeds."""
        return self.aggregators[(self._places[hospital] + self.round) % len(self.aggregators)].name

    def vector_hospitals(self, aggregator: str) -> frozenset[str]:
        """Return the hospitals whose full vector goes to this aggregator."""
        turn = [member.name for member in self.aggregators].index(aggregator)
        places = enumerate(self.roster, start=self.round)
        return frozenset(one.name for place, one in places if place % len(self.aggregators) == turn)

    def check(self) -> None:
        """Check that the announcement is consistent in itself.

        Raises:
            ProtocolError: A field has a wrong size, order or value.
            RangeError: The encoding does not fit its ring.
        """
        self.encoding.check()
        _check_members("aggregator", self.aggregators)
        _check_members("hospital", self.roster)
        for wrong, text in self._faults():
            if wrong:
                msg = f"the announcement is not valid: {text}"
                raise ProtocolError(msg)

    def _faults(self) -> list[tuple[bool, str]]:
        digests = len(self.array_digests) == len(self.arrays)
        digests = digests and all(len(one) == DIGEST_BYTES for one in self.array_digests)
        names = [key for key, _ in self.config]
        metric_names = [metric.name for metric in self.metrics]
        array_names = [spec.name for spec in self.arrays]
        return [
            *sealed_faults(self),
            *noise_faults(self),
            (
                self.version != ANNOUNCEMENT_VERSION,
                f"version {self.version}, expected {ANNOUNCEMENT_VERSION}",
            ),
            (len(self.session) != SESSION_BYTES, "a session id has 16 bytes"),
            (not 0 <= self.round <= MOST_ROUNDS, "the round number is out of range"),
            (
                not FEWEST_AGGREGATORS <= len(self.aggregators) <= MOST_AGGREGATORS,
                f"{len(self.aggregators)} aggregators, 2 to 7 are supported",
            ),
            (self.minimum_cohort < SMALLEST_COHORT, "a cohort below 2 would open one hospital's update"),
            (len(self.roster) < self.minimum_cohort, "the roster is smaller than the minimum cohort"),
            (len(self.roster) > self.encoding.hospitals, "the encoding is planned for fewer hospitals"),
            (len(self.recipient.public_key) != PUBLIC_KEY_BYTES, "the recipient's key has no 32 bytes"),
            (not digests, "one SHA-256 digest an array is required"),
            (names != sorted(set(names)), "config keys are not sorted or not unique"),
            (metric_names != sorted(set(metric_names)), "metrics are not sorted or not unique"),
            (len(set(array_names)) != len(array_names), "two arrays have one name"),
            (
                any(not _is_range(m.low, m.high) for m in self.metrics),
                "a metric's range is empty or not finite",
            ),
            (any(not 0 < s.clip <= self.encoding.clip for s in self.arrays), "a clip exceeds the encoding's"),
            (any(size < 0 for s in self.arrays for size in s.shape), "a shape is negative"),
            (self.layout.words > MOST_WORDS, f"more than {MOST_WORDS} words"),
            (not 0 < self.upload_seconds < math.inf, "upload_seconds must be positive"),
        ]


def decode_announcement(payload: bytes) -> Announcement:
    """Decode and check an announcement; only the canonical encoding is taken.

    Raises:
        ProtocolError: The bytes are no valid announcement.
        RangeError: Its encoding does not fit the ring.
    """
    announcement = decode_accepted(payload)
    if announcement.encode() != payload:
        msg = "the announcement is not in its canonical encoding"
        raise ProtocolError(msg)
    # They are its canonical bytes: encoding it once more, for the digest, would give them again.
    vars(announcement)["digest"] = announcement_digest(payload)
    announcement.check()
    return announcement


def decode_accepted(payload: bytes) -> Announcement:
    """Decode an announcement that was checked before it was stored here, and is not checked again.

    Raises:
        ProtocolError: The bytes are no announcement.
    """
    try:
        return decode_as(payload, Announcement)
    except MALFORMED as error:
        msg = f"the bytes are no announcement of version {ANNOUNCEMENT_VERSION}: {error}"
        raise ProtocolError(msg) from None


def announcement_digest(payload: bytes) -> bytes:
    """Return the digest of an announcement's canonical bytes."""
    return digest("announcement", payload)


def sign_announcement(announcement: Announcement, server: Signer) -> bytes:
    """Return the server's signature of a checked announcement.

    Raises:
        ProtocolError: The announcement is not consistent in itself.
    """
    announcement.check()
    return sign(server, SIGNATURE_LABEL, announcement.encode())


def array_digest(array: npt.NDArray[Any]) -> bytes:
    """Return SHA-256 of the array's bytes, little-endian, in C order."""
    contiguous = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return hashlib.sha256(contiguous.reshape(-1).view(np.uint8).data).digest()


def encode_config(config: Mapping[str, ConfigValue]) -> tuple[tuple[str, bytes], ...]:
    """Return the config items in canonical form: sorted by key, values with their types.

    Raises:
        UsageError: A value is none of bool, int, float, str, bytes or a list of those.
    """
    items = []
    for key in sorted(config):
        value = config[key]
        entries = list(value) if isinstance(value, list | tuple) else [value]
        if any(type(entry) not in {bool, int, float, str, bytes} for entry in entries):
            kind = type(value).__name__
            msg = f"config key '{key}' is a {kind}; bool, int, float, str, bytes or lists of them travel"
            raise UsageError(msg)
        items.append((key, msgspec.msgpack.encode(list(value) if isinstance(value, list | tuple) else value)))
    return tuple(items)


def members(keys: Mapping[str, bytes]) -> tuple[Member, ...]:
    """Return members in canonical order from a mapping of names to public keys."""
    return tuple(Member(name, keys[name]) for name in sorted(keys))


def _check_members(what: str, group: Sequence[Member]) -> None:
    names = [member.name for member in group]
    keys = {member.public_key for member in group}
    if not all(map(operator.lt, names, names[1:])):
        msg = f"the announcement is not valid: {what} names are not sorted or not unique"
        raise ProtocolError(msg)
    if len(keys) != len(names) or not set(map(len, keys)) <= {PUBLIC_KEY_BYTES}:
        msg = f"the announcement is not valid: two {what}s share one key, or a key has no 32 bytes"
        raise ProtocolError(msg)


def _is_range(low: float, high: float) -> bool:
    return math.isfinite(low) and math.isfinite(high) and low < high
