"""Where the three parties talk between batches: proposals and ballots, over the links of the computation."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec

from fedsec.errors import ProtocolError
from fedsec.serving.agreement import PARTIES, Ballot, Proposal
from fedsec.transport import Channel, Deadline
from fedsec.transport.decoding import MALFORMED, decode_as
from fedsec.transport.hosting import Guests
from fedsec.transport.several import Bell, wait_any

LEADER = 0
FOLLOWERS = (1, 2)
STEP_BYTES = 32_768  # entries of 128 requests have 8 kB: those proposed, and two ballots cast ahead

T = TypeVar("T", bound=msgspec.Struct)


class Table:
    """One party's seat: it proposes or hears proposals, and has one ballot of each party for every vote.

    Every vote has exactly one proposal and one ballot of each follower, so their order on the links tells
    which vote they belong to. A ballot cast ahead goes to the leader and may lie in the link for a while; the
    proposal tells both followers whether it has come in time to be passed on. If not, the other follower gets
    it from the one that cast it, and the next one at once. Between two votes only the leader may therefore
    send anything else: proposals, and what it prepares.

    Args:
        party_id: 0, 1 or 2.
        previous: link to party ``party_id - 1``.
        following: link to party ``party_id + 1``.
        silence_s: longest wait for one message.
    """

    def __init__(self, party_id: int, previous: Channel, following: Channel, silence_s: float) -> None:
        self.party_id = party_id
        links = {(party_id - 1) % PARTIES: previous, (party_id + 1) % PARTIES: following}
        self._links = dict(sorted(links.items()))
        self._silence_s = silence_s
        self._ballots: dict[int, Ballot] = {}
        self._crossed = False

    def name(self, party_id: int) -> str:
        """Return the name of a party at this table."""
        if party_id == self.party_id:
            return self._links[(party_id + 1) % PARTIES].me
        return self._links[party_id].peer.name

    @property
    def cast(self) -> Mapping[int, Ballot]:
        """The ballots of the next vote that are known already, by party."""
        return self._ballots

    def propose(self, proposal: Proposal) -> None:
        """Leader: open the next step, and pass on what was cast ahead."""
        if proposal.ballot is not None:
            first, second = (self._ballots.get(party) for party in FOLLOWERS)
            proposal = msgspec.structs.replace(proposal, ahead=(first, second))
        self._send("proposal", proposal, self._links.values())

    def listen(self, seconds: float, bell: Bell, guests: Guests) -> None:
        """Leader: take ballots cast ahead; ends with the last one, with a request, the bell, or the time."""
        until = time.monotonic() + seconds
        while True:
            missing = [party for party in FOLLOWERS if party not in self._ballots]
            ready = self._wait(until - time.monotonic(), missing, bell, guests)
            for party in ready:
                self._take(party)
            if not ready or len(self._ballots) == PARTIES - 1:
                return

    def _wait(self, seconds: float, parties: Sequence[int], bell: Bell, guests: Guests) -> list[int]:
        """Return those of the parties of which something has come; none if a request has come."""
        links = [self._links[party] for party in parties]
        ready = wait_any([*links, *guests.channels], seconds, bell)
        asking = [channel for channel in ready if channel not in links]
        # Requests first: what another party says was perhaps said because of one of them.
        for channel in asking:
            guests.receive(channel)
        return [] if asking else [party for party in parties if self._links[party] in ready]

    def silence(self) -> Deadline:
        """Return until when a follower waits that begins to wait for the leader now."""
        return Deadline.after(self._silence_s)

    def hear(self, bell: Bell, guests: Guests, silence: Deadline) -> Proposal | None:
        """Follower: wait for the leader's next step, and for the ballots that come with it.

        Returns:
            The step; None if the bell rang before it came, or a request did.

        Raises:
            DeadlineError: the leader has been silent for too long.
            ProtocolError: the leader passes on another ballot of this party than it has cast.
        """
        leader = self._links[LEADER]
        if not self._wait(silence.remaining(leader.peer.name), [LEADER], bell, guests):
            return None
        proposal = self._receive(leader, "proposal", Proposal)
        if proposal.ballot is not None:
            self._take_ahead(dict(zip(FOLLOWERS, proposal.ahead, strict=True)))
        return proposal

    def _take_ahead(self, passed_on: Mapping[int, Ballot | None]) -> None:
        """Follower: take what the leader passes on; what it could not, this party sends itself."""
        mine = self._ballots.get(self.party_id)
        if passed_on[self.party_id] not in {None, mine}:
            raise ProtocolError(
                f"expected {self.name(LEADER)} to pass on the ballot of {self.name(self.party_id)} as it was "
                "cast, got another one: the service ends"
            )
        other = self._other_follower
        if (ballot := passed_on[other]) is not None:
            if ballot.told:
                self._take(other)
            if self._ballots.setdefault(other, ballot) != ballot:
                raise ProtocolError(
                    f"expected {self.name(LEADER)} to pass on the ballot that {self.name(other)} has told, "
                    "got another one: the service ends"
                )
        if mine is not None:
            # On a slow line the proposal is always on its way already.
            self._crossed = passed_on[self.party_id] is None
            if self._crossed and not mine.told:
                self._send("ballot", mine, [self._links[other]])

    @property
    def _other_follower(self) -> int:
        return next(party for party in FOLLOWERS if party != self.party_id)

    def vote_ahead(self, ballot: Ballot) -> None:
        """Follower: tell the leader before it proposes; all, if that was too late the last time."""
        ballot = self._ballots[self.party_id] = msgspec.structs.replace(ballot, told=self._crossed)
        parties = (LEADER, self._other_follower) if self._crossed else (LEADER,)
        self._send("ballot", ballot, [self._links[party] for party in parties])

    def vote(self, ballot: Ballot) -> None:
        """Follower: tell both others, after the proposal."""
        self._ballots[self.party_id] = ballot
        self._send("ballot", ballot, self._links.values())

    def count(self, leaders: Ballot) -> dict[int, Ballot]:
        """Return the ballots of all three and go on to the next vote; waits for those not known yet.

        Args:
            leaders: the ballot that came with the proposal.
        """
        self._ballots[LEADER] = leaders
        for party in self._links:
            if party not in self._ballots:
                self._take(party)
        ballots, self._ballots = self._ballots, {}
        return dict(sorted(ballots.items()))

    def _take(self, party: int) -> None:
        self._ballots[party] = self._receive(self._links[party], "ballot", Ballot)

    def _send(self, kind: str, message: msgspec.Struct, links: Iterable[Channel]) -> None:
        """Send one small message."""
        encoded, deadline = msgspec.msgpack.encode(message), Deadline.after(self._silence_s)
        for link in links:
            link.send(f"serve_{kind}", encoded, deadline)

    def _receive(self, link: Channel, kind: str, message: type[T]) -> T:
        """Receive one small message."""
        deadline = Deadline.after(self._silence_s)
        frame = link.receive(f"serve_{kind}", max_bytes=STEP_BYTES, deadline=deadline)
        try:
            return decode_as(frame, message)
        except MALFORMED as error:
            raise ProtocolError(f"{link.peer.name} sent a malformed {kind}: the service ends") from error
