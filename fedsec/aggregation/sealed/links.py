"""The links of one computation among three parties: each dials the next and finds the last on its desk."""

from __future__ import annotations

import threading
from collections.abc import Collection

from fedsec.aggregation.announcement import RoundId
from fedsec.aggregation.sealed.messages import OpenSealedLink, SealedLinkOpened
from fedsec.errors import ProtocolError, TrustError
from fedsec.sharing.replicated import PARTIES
from fedsec.transport import Channel, Deadline, Endpoint, Identity, Meter
from fedsec.transport.calling import call
from fedsec.transport.service import Call
from fedsec.transport.tls import connect

_MOST_WAITING = 8


class SealedLinks:
    """How one computing party reaches its neighbours.

    Args:
        identity: Of this party.
        parties: The three computing parties in order; this one is among them.
        meter: Counts what passes on links that this party opens.
    """

    def __init__(self, identity: Identity, parties: tuple[Endpoint, ...], meter: Meter | None) -> None:
        me = [party.name for party in parties].index(identity.name)
        self._identity, self._meter = identity, meter
        self._following = parties[(me + 1) % PARTIES]
        self._previous = parties[(me - 1) % PARTIES]
        self._changed = threading.Condition()
        self._waiting: dict[bytes, Channel] = {}

    def opened(self, request: Call) -> None:
        """Keep the previous party's connection until the round's computation takes it.

        Raises:
            TrustError: Another party than the previous one asks.
            ProtocolError: Too many links wait here.
        """
        if (request.peer.name, request.peer.public_key) != (self._previous.name, self._previous.public_key):
            raise TrustError(f"expected a link from '{self._previous.name}', got one from {request.peer}")
        message: OpenSealedLink = request.message
        key = message.round.key
        with self._changed:
            if key not in self._waiting and len(self._waiting) >= _MOST_WAITING:
                raise ProtocolError(f"{_MOST_WAITING} links wait here already: this one was refused")
        channel = request.detach(SealedLinkOpened())
        with self._changed:
            old = self._waiting.pop(key, None)
            self._waiting[key] = channel
            self._changed.notify_all()
        if old is not None:
            old.close()

    def link_up(self, round_id: RoundId, deadline: Deadline) -> tuple[Channel, Channel]:
        """Dial the following party and take the previous one's link.

        Returns:
            The links to the previous and to the following party; the caller closes them.

        Raises:
            PeerLostError, DeadlineError: A party is not there; the text names it.
        """
        channel = connect(self._following, self._identity, deadline=deadline, meter=self._meter)
        try:
            call(channel, OpenSealedLink(round_id), SealedLinkOpened, deadline=deadline)
            return self._take(round_id, deadline), channel
        except BaseException:
            channel.close()
            raise

    def keep(self, rounds: Collection[bytes]) -> None:
        """Close every link that waits for a round with another key than these."""
        with self._changed:
            left = [self._waiting.pop(key) for key in list(self._waiting) if key not in rounds]
        for channel in left:
            channel.close()

    def close(self) -> None:
        """Close every link that waits."""
        self.keep(())

    def _take(self, round_id: RoundId, deadline: Deadline) -> Channel:
        with self._changed:
            while round_id.key not in self._waiting:
                self._changed.wait(deadline.remaining(self._previous.name))
            return self._waiting.pop(round_id.key)
