"""Sealed rounds at one aggregator: reshare an agreed sum, compute the new state with two others, keep it.

::

    agreed --> every aggregator splits its sum share for the three computing parties
           --> the three open a session of their own and compute the next state
           --> stored durably as "stored", or "failed": then the update is thrown away by the server
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedsec.aggregation.announcement import Announcement, RoundId, array_digest
from fedsec.aggregation.messages import Received
from fedsec.aggregation.planner import ArraySpec
from fedsec.aggregation.round import Round
from fedsec.aggregation.sealed.links import SealedLinks
from fedsec.aggregation.sealed.making import StateMaker, require_sealed, state_of
from fedsec.aggregation.sealed.messages import (
    FetchState,
    OpenSealedLink,
    Reshare,
    SealedOutcome,
    SealedStart,
    SealedStatus,
    StateShare,
)
from fedsec.aggregation.sealed.state import SealedStates
from fedsec.aggregation.sealed.terms import arrays_bytes, arrays_from, encode_model, origin_of
from fedsec.aggregation.store import State
from fedsec.errors import ProtocolError, TrustError
from fedsec.sharing.replicated import PARTIES, RepShare
from fedsec.transport import Deadline, Endpoint, Identity, Meter, Role
from fedsec.transport.service import Call, Reply, Route

_STATUS_WAIT_S = 1.0


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
        self._identity, self._find = identity, find
        computing = parties[:PARTIES] if len(parties) >= PARTIES else ()
        self._computing = tuple(party.name for party in computing)
        self._links = SealedLinks(identity, computing, meter) if identity.name in self._computing else None
        self.maker = StateMaker(identity, computing, self._links, self.states, wait_s=wait_s, meter=meter)

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

    def check(self, announcement: Announcement) -> None:
        """Check that this party can take part in a round before it is opened here.

        Raises:
            TrustError: It names other computing parties than the cluster file, begins from a closed state,
                or describes other initial parameters than the session's states here were made from.
            ProtocolError: This party does not hold the state that the round begins from.
        """
        sealed = announcement.sealed
        if sealed is None:
            return
        if sealed.parties != self._computing:
            raise TrustError(
                f"the announced computing parties are not the first three of the cluster file of "
                f"'{self._identity.name}': {', '.join(self._computing)}"
            )
        if self._links is None:
            return
        self._require_origin(announcement)
        if sealed.base and self.states.header(announcement.session, sealed.base).closed:
            raise TrustError(f"{announcement.id} begins from a state that is closed for ever")

    def announced(self, announcement: Announcement) -> None:
        """Erase the states that a new round has left behind: those of updates that were thrown away, too."""
        if announcement.sealed is not None and self._links is not None:
            session, base = announcement.session, announcement.sealed.base
            # Nobody here can see whether a state is out of range because a client lied. Until hospitals have
            # trained from it, the one before is the way back.
            before = {self.states.header(session, base).before} if base else set()
            # Its own number, too: the same announcement may come again when its state is there. The closed
            # one ends its session, and may be served.
            closed = [n for n in self.states.numbers(session) if self.states.header(session, n).closed]
            self.states.keep(session, {base, *before, announcement.round, *closed})

    # Requests.

    def _start(self, call: Call) -> Reply:
        round_ = self._find(call.message.round)
        announcement = round_.announcement
        sealed = require_sealed(announcement)
        if sealed.base or announcement.phase != "train" or round_.state is not State.OPEN:
            raise ProtocolError(f"{announcement.id} takes no initial parameters, or not any more")
        arrays = arrays_from(call.body.read(), announcement.arrays)
        for spec, expected, array in zip(
            announcement.arrays, announcement.array_digests, arrays, strict=True
        ):
            if array_digest(array) != expected:
                raise ProtocolError(f"the initial array '{spec.name}' is not the announced one")
        self._require_origin(announcement)
        if 0 in self.states.numbers(announcement.session):
            # From the same origin it is the same; a computation may read it just now.
            return Reply(Received())
        words = encode_model(arrays, sealed.fraction_bits)
        nothing = np.zeros_like(words)
        share = RepShare(nothing, nothing, sealed.fraction_bits).add_public(self.maker.id, words)
        self.states.write(state_of(announcement, 0, share))
        return Reply(Received())

    def _take(self, call: Call) -> Reply:
        message: Reshare = call.message
        round_ = self._find(message.round)
        announcement = round_.announcement
        require_sealed(announcement)
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
        parts = np.frombuffer(body, ring.dtype).reshape(2, -1)
        self.maker.add(round_.key, call.peer.name, RepShare(parts[0], parts[1]), message.weight, ring)
        return Reply(Received())

    def _link(self, call: Call) -> None:
        require_sealed(self._announcement(call.message.round))
        self._require_links().opened(call)

    def _status(self, call: Call) -> Reply:
        message: SealedStatus = call.message
        deadline = Deadline.after(_STATUS_WAIT_S)
        require_sealed(self._announcement(message.round))
        while True:
            with self.maker.changed:
                outcome = self._outcome(message.round)
                if outcome.status != "pending" or deadline.passed or self.maker.stopping:
                    return Reply(outcome)
                self.maker.changed.wait(0.2)

    def _fetch(self, call: Call) -> Reply:
        message: FetchState = call.message
        # Its words are read for nobody who may not have them.
        header = self.states.header(message.session, message.number)
        if call.peer.public_key not in {member.public_key for member in header.roster}:
            raise TrustError(f"'{call.peer.name}' is not in the roster of that sealed model")
        if header.closed:
            raise TrustError("that state is closed: it is opened to nobody, predictions come from its shares")
        state = self.states.read(message.session, message.number)
        return Reply(StateShare(state.fraction_bits, state.origin), state.share.own.data)

    # Helpers.

    def _require_origin(self, announcement: Announcement) -> None:
        """Refuse other initial parameters than those that the states of the session were made from."""
        session, origin = announcement.session, origin_of(announcement)
        if any(self.states.header(session, n).origin != origin for n in self.states.numbers(session)):
            raise TrustError(
                f"{announcement.id} describes other initial parameters, clips or fraction bits than the "
                "rounds of this session before it; the round is refused"
            )

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

    def _outcome(self, round_id: RoundId) -> SealedOutcome:
        if round_id.round in self.states.numbers(round_id.session):
            return SealedOutcome("stored")
        if failure := self.maker.failure(round_id.key):
            return SealedOutcome("failed", failure)
        if self._find(round_id).state.final:
            return SealedOutcome("failed", f"'{self._identity.name}' has ended the round")
        return SealedOutcome("pending")
