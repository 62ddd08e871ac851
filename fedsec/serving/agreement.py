"""Which requests the three parties answer together: pure rules, no sockets, no clock of its own.

A request is (certificate fingerprint, request id). The leader proposes requests of which it holds a
part; every party judges each one for itself; a request enters the batch only if all three accept.
A verdict is *final* when time cannot change it, and *passing* when a later proposal may succeed.

A follower need not wait for the proposal: as soon as it holds requests that fit together it may cast its
ballot *ahead*, naming what it accepts. Every vote has one ballot of each party, cast ahead or after the
proposal. What is cast ahead goes to the leader, who passes it on with the proposal: usually both followers'
are there when it proposes, and everyone knows the batch after that one message.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple, Protocol

import msgspec

from fedsec.errors import ProtocolError
from fedsec.nn import Reveal
from fedsec.serving.messages import MAX_IMAGES, Entry

PARTIES = 3


class RequestKey(NamedTuple):
    """What names a request everywhere: whose certificate, and the id that its client drew."""

    fingerprint: bytes
    request: bytes


class Wish(NamedTuple):
    """What a request asks for: answers to how many images, and what of each answer is revealed."""

    images: int
    reveal: Reveal


class Verdict(enum.IntEnum):
    """A party's view of one entry; of several verdicts the largest counts."""

    ACCEPT = 0
    CROWDED = 1  # fits alone, not beside the entries before it in this proposal
    ABSENT = 2  # no part of it is here under this certificate, yet
    DIFFERS = 3  # a part is here, of another number of images or to reveal something else
    REPEATED = 4  # this id was charged before
    QUOTA = 5  # the certificate's quota has no room for it
    ENDED = 6  # the service has no room for it

    @property
    def final(self) -> bool:
        """Whether no later proposal can succeed."""
        return self >= Verdict.DIFFERS


class Ballot(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A party's verdict on each entry of the proposal in its order, or what it accepts, said ahead.

    What is said ahead is ``told`` to the other follower, too, if the leader has not had it in time lately.
    """

    verdicts: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=0, le=255)], ...], msgspec.Meta(max_length=MAX_IMAGES)
    ]
    leaving: bool = False
    ahead: Annotated[tuple[Entry, ...], msgspec.Meta(max_length=MAX_IMAGES)] | None = None
    told: bool = False


class Proposal(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Leader to the others: this could be the next batch, with its own ballot. Empty as a heartbeat.

    With it go the ballots that parties 1 and 2 have cast ahead. Without the leader's ballot nothing is voted
    on: all three prepare for that many images of answers that reveal this.
    """

    entries: Annotated[tuple[Entry, ...], msgspec.Meta(max_length=MAX_IMAGES)]
    ballot: Ballot | None
    prepare: Annotated[int, msgspec.Meta(ge=0, le=MAX_IMAGES)] = 0
    reveal: Reveal = "logits"
    ahead: tuple[Ballot | None, Ballot | None] = (None, None)


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


def judge(entries: Sequence[Entry], held: Mapping[RequestKey, Wish], book: Book) -> tuple[Verdict, ...]:
    """Judge every entry of a proposal, in order, so that all accepted ones fit together.

    Args:
        entries: the proposal.
        held: what each request asks of which this party has a part.
        book: the charges so far.

    Returns:
        One verdict an entry. An entry that is named twice is accepted at most once.
    """
    accepted = _Accepted()
    verdicts: list[Verdict] = []
    for entry in entries:
        verdict = _judge_beside(entry, held, book, accepted)
        if verdict is Verdict.ACCEPT:
            accepted.add(entry)
        verdicts.append(verdict)
    return tuple(verdicts)


@dataclass(slots=True)
class _Accepted:
    """The entries of a proposal that were accepted so far."""

    keys: set[RequestKey] = field(default_factory=set)
    images: int = 0
    images_of: dict[bytes, int] = field(default_factory=dict)

    def add(self, entry: Entry) -> None:
        """Count one more."""
        self.keys.add(key_of(entry))
        self.images += entry.images
        self.images_of[entry.fingerprint] = self.images_of.get(entry.fingerprint, 0) + entry.images


def _judge_beside(entry: Entry, held: Mapping[RequestKey, Wish], book: Book, accepted: _Accepted) -> Verdict:
    """Judge one entry given those accepted before it."""
    key = key_of(entry)
    if key in accepted.keys:
        return Verdict.CROWDED
    if key not in held:
        return Verdict.ABSENT
    if held[key] != (entry.images, entry.reveal):
        return Verdict.DIFFERS
    alone = judge_alone(key, entry.images, book)
    if alone is not Verdict.ACCEPT:
        return alone
    of_user = accepted.images_of.get(key.fingerprint, 0)
    crowded = _exceeds(accepted.images + entry.images, book.left())
    crowded = crowded or _exceeds(of_user + entry.images, book.left_for(key.fingerprint))
    return Verdict.CROWDED if crowded else Verdict.ACCEPT


def _exceeds(images: int, limit: int | None) -> bool:
    """Whether the images are more than a limit, where None is no limit."""
    return limit is not None and images > limit


def fits_ahead(held: Mapping[RequestKey, Wish], book: Book) -> tuple[Entry, ...] | None:
    """Return a ballot to cast ahead: everything held, if all of it can be accepted together.

    Whatever part of it is proposed then fits, too, in any order. None if something does not fit: then the
    order of the proposal decides, which is not known yet.
    """
    if len(held) > MAX_IMAGES:
        return None
    entries = tuple(Entry(*key, *wish) for key, wish in held.items())
    verdicts = judge(entries, held, book)
    return entries if all(verdict is Verdict.ACCEPT for verdict in verdicts) else None


def read_ballot(ballot: Ballot, entries: Sequence[Entry]) -> tuple[Verdict, ...]:
    """Return a party's verdicts on a proposal.

    Raises:
        ProtocolError: the ballot has another length, or an unknown verdict.
    """
    if ballot.ahead is None:
        try:
            verdicts = tuple(Verdict(verdict) for verdict in ballot.verdicts)
        except ValueError:
            verdicts = ()
        if len(verdicts) != len(entries) or len(ballot.verdicts) != len(entries):
            raise ProtocolError(
                f"expected a ballot of {len(entries)} known verdicts, got one of {len(ballot.verdicts)}: "
                "the service ends"
            )
        return verdicts
    accepted = {key_of(entry): entry for entry in ballot.ahead}
    read = []
    for entry in entries:
        same = accepted.get(key_of(entry))
        read.append(Verdict.ABSENT if same is None else Verdict.ACCEPT if same == entry else Verdict.DIFFERS)
    return tuple(read)


def combine(ballots: Sequence[Ballot], entries: Sequence[Entry]) -> tuple[Verdict, ...]:
    """Join the ballots of all parties: accepted only where everyone accepts.

    Of an entry that is named twice the first counts, and all that are accepted reveal the same: the parties
    compute one thing at a time.

    Raises:
        ProtocolError: a ballot has another length or an unknown verdict.
    """
    columns = zip(*(read_ballot(ballot, entries) for ballot in ballots), strict=True)
    verdicts: list[Verdict] = []
    taken: set[RequestKey] = set()
    reveals: set[Reveal] = set()
    for entry, column in zip(entries, columns, strict=True):
        verdict = max(column)
        if verdict is Verdict.ACCEPT:
            if key_of(entry) in taken or reveals - {entry.reveal}:
                verdict = Verdict.CROWDED
            else:
                taken.add(key_of(entry))
                reveals.add(entry.reveal)
        verdicts.append(verdict)
    return tuple(verdicts)


@dataclass(slots=True)
class Proposer:
    """The leader's choice of what to propose: longest due first, resting what was not ready.

    What both followers accept ahead is proposed at once. A request on which they have not said anything
    waits ``first_rest_s`` for that. What was put off rests for 1 ms, then twice as long every time up to
    50 ms: a client that sends to one party only costs the others a few bytes, never a wait. Nor does it come
    before the others again and again: what was put off has its turn behind all that were due before it is.
    """

    batch_images: int
    first_rest_s: float = 0.001
    longest_rest_s: float = 0.05
    _seen: dict[RequestKey, float] = field(default_factory=dict)
    _rests: dict[RequestKey, tuple[float, float]] = field(default_factory=dict)  # key -> (until, length)

    def choose(
        self, held: Mapping[RequestKey, Wish], now: float, ahead: Sequence[AbstractSet[Entry]] = ()
    ) -> tuple[Entry, ...]:
        """Return the next proposal: at most ``batch_images`` images, all of one kind; empty if all rest.

        Args:
            held: what each request held here asks for, oldest first.
            now: a clock that never runs back, in seconds.
            ahead: what each follower accepts that has cast its ballot ahead.
        """
        self._forget(held)
        for key in held:
            self._seen.setdefault(key, now)
        chosen: list[Entry] = []
        room = self.batch_images
        for key, wish in sorted(held.items(), key=lambda item: self._turn(item[0])):
            entry = Entry(*key, *wish)
            same = not chosen or chosen[0].reveal == wish.reveal
            if same and wish.images <= room and self._due(entry, now, ahead) <= now:
                chosen.append(entry)
                room -= wish.images
        return tuple(chosen)

    def _forget(self, held: Mapping[RequestKey, Wish]) -> None:
        """Forget what is gone."""
        for kept in (self._seen, self._rests):
            for key in [key for key in kept if key not in held]:
                kept.pop(key)

    def _turn(self, key: RequestKey) -> float:
        """Return since when, or from when on, it is a request's turn."""
        return self._rests[key][0] if key in self._rests else self._seen[key]

    def _due(self, entry: Entry, now: float, ahead: Sequence[AbstractSet[Entry]]) -> float:
        """Return when an entry may be proposed."""
        known = [entry in accepted for accepted in ahead]
        if all(known) and len(known) == PARTIES - 1:
            return now
        key = key_of(entry)
        if key in self._rests:
            return self._rests[key][0]
        if not all(known):
            # That ballot is cast: only another vote, which a proposal begins, can bring another one.
            return now
        return self._seen.setdefault(key, now) + self.first_rest_s

    def settle(self, entries: Sequence[Entry], verdicts: Sequence[Verdict], now: float) -> None:
        """Take note of a decision: what was put off rests before it is proposed again."""
        for entry, verdict in zip(entries, verdicts, strict=True):
            if verdict is Verdict.ACCEPT or verdict.final:
                continue
            last = self._rests.get(key_of(entry), (0.0, self.first_rest_s / 2))[1]
            length = min(2 * last, self.longest_rest_s)
            self._rests[key_of(entry)] = (now + length, length)

    def idle(self, held: Mapping[RequestKey, Wish]) -> bool:
        """Whether nothing held is likely to be answered soon: all was put off again and again."""
        return all(self._rests.get(key, (0.0, 0.0))[1] >= self.longest_rest_s for key in held)

    def next_due(
        self, held: Mapping[RequestKey, Wish], now: float, ahead: Sequence[AbstractSet[Entry]] = ()
    ) -> float | None:
        """Seconds until something held can be proposed; None if nothing is held."""
        waits = [max(0.0, self._due(Entry(*key, *wish), now, ahead) - now) for key, wish in held.items()]
        return min(waits, default=None)
