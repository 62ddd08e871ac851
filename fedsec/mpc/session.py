"""Session keys: fresh pairwise secrets from a contribution of each end, committed to before either is known.

Each party sends each neighbour a hello (version, ring, its id, the session, a commitment to a fresh 32-byte
contribution) and opens the commitment only when it has the neighbour's hello. The pair's secret is
HKDF-SHA256 over both contributions under the hash of both hellos and both names, and every purpose gets a key
of its own from it. Nothing of this is ever stored, so a new session, also after a crash or a lost link, has
new streams (threat 52).

Security: the links are mutually authenticated and confidential (TLS 1.3), so the third party learns no
contribution. The commitments keep an end from choosing its contribution after seeing the other's: the secret
is fresh if one end's generator is. Two ends that disagree on version, ring, session or place in the circle
stop here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from fedsec.errors import ProtocolError, UsageError
from fedsec.mpc.party import DEFAULT_WAIT_S, PairStreams, Party, pair_streams
from fedsec.ring import KEY_BYTES, RING64, Ring, derive_key, fresh_key
from fedsec.sharing.replicated import PARTIES
from fedsec.transport import Channel, Deadline, exchange

_VERSION = b"fedsec-mpc/1"
_DIGEST_BYTES = hashlib.sha256().digest_size
_HELLO_BYTES = len(_VERSION) + 2 + 2 * _DIGEST_BYTES


@dataclass(frozen=True, slots=True)
class _Hello:
    ring_bits: int
    party_id: int
    session_digest: bytes
    commitment: bytes

    def to_bytes(self) -> bytes:
        return _VERSION + bytes([self.ring_bits, self.party_id]) + self.session_digest + self.commitment

    @classmethod
    def from_bytes(cls, data: bytes, sender: str) -> _Hello:
        version, rest = data[: len(_VERSION)], data[len(_VERSION) :]
        if version != _VERSION:
            raise ProtocolError(
                f"{sender} speaks another version of the computing session than {_VERSION.decode()}; "
                "install the same fedsec at all three parties"
            )
        return cls(rest[0], rest[1], rest[2 : 2 + _DIGEST_BYTES], rest[2 + _DIGEST_BYTES :])


def establish(
    party_id: int,
    previous: Channel,
    following: Channel,
    session: bytes,
    deadline: Deadline,
    *,
    ring: Ring = RING64,
    wait_s: float = DEFAULT_WAIT_S,
) -> Party:
    """Agree on fresh pairwise keys with both neighbours and join a session; all three parties call it.

    Args:
        party_id: This party's id, 0, 1 or 2.
        previous: Link to party id - 1, authenticated.
        following: Link to party id + 1, authenticated.
        session: Name of the session that all three agreed on, e.g. a nonce of the owner.
        deadline: When to give up.
        ring: Ring of the session.
        wait_s: Longest wait for one message during the session, in seconds.

    Returns:
        This party, ready to compute.

    Raises:
        UsageError: The party id is not 0, 1 or 2.
        ProtocolError: A neighbour's hello names another version, ring, session or id, or its contribution is
            not the one it committed to. No key exists; nothing secret but a contribution that is never used
            was sent.
        PeerLostError, DeadlineError: A named neighbour closed or was silent.
    """
    if party_id not in range(PARTIES):
        raise UsageError(f"a computing party has id 0, 1 or 2, got {party_id}")
    links = [previous, following]
    ids = [(party_id - 1) % PARTIES, (party_id + 1) % PARTIES]
    mine = [fresh_key() for _ in links]
    digest = hashlib.sha256(session).digest()
    hellos = [
        _Hello(ring.bits, party_id, digest, _commitment(digest, party_id, contribution))
        for contribution in mine
    ]

    # Commitments first, contributions only once both commitments are here.
    received = _both_ways(
        "session/hello", links, [hello.to_bytes() for hello in hellos], _HELLO_BYTES, deadline
    )
    theirs = [
        _Hello.from_bytes(bytes(data), link.peer.name) for data, link in zip(received, links, strict=True)
    ]
    for hello, other_id, link in zip(theirs, ids, links, strict=True):
        _check_hello(hello, _Hello(ring.bits, other_id, digest, b""), link.peer.name)
    contributions = _both_ways("session/contribution", links, mine, KEY_BYTES, deadline)

    streams: list[PairStreams] = []
    for i, link in enumerate(links):
        if theirs[i].commitment != _commitment(digest, ids[i], bytes(contributions[i])):
            raise ProtocolError(
                f"{link.peer.name} sent another contribution than it committed to; no key was made"
            )
        ends = sorted(
            [
                (party_id, link.me, mine[i], hellos[i].to_bytes()),
                (ids[i], link.peer.name, bytes(contributions[i]), theirs[i].to_bytes()),
            ]
        )
        streams.append(pair_streams(_pair_secret(ends)))
    return Party(
        party_id, previous=previous, following=following,
        previous_streams=streams[0], following_streams=streams[1], ring=ring, wait_s=wait_s,
    )  # fmt: skip


def _both_ways(
    label: str, links: Sequence[Channel], payloads: Sequence[bytes], size: int, deadline: Deadline
) -> list[bytearray]:
    sends = [(link, label, payload) for link, payload in zip(links, payloads, strict=True)]
    return exchange(sends, [(link, label, size) for link in links], deadline)


def _commitment(session_digest: bytes, sender_id: int, contribution: bytes) -> bytes:
    return hashlib.sha256(
        b"fedsec/v1/mpc contribution\0" + session_digest + bytes([sender_id]) + contribution
    ).digest()


def _check_hello(hello: _Hello, expected: _Hello, sender: str) -> None:
    for field, what in (("ring_bits", "ring"), ("party_id", "place in the circle")):
        came, wanted = getattr(hello, field), getattr(expected, field)
        if came != wanted:
            raise ProtocolError(
                f"expected {what} {wanted} of {sender}, its hello says {came}; no key was made"
            )
    if hello.session_digest != expected.session_digest:
        raise ProtocolError(f"{sender} joined another session than this party; no key was made")


def _pair_secret(ends: Sequence[tuple[int, str, bytes, bytes]]) -> bytes:
    """Derive the secret of a pair from (id, name, contribution, hello) of both ends, the lower id first."""
    context = hashlib.sha256()
    for _id, name, _contribution, hello in ends:
        encoded = name.encode()
        context.update(len(encoded).to_bytes(4, "little") + encoded + hello)
    contributions = b"".join(contribution for _id, _name, contribution, _hello in ends)
    return derive_key(contributions, purpose="mpc/pair secret", context=context.digest())
