"""Which requests the three parties answer together: pure rules, no sockets, no clock of its own.

A request is (certificate fingerprint, request id). The leader proposes requests of which it holds a
part; every party judges each one for itself; a request enters the batch only if all three accept.
A verdict is *final* when time cannot change it, and *passing* when a later proposal may succeed.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from fedsec.errors import FedsecError, ProtocolError, ServiceEndedError, TrustError
from fedsec.serving.messages import Entry


class RequestKey(NamedTuple):
    """What names a request everywhere: whose certificate, and the id that its client drew."""

    fingerprint: bytes
    request: bytes


class Verdict(enum.IntEnum):
    """A party's view of one entry; of several verdicts the largest counts."""

    ACCEPT = 0
    CROWDED = 1  # fits alone, not beside the entries before it in this proposal
    ABSENT = 2  # no part of it is here under this certificate, yet
    DIFFERS = 3  # a part is here, of another number of images
    REPEATED = 4  # this id was charged before
    QUOTA = 5  # the certificate's quota has no room for it
    ENDED = 6  # the service has no room for it

    @property
    def final(self) -> bool:
        """Whether no later proposal can succeed."""
        return self >= Verdict.DIFFERS


class Book(Protocol):
    """What the rules need to know of the charges so far."""

    def used(self, key: RequestKey) -> bool:
        """Whether this request was charged before, also by an earlier run of this party."""
        ...

    def left(self) -> int | None:
        """Images that the service may still answer; None means no limit."""
        ...

    def left_for(self, fingerprint: bytes) -> int | None:
        """Images that this certificate may still ask for; None means no limit."""
        ...


@dataclass(frozen=True, slots=True)
class Glance:
    """A book's limits, read once for many requests. What waits was not charged: that is not asked again.

    Attributes:
        left_now: images that the service may still answer.
        left_for: images that a certificate may still ask for.
    """

    left_now: int | None
    left_for: Callable[[bytes], int | None]

    def used(self, _key: RequestKey) -> bool:
        """No: a request is charged and leaves the room in one step."""
        return False

    def left(self) -> int | None:
        """Images that the service may still answer; None means no limit."""
        return self.left_now


def key_of(entry: Entry) -> RequestKey:
    """Return the key of a proposed entry."""
    return RequestKey(entry.fingerprint, entry.request)


def judge_alone(key: RequestKey, images: int, book: Book) -> Verdict:
    """Judge a request by the charges alone, as if it were the only one."""
    left, left_for = book.left(), book.left_for(key.fingerprint)
    if book.used(key):
        return Verdict.REPEATED
    if left is not None and images > left:
        return Verdict.ENDED
    if left_for is not None and images > left_for:
        return Verdict.QUOTA
    return Verdict.ACCEPT


def judge(entries: Sequence[Entry], held: Mapping[RequestKey, int], book: Book) -> tuple[Verdict, ...]:
    """Judge every entry of a proposal, in order, so that all accepted ones fit together.

    Args:
        entries: the proposal.
        held: images of each request of which this party has a part.
        book: the charges so far.

    Returns:
        One verdict an entry. An entry that is named twice is accepted at most once.
    """
    verdicts: list[Verdict] = []
    accepted: dict[RequestKey, int] = {}
    for entry in entries:
        verdict = _judge_beside(entry, held, book, accepted)
        if verdict is Verdict.ACCEPT:
            accepted[key_of(entry)] = entry.images
        verdicts.append(verdict)
    return tuple(verdicts)


def _judge_beside(
    entry: Entry, held: Mapping[RequestKey, int], book: Book, accepted: Mapping[RequestKey, int]
) -> Verdict:
    """Judge one entry given those accepted before it."""
    key = key_of(entry)
    if key in accepted:
        return Verdict.CROWDED
    if key not in held:
        return Verdict.ABSENT
    if held[key] != entry.images:
        return Verdict.DIFFERS
    alone = judge_alone(key, entry.images, book)
    if alone is not Verdict.ACCEPT:
        return alone
    of_all = sum(accepted.values())
    of_user = sum(images for other, images in accepted.items() if other.fingerprint == key.fingerprint)
    crowded = _exceeds(of_all + entry.images, book.left())
    crowded = crowded or _exceeds(of_user + entry.images, book.left_for(key.fingerprint))
    return Verdict.CROWDED if crowded else Verdict.ACCEPT


def _exceeds(images: int, limit: int | None) -> bool:
    """Whether the images are more than a limit, where None is no limit."""
    return limit is not None and images > limit


def combine(ballots: Sequence[Sequence[int]], entries: int) -> tuple[Verdict, ...]:
    """Join the ballots of all parties: accepted only where everyone accepts.

    Args:
        ballots: one sequence of verdicts a party.
        entries: how many entries were proposed.

    Raises:
        ProtocolError: a ballot has another length or an unknown verdict.
    """
    known = set(Verdict)
    for ballot in ballots:
        if len(ballot) != entries or any(verdict not in known for verdict in ballot):
            raise ProtocolError(
                f"expected a ballot of {entries} known verdicts, got one of {len(ballot)}: the service ends"
            )
    return tuple(Verdict(max(column)) for column in zip(*ballots, strict=True))


def refusal(verdict: Verdict, images: int, book: Book, fingerprint: bytes) -> FedsecError:
    """Return the error that the sender of a finally refused request gets."""
    if verdict is Verdict.DIFFERS:
        return ProtocolError("the parties got parts of different numbers of images; nothing was charged")
    if verdict is Verdict.REPEATED:
        return ProtocolError("this request id was used before: draw a fresh one for every request")
    if verdict is Verdict.QUOTA:
        return TrustError(
            f"this certificate may ask for {book.left_for(fingerprint)} more images of this model, "
            f"the request has {images}; nothing was charged"
        )
    return ServiceEndedError(
        f"the service answers {book.left()} more images, the request has {images}; nothing was charged"
    )


@dataclass(slots=True)
class Proposer:
    """The leader's choice of what to propose: oldest first, resting what was not ready.

    A request that lacks a part elsewhere rests for 1 ms, then twice as long every time up to 50 ms:
    a client that sends to one party only costs the others a few bytes, never a wait.
    """

    batch_images: int
    first_rest_s: float = 0.001
    longest_rest_s: float = 0.05
    _rests: dict[RequestKey, tuple[float, float]] = field(default_factory=dict)  # key -> (until, length)

    def choose(self, held: Mapping[RequestKey, int], now: float) -> tuple[Entry, ...]:
        """Return the next proposal of at most ``batch_images`` images; empty if all rest.

        Args:
            held: images of each request held here, oldest first.
            now: a clock that never runs back, in seconds.
        """
        self._rests = {key: rest for key, rest in self._rests.items() if key in held}
        chosen: list[Entry] = []
        room = self.batch_images
        for key, images in held.items():
            resting = key in self._rests and self._rests[key][0] > now
            if not resting and images <= room:
                chosen.append(Entry(key.fingerprint, key.request, images))
                room -= images
        return tuple(chosen)

    def settle(self, entries: Sequence[Entry], verdicts: Sequence[Verdict], now: float) -> None:
        """Take note of a decision: what was put off rests before it is proposed again."""
        for entry, verdict in zip(entries, verdicts, strict=True):
            if verdict is Verdict.ACCEPT or verdict.final:
                continue
            last = self._rests.get(key_of(entry), (0.0, self.first_rest_s / 2))[1]
            length = min(2 * last, self.longest_rest_s)
            self._rests[key_of(entry)] = (now + length, length)

    def next_due(self, held: Mapping[RequestKey, int], now: float) -> float | None:
        """Seconds until something held can be proposed; None if nothing is held."""
        waits = [max(0.0, self._rests[key][0] - now) if key in self._rests else 0.0 for key in held]
        return min(waits, default=None)
