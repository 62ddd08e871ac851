"""Sealed rounds at one aggregator: reshare an agreed sum, compute the new state with two others, keep it.

::

    agreed --> every aggregator splits its sum share for the three computing parties
           --> the three open a session of their own and compute the next state
           --> stored durably as "stored", or "failed": then the update is thrown away by the server

A round is tried once. Whatever goes wrong (a party that is lost, a deadline, a restart) makes it fail, and
the next round begins from the state before: two attempts would need a rule for which of two sharings counts.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedsec.aggregation.announcement import Announcement, RoundId, array_digest, decode_announcement
from fedsec.aggregation.encoding import ArraySpec
from fedsec.aggregation.links import TlsLinks
from fedsec.aggregation.messages import Announce, Received
from fedsec.aggregation.round import Round
from fedsec.aggregation.sealed import Sealed, arrays_bytes, arrays_from, encode_model
from fedsec.aggregation.sealed_links import SealedLinks
from fedsec.aggregation.sealed_messages import (
    FetchState,
    OpenSealedLink,
    Reshare,
    SealedOutcome,
    SealedStart,
    SealedStatus,
    StateShare,
)
from fedsec.aggregation.sealed_plan import change_of, plan_division
from fedsec.aggregation.sealed_state import SealedState, SealedStates
from fedsec.aggregation.signing import digest
from fedsec.aggregation.store import State
from fedsec.errors import FedsecError, ProtocolError, TrustError
from fedsec.mpc import establish
from fedsec.ring import RING64, Ring, fresh_stream
from fedsec.sharing.conversion import split_for_three
from fedsec.sharing.replicated import PARTIES, RepShare
from fedsec.transport import Channel, Deadline, Endpoint, Identity, Meter, Role
from fedsec.transport.service import Call, Reply, Route

_log = logging.getLogger(__name__)

_STATUS_WAIT_S = 1.0
_MOST_FAILURES = 256


@dataclass(slots=True)
class _Inbox:
    """What the aggregators have sent of one round: added up, so memory does not grow with their number."""

    total: RepShare | None = None
    weight: int = 0
    senders: set[str] = field(default_factory=set)


class SealedRounds:
    """The sealed rounds of one aggregator, which may be one of the three computing parties or not.

    Args:
        identity: Of this aggregator.
        parties: Every aggregator, in the order of the cluster file; the first three compute.
        folder: The party's state folder.
        find: Returns an aggregator's round by its id; raises ProtocolError for an unknown one.
        wait_s: Longest time from the agreement to the stored state.
        meter: Counts the bytes to the others.
    """

    def __init__(
        self,
        identity: Identity,
        parties: tuple[Endpoint, ...],
        folder: Path,
        find: Callable[[RoundId], Round],
        *,
        wait_s: float,
        meter: Meter | None = None,
    ) -> None:
        self.states = SealedStates(folder)
        self._identity, self._parties, self._find = identity, parties, find
        self._wait_s, self._meter = wait_s, meter
        computing = parties[:PARTIES] if len(parties) >= PARTIES else ()
        self._computing = tuple(party.name for party in computing)
        self._links = SealedLinks(identity, computing, meter) if identity.name in self._computing else None
        self._changed = threading.Condition()
        self._begun: set[bytes] = set()
        self._failed: dict[bytes, str] = {}
        self._inboxes: dict[bytes, _Inbox] = {}
        self._threads: set[threading.Thread] = set()
        self._open: set[Channel] = set()
        self._stopping = False

    def routes(self) -> list[Route]:
        """Return the routes of the sealed rounds; an aggregator that does not compute has none."""
        if self._links is None:
            return []
        server, hospital, party = (frozenset({role}) for role in (Role.SERVER, Role.HOSPITAL, Role.PARTY))
        return [
            Route(SealedStart, server, self._start, lambda message: arrays_bytes(self._arrays(message))),
            Route(SealedStatus, server, self._status),
            Route(Reshare, party, self._take, lambda message: 2 * self._words_bytes(message)),
            Route(OpenSealedLink, party, self._link),
            Route(FetchState, hospital, self._fetch),
        ]

    def check(self, message: Announce) -> None:
        """Check that this party can take part in a round before it is opened here.

        Raises:
            TrustError: It names other computing parties than the cluster file.
            ProtocolError: This party does not hold the state that the round begins from, or it is closed.
        """
        announcement = decode_announcement(message.announcement.payload)
        sealed = announcement.sealed
        if sealed is None:
            return
        if sealed.parties != self._computing:
            raise TrustError(
                f"the announced computing parties are not the first three of the cluster file of "
                f"'{self._identity.name}': {', '.join(self._computing)}"
            )
        if self._links is not None and sealed.base:
            state = self.states.read(announcement.session, sealed.base)
            if state.closed:
                raise TrustError(f"{announcement.id} begins from a state that is closed for ever")
            if (state.arrays, state.fraction_bits) != (announcement.arrays, sealed.fraction_bits):
                raise ProtocolError(f"{announcement.id} describes another model than its base state")

    def announced(self, message: Announce) -> None:
        """Erase the states that a new round has left behind: those of updates that were thrown away, too."""
        announcement = decode_announcement(message.announcement.payload)
        if announcement.sealed is not None and self._links is not None:
            # Its own number, too: the same announcement may come again when its state is there.
            self.states.keep(announcement.session, {announcement.sealed.base, announcement.round})

    def look(self, rounds: list[Round]) -> None:
        """Begin what is due; called with the rounds that are not final after every step of the aggregator."""
        active = {one.key for one in rounds}
        with self._changed:
            for key in [key for key in self._inboxes if key not in active and key not in self._begun]:
                del self._inboxes[key]
            self._begun &= active
            due = [one for one in rounds if self._due(one)]
            self._begun |= {one.key for one in due}
        for round_ in due:
            thread = threading.Thread(target=self._run, args=(round_,), name="sealed round", daemon=True)
            self._threads.add(thread)
            thread.start()

    def resume(self, rounds: list[Round]) -> None:
        """Give up the rounds that an earlier process had agreed on: their state is never made."""
        with self._changed:
            for one in rounds:
                if one.state is State.AGREED and one.announcement.sealed is not None:
                    self._begun.add(one.key)
                    self._note_failure(one.key, f"'{self._identity.name}' was restarted")

    def stop(self) -> None:
        """End every computation and close every link."""
        with self._changed:
            self._stopping = True
            channels = list(self._open)
            self._changed.notify_all()
        for channel in channels:
            channel.interrupt()
        if self._links is not None:
            self._links.close()
        for thread in list(self._threads):
            thread.join(timeout=self._wait_s)

    # Requests.

    def _start(self, call: Call) -> Reply:
        announcement = self._announcement(call.message.round)
        sealed = _require_sealed(announcement)
        arrays = arrays_from(call.body.read(), announcement.arrays)
        for spec, expected, array in zip(
            announcement.arrays, announcement.array_digests, arrays, strict=True
        ):
            if array_digest(array) != expected:
                raise ProtocolError(f"the initial array '{spec.name}' is not the announced one")
        words = encode_model(arrays, sealed.fraction_bits)
        nothing = np.zeros_like(words)
        share = RepShare(nothing, nothing, sealed.fraction_bits).add_public(self._id, words)
        self.states.write(_state(announcement, 0, share))
        return Reply(Received())

    def _take(self, call: Call) -> Reply:
        message: Reshare = call.message
        round_ = self._find(message.round)
        announcement = round_.announcement
        _require_sealed(announcement)
        known = {member.name: member.public_key for member in announcement.aggregators}
        if known.get(call.peer.name) != call.peer.public_key:
            raise TrustError(f"'{call.peer.name}' is no aggregator of {announcement.id}")
        ring = announcement.encoding.ring
        if not 0 <= message.weight < ring.modulus:
            raise ProtocolError(f"'{call.peer.name}' sent a share of the weight that is no ring element")
        body = call.body.read()
        if len(body) != 2 * self._words_bytes(message):
            raise ProtocolError(f"'{call.peer.name}' sent parts of another size than the round's sum has")
        if round_.state.final:
            raise ProtocolError(f"{announcement.id} has ended")
        parts = np.frombuffer(body, ring.dtype.newbyteorder("<")).reshape(2, -1)
        self._add(round_.key, call.peer.name, RepShare(parts[0], parts[1]), message.weight, ring)
        return Reply(Received())

    def _link(self, call: Call) -> None:
        _require_sealed(self._announcement(call.message.round))
        self._require_links().opened(call)

    def _status(self, call: Call) -> Reply:
        message: SealedStatus = call.message
        key, deadline = message.round.key, Deadline.after(_STATUS_WAIT_S)
        _require_sealed(self._announcement(message.round))
        while True:
            with self._changed:
                outcome = self._outcome(message.round)
                if outcome.status != "pending" or deadline.passed or self._stopping:
                    return Reply(outcome)
                self._changed.wait_for(lambda: key in self._failed, timeout=0.2)

    def _fetch(self, call: Call) -> Reply:
        message: FetchState = call.message
        state = self.states.read(message.session, message.number)
        if call.peer.public_key not in {member.public_key for member in state.roster}:
            raise TrustError(f"'{call.peer.name}' is not in the roster of that sealed model")
        if state.closed:
            raise TrustError("that state is closed: it is opened to nobody, predictions come from its shares")
        return Reply(StateShare(state.fraction_bits), state.share.own.astype("<u8", copy=False).data)

    # The computation.

    def _run(self, round_: Round) -> None:
        key, deadline = round_.key, Deadline.after(self._wait_s)
        try:
            self._send(round_, deadline)
            if self._links is not None:
                self._compute(round_, deadline)
        except Exception as error:
            # Whatever it is, the others must hear that there will be no state; only our texts are told.
            text = str(error) if isinstance(error, FedsecError) else type(error).__name__
            _log.warning("no sealed state of %s: %s", round_.announcement.id, text)
            with self._changed:
                self._note_failure(key, f"'{self._identity.name}': {text}")
        finally:
            if self._links is not None:
                self._links.forget(round_.announcement.id)
            with self._changed:
                self._inboxes.pop(key, None)
                self._threads.discard(threading.current_thread())
                self._changed.notify_all()

    def _send(self, round_: Round, deadline: Deadline) -> None:
        """Split this aggregator's share of the sum afresh and give each computing party its pair."""
        announcement = round_.announcement
        ring = announcement.encoding.ring
        words, weight = round_.update_share()
        parts = split_for_three(words, fresh_stream())
        others = [party for party in self._parties if party.name in self._computing]
        with closing(TlsLinks(others, self._identity, self._meter)) as links:
            for index, party in enumerate(others):
                own, following = parts[index], parts[(index + 1) % PARTIES]
                if party.name == self._identity.name:
                    self._add(round_.key, party.name, RepShare(own, following), weight, ring)
                    continue
                body = own.astype(own.dtype.newbyteorder("<"), copy=False).tobytes() + following.tobytes()
                links.call(
                    party.name, Reshare(announcement.id, weight), Received, body=body, deadline=deadline
                )

    def _compute(self, round_: Round, deadline: Deadline) -> None:
        announcement = round_.announcement
        sealed = _require_sealed(announcement)
        total, weight = self._all(round_, deadline)
        included = len(round_.included())
        if not included <= weight <= included * announcement.encoding.largest_weight:
            raise ProtocolError(
                f"the total weight of {announcement.id} is none that its hospitals can have: a client cheated"
            )
        division = plan_division(announcement.encoding, announcement.arrays, weight, sealed.fraction_bits)
        base = self.states.read(announcement.session, sealed.base)
        terms = digest("sealed session", round_.key, round_.digest, weight.to_bytes(8, "big"))
        previous, following = self._require_links().link_up(announcement.id, deadline)
        with closing(previous), closing(following), self._interruptible(previous, following):
            left = deadline.remaining("the other two parties")
            party = establish(self._id, previous, following, terms, deadline, ring=RING64, wait_s=left)
            change = change_of(party, total, announcement.arrays, division, sealed.fraction_bits)
        self._store(_state(announcement, announcement.round, base.share + change))

    def _store(self, state: SealedState) -> None:
        self.states.write(state)

    def _all(self, round_: Round, deadline: Deadline) -> tuple[RepShare, int]:
        """Wait for the parts of every aggregator; return this party's share of the sum, and the weight."""
        names = {member.name for member in round_.announcement.aggregators}
        with self._changed:
            while True:
                inbox = self._inboxes.get(round_.key, _Inbox())
                if inbox.senders == names and inbox.total is not None:
                    return inbox.total, inbox.weight
                if self._stopping or round_.state.final:
                    raise ProtocolError("the round was ended before its state was made")
                missing = ", ".join(f"'{name}'" for name in sorted(names - inbox.senders))
                # A round that the server ends meanwhile is noticed at the next turn.
                self._changed.wait(min(0.2, deadline.remaining(missing)))

    def _add(self, key: bytes, sender: str, pair: RepShare, weight: int, ring: Ring) -> None:
        with self._changed:
            inbox = self._inboxes.setdefault(key, _Inbox())
            if sender in inbox.senders:
                return
            inbox.total = pair if inbox.total is None else inbox.total + pair
            inbox.weight = (inbox.weight + weight) % ring.modulus
            inbox.senders.add(sender)
            self._changed.notify_all()

    # Helpers.

    @property
    def _id(self) -> int:
        return self._computing.index(self._identity.name)

    def _announcement(self, round_id: RoundId) -> Announcement:
        return self._find(round_id).announcement

    def _arrays(self, message: SealedStart) -> tuple[ArraySpec, ...]:
        return self._announcement(message.round).arrays

    def _words_bytes(self, message: Reshare) -> int:
        layout = self._announcement(message.round).layout
        return layout.update_words * layout.encoding.ring.element_bytes

    def _require_links(self) -> SealedLinks:
        if self._links is None:
            raise ProtocolError(f"'{self._identity.name}' is none of the three computing parties")
        return self._links

    def _due(self, round_: Round) -> bool:
        announcement = round_.announcement
        sums = announcement.sealed is not None and announcement.phase == "train"
        agreed = round_.state is State.AGREED
        return sums and agreed and round_.key not in self._begun and not self._stopping

    def _outcome(self, round_id: RoundId) -> SealedOutcome:
        if round_id.round in self.states.numbers(round_id.session):
            return SealedOutcome("stored")
        if round_id.key in self._failed:
            return SealedOutcome("failed", self._failed[round_id.key])
        if self._find(round_id).state.final:
            return SealedOutcome("failed", f"'{self._identity.name}' has ended the round")
        return SealedOutcome("pending")

    def _note_failure(self, key: bytes, reason: str) -> None:
        while len(self._failed) >= _MOST_FAILURES:
            del self._failed[next(iter(self._failed))]
        self._failed[key] = reason
        self._changed.notify_all()

    @contextlib.contextmanager
    def _interruptible(self, *channels: Channel) -> Iterator[None]:
        with self._changed:
            self._open |= set(channels)
            stopping = self._stopping
        if stopping:
            raise ProtocolError("this party ends")
        try:
            yield
        finally:
            with self._changed:
                self._open -= set(channels)


def _require_sealed(announcement: Announcement) -> Sealed:
    if announcement.sealed is None:
        raise ProtocolError(f"{announcement.id} is no sealed round")
    return announcement.sealed


def _state(announcement: Announcement, number: int, share: RepShare) -> SealedState:
    sealed = _require_sealed(announcement)
    return SealedState(
        session=announcement.session,
        number=number,
        arrays=announcement.arrays,
        fraction_bits=sealed.fraction_bits,
        share=share,
        closed=sealed.keep_closed and number > 0,
        roster=announcement.roster,
        serves=sealed.serves if number else b"",
    )
