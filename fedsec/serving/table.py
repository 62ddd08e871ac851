"""Where the three parties talk between batches: proposals and ballots, over the links of the computation."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from fedsec.errors import ProtocolError
from fedsec.serving.agreement import PARTIES, Ballot, Proposal
from fedsec.transport import Channel, Deadline
from fedsec.transport.decoding import MALFORMED, decode_as
from fedsec.transport.several import Bell, wait_any

LEADER = 0
_STEP_BYTES = 16_384  # a ballot cast ahead of 128 entries has 8 kB

T = TypeVar("T", bound=msgspec.Struct)


class Table:
    """One party's seat: it proposes or hears proposals, and has one ballot of each party for every vote.

    Every vote has exactly one proposal and one ballot of each follower, so their order on the links tells
    which vote they belong to. A ballot cast ahead may lie in a link for a while. Between two votes only the
    leader may therefore send anything else: proposals, and what it prepares.

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
        """Leader: open the next step."""
        self._send_all("proposal", proposal)

    def listen(self, seconds: float, bell: Bell) -> None:
        """Leader: take ballots that are cast ahead; ends with the last one, the bell, or the time."""
        until = time.monotonic() + seconds
        while True:
            expected = {link: party for party, link in self._links.items() if party not in self._ballots}
            ready = wait_any(list(expected), until - time.monotonic(), bell)
            for link in ready:
                self._take(expected[link])
            if not ready or len(self._ballots) == PARTIES - 1:
                return

    def silence(self) -> Deadline:
        """Return until when a follower waits that begins to wait for the leader now."""
        return Deadline.after(self._silence_s)

    def hear(self, bell: Bell, silence: Deadline) -> Proposal | None:
        """Follower: wait for the leader's next step, and take the other follower's ballot if it is ahead.

        Returns:
            The step; None if the bell rang before it came, or that ballot did.

        Raises:
            DeadlineError: the leader has been silent for too long.
        """
        leader = self._links[LEADER]
        proposal: Proposal | None = None
        expected = {link: party for party, link in self._links.items() if party not in self._ballots}
        for link in wait_any(list(expected), silence.remaining(leader.peer.name), bell):
            if link is leader:
                proposal = self._receive(link, "proposal", Proposal)
            else:
                self._take(expected[link])
        return proposal

    def vote(self, ballot: Ballot) -> None:
        """Follower: tell both others."""
        self._ballots[self.party_id] = ballot
        self._send_all("ballot", ballot)

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

    def _send_all(self, kind: str, message: msgspec.Struct) -> None:
        """Send one small message to both others."""
        encoded, deadline = msgspec.msgpack.encode(message), Deadline.after(self._silence_s)
        for link in self._links.values():
            link.send(f"serve_{kind}", encoded, deadline)

    def _receive(self, link: Channel, kind: str, message: type[T]) -> T:
        """Receive one small message."""
        deadline = Deadline.after(self._silence_s)
        frame = link.receive(f"serve_{kind}", max_bytes=_STEP_BYTES, deadline=deadline)
        try:
            return decode_as(frame, message)
        except MALFORMED as error:
            raise ProtocolError(f"{link.peer.name} sent a malformed {kind}: the service ends") from error
