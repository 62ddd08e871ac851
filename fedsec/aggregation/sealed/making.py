"""Makes the next state of a sealed model: one thread a round, from the agreed sum shares to the stored state.

A round is tried once. Whatever goes wrong (a party that is lost, a deadline, a restart) makes it fail, and
the next round begins from the state before: two attempts would need a rule for which of two sharings counts.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

from fedsec.aggregation.announcement import Announcement
from fedsec.aggregation.links import TlsLinks
from fedsec.aggregation.messages import Received
from fedsec.aggregation.round import Round
from fedsec.aggregation.sealed.links import SealedLinks
from fedsec.aggregation.sealed.messages import Reshare
from fedsec.aggregation.sealed.plan import change_of, plan_division
from fedsec.aggregation.sealed.state import SealedState, SealedStates
from fedsec.aggregation.sealed.terms import Sealed, origin_of
from fedsec.aggregation.signing import digest
from fedsec.aggregation.store import State
from fedsec.errors import FedsecError, ProtocolError
from fedsec.mpc import establish
from fedsec.ring import RING64, Ring, fresh_stream
from fedsec.sharing.conversion import split_for_three
from fedsec.sharing.replicated import PARTIES, RepShare
from fedsec.transport import Channel, Deadline, Endpoint, Identity, Meter

_log = logging.getLogger(__name__)

_MOST_FAILURES = 256
_JOIN_S = 2.0
"""For threads to notice the end; one that still dials somebody ends with the process."""


@dataclass(slots=True)
class _Inbox:
    """What the aggregators have sent of one round: added up, so memory does not grow with their number."""

    total: RepShare | None = None
    weight: int = 0
    senders: set[str] = field(default_factory=set)


class StateMaker:
    """Makes the states of one aggregator's sealed rounds; an aggregator that does not compute only reshares.

    Args:
        identity: Of this aggregator.
        computing: The three computing parties in order.
        links: How this aggregator reaches its neighbours, if it is one of the three.
        states: What it keeps.
        wait_s: Longest time from the agreement to the stored state.
        meter: Counts the bytes to the others.

    Attributes:
        changed: Notified when something has come, is stored or has failed.
        inboxes: What has come of rounds under way, by round key.
    """

    def __init__(
        self,
        identity: Identity,
        computing: tuple[Endpoint, ...],
        links: SealedLinks | None,
        states: SealedStates,
        *,
        wait_s: float,
        meter: Meter | None = None,
    ) -> None:
        self._identity, self._computing, self._links, self._states = identity, computing, links, states
        self._wait_s, self._meter = wait_s, meter
        self.changed = threading.Condition()
        self.inboxes: dict[bytes, _Inbox] = {}
        self._begun: set[bytes] = set()
        self._failed: dict[bytes, str] = {}
        self._threads: set[threading.Thread] = set()
        self._open: set[Channel] = set()
        self.stopping = False

    @property
    def id(self) -> int:
        """This party's place among the three."""
        return [party.name for party in self._computing].index(self._identity.name)

    def failure(self, key: bytes) -> str:
        """Return why a round made no state; empty when it made one, or has not ended."""
        return self._failed.get(key, "")

    def look(self, rounds: list[Round]) -> None:
        """Begin what is due; called with the rounds that are not final after every step of the aggregator."""
        active = {one.key for one in rounds}
        if self._links is not None:
            self._links.keep(active)
        with self.changed:
            for key in [key for key in self.inboxes if key not in active and key not in self._begun]:
                del self.inboxes[key]
            self._begun &= active
            due = [one for one in rounds if self._due(one)]
            self._begun |= {one.key for one in due}
        for round_ in due:
            thread = threading.Thread(target=self._run, args=(round_,), name="sealed round", daemon=True)
            self._threads.add(thread)
            thread.start()

    def resume(self, rounds: list[Round]) -> None:
        """Give up the rounds that an earlier process had agreed on: their state is never made."""
        with self.changed:
            for one in rounds:
                if one.state is State.AGREED and one.announcement.sealed is not None:
                    self._begun.add(one.key)
                    self._note_failure(one.key, f"'{self._identity.name}' was restarted")

    def stop(self) -> None:
        """End every computation and close every link."""
        with self.changed:
            self.stopping = True
            channels = list(self._open)
            self.changed.notify_all()
        for channel in channels:
            channel.interrupt()
        if self._links is not None:
            self._links.close()
        for thread in list(self._threads):
            thread.join(timeout=_JOIN_S)

    def _run(self, round_: Round) -> None:
        key, deadline = round_.key, Deadline.after(self._wait_s)
        try:
            self._send(round_, deadline)
            if self._links is not None:
                self._compute(round_, deadline, self._links)
        except Exception as error:
            # Whatever it is, the others must hear that there will be no state; only our texts are told.
            text = str(error) if isinstance(error, FedsecError) else type(error).__name__
            _log.warning("no sealed state of %s: %s", round_.announcement.id, text)
            with self.changed:
                self._note_failure(key, f"'{self._identity.name}': {text}")
        finally:
            with self.changed:
                self.inboxes.pop(key, None)
                self._threads.discard(threading.current_thread())
                self.changed.notify_all()

    def _send(self, round_: Round, deadline: Deadline) -> None:
        """Split this aggregator's share of the sum afresh and give each computing party its pair."""
        announcement = round_.announcement
        ring = announcement.encoding.ring
        words, weight = round_.update_share()
        parts = split_for_three(words, fresh_stream())
        with closing(TlsLinks(self._computing, self._identity, self._meter)) as links:
            for index, party in enumerate(self._computing):
                own, following = parts[index], parts[(index + 1) % PARTIES]
                if party.name == self._identity.name:
                    self.add(round_.key, party.name, RepShare(own, following), weight, ring)
                    continue
                body = own.tobytes() + following.tobytes()
                links.call(
                    party.name, Reshare(announcement.id, weight), Received, body=body, deadline=deadline
                )

    def _compute(self, round_: Round, deadline: Deadline, links: SealedLinks) -> None:
        announcement = round_.announcement
        sealed = require_sealed(announcement)
        total, weight = self._all(round_, deadline)
        included = len(round_.included())
        if not included <= weight <= included * announcement.encoding.largest_weight:
            raise ProtocolError(
                f"the total weight of {announcement.id} is none that its hospitals can have: a client cheated"
            )
        division = plan_division(announcement.encoding, announcement.arrays, weight, sealed.fraction_bits)
        base = self._states.read(announcement.session, sealed.base)
        if base.origin != origin_of(announcement):
            # It was the right one when the round was announced; a round beside this one has begun anew.
            raise ProtocolError(f"the base state of {announcement.id} is another model by now")
        terms = digest("sealed session", round_.key, round_.digest, weight.to_bytes(8, "big"))
        previous, following = links.link_up(announcement.id, deadline)
        with closing(previous), closing(following), self._interruptible(previous, following):
            left = deadline.remaining("the other two parties")
            party = establish(self.id, previous, following, terms, deadline, ring=RING64, wait_s=left)
            change = change_of(party, total, announcement.arrays, division, sealed.fraction_bits)
        self._store(state_of(announcement, announcement.round, base.share + change))

    def _store(self, state: SealedState) -> None:
        self._states.write(state)

    def _all(self, round_: Round, deadline: Deadline) -> tuple[RepShare, int]:
        """Wait for the parts of every aggregator; return this party's share of the sum, and the weight."""
        names = {member.name for member in round_.announcement.aggregators}
        with self.changed:
            while True:
                inbox = self.inboxes.get(round_.key, _Inbox())
                if inbox.senders == names and inbox.total is not None:
                    return inbox.total, inbox.weight
                if self.stopping or round_.state.final:
                    raise ProtocolError("the round was ended before its state was made")
                missing = ", ".join(f"'{name}'" for name in sorted(names - inbox.senders))
                # A round that the server ends meanwhile is noticed at the next turn.
                self.changed.wait(min(0.2, deadline.remaining(missing)))

    def add(self, key: bytes, sender: str, pair: RepShare, weight: int, ring: Ring) -> None:
        """Add what one aggregator sent of a round; a second time it is ignored."""
        with self.changed:
            inbox = self.inboxes.setdefault(key, _Inbox())
            if sender in inbox.senders:
                return
            inbox.total = pair if inbox.total is None else inbox.total + pair
            inbox.weight = (inbox.weight + weight) % ring.modulus
            inbox.senders.add(sender)
            self.changed.notify_all()

    # Helpers.

    def _due(self, round_: Round) -> bool:
        announcement = round_.announcement
        sums = announcement.sealed is not None and announcement.phase == "train"
        agreed = round_.state is State.AGREED
        return sums and agreed and round_.key not in self._begun and not self.stopping

    def _note_failure(self, key: bytes, reason: str) -> None:
        while len(self._failed) >= _MOST_FAILURES:
            del self._failed[next(iter(self._failed))]
        self._failed[key] = reason
        self.changed.notify_all()

    @contextlib.contextmanager
    def _interruptible(self, *channels: Channel) -> Iterator[None]:
        with self.changed:
            self._open |= set(channels)
            stopping = self.stopping
        if stopping:
            raise ProtocolError("this party ends")
        try:
            yield
        finally:
            with self.changed:
                self._open -= set(channels)


def require_sealed(announcement: Announcement) -> Sealed:
    """Return the sealed part of a round.

    Raises:
        ProtocolError: It has none.
    """
    if announcement.sealed is None:
        raise ProtocolError(f"{announcement.id} is no sealed round")
    return announcement.sealed


def state_of(announcement: Announcement, number: int, share: RepShare) -> SealedState:
    """Return the state with a number in the session of a round, as one party keeps it."""
    sealed = require_sealed(announcement)
    return SealedState(
        session=announcement.session,
        number=number,
        arrays=announcement.arrays,
        fraction_bits=sealed.fraction_bits,
        share=share,
        closed=sealed.keep_closed and number > 0,
        roster=announcement.roster,
        serves=sealed.serves if number else b"",
        origin=origin_of(announcement),
        before=sealed.base if number else 0,
    )
