"""The other two parties, as one deals with them: links for a service, and who is behind its end."""

from __future__ import annotations

from fedsec.errors import FedsecError, PeerLostError, TrustError, by_code
from fedsec.serving.limits import Limits
from fedsec.serving.links import LinkDesk
from fedsec.serving.messages import LinkOpened, OpenLink, ReadStatus, Status
from fedsec.serving.parts import PARTIES
from fedsec.serving.running import Terms
from fedsec.transport import Channel, Deadline, Endpoint, Identity, Meter
from fedsec.transport.calling import call
from fedsec.transport.service import Call
from fedsec.transport.tls import connect


class Neighbours:
    """The other two parties, as this one deals with them.

    Args:
        identity: of this party.
        parties: the three computing parties in order; this one is among them.
        meter: counts what passes on links that this party opens.
        limits: waits.
    """

    def __init__(
        self, identity: Identity, parties: tuple[Endpoint, ...], meter: Meter | None, limits: Limits
    ) -> None:
        me = [party.name for party in parties].index(identity.name)
        self._identity = identity
        self._following = parties[(me + 1) % PARTIES]
        self._previous = parties[(me - 1) % PARTIES]
        self._others = tuple(party for party in parties if party.name != identity.name)
        self._meter = meter
        self._limits = limits
        self._desk = LinkDesk(keep_s=limits.setup_s)

    def open_link(self, request: Call) -> None:
        """Put the previous party's link on the desk, for the service that it names.

        Raises:
            TrustError: another party than the previous one, or another key than the pinned one.
        """
        message: OpenLink = request.message
        if (request.peer.name, request.peer.public_key) != (self._previous.name, self._previous.public_key):
            raise TrustError(
                f"expected a link from {self._previous.name}, got one from {request.peer}; it was refused"
            )
        self._desk.put(message.service, message.terms, request.detach(LinkOpened(service=message.service)))

    def link_up(self, terms: Terms, deadline: Deadline) -> tuple[Channel, Channel]:
        """Dial the following party, take the previous one's link.

        Returns:
            The links to the previous and to the following party.

        Raises:
            PeerLostError, DeadlineError: a party is not there; the text names it.
            ProtocolError: the previous party was told other terms.
            ServiceEndedError: the service was given up meanwhile.
        """
        channel = connect(self._following, self._identity, deadline=deadline, meter=self._meter)
        try:
            opened = OpenLink(service=terms.service, terms=terms.digest())
            call(channel, opened, LinkOpened, deadline=deadline)
            link = self._desk.take(self._previous.name, terms.service, terms.digest(), deadline)
        except BaseException:
            channel.close()
            raise
        return link, channel

    def give_up(self, service: bytes) -> None:
        """Let nobody wait for links of this service any more."""
        self._desk.give_up(service)

    def explain(self, service: bytes, error: FedsecError) -> FedsecError:
        """Find out who is behind a broken service: a party that is gone, or one that ended it for a reason.

        The first error that a party sees may name the wrong one: when party 2 dies, party 1 gives up
        and closes its links, and party 0 may notice that first.
        """
        if not isinstance(error, PeerLostError):
            return error
        gone: list[str] = []
        for other in self._others:
            try:
                status = self._probe(other)
            except PeerLostError:
                gone.append(other.name)
                continue
            except FedsecError:
                continue
            if status.service != service:
                # It runs, but knows nothing of the service: it was started anew meanwhile.
                gone.append(other.name)
                continue
            told = by_code(status.code)
            if status.code and not issubclass(told, PeerLostError):
                return told(f"{other.name} ended the service: {status.text}")
        if gone:
            return PeerLostError(
                f"{' and '.join(gone)} was lost ({error.code}): the service has ended; it goes on once the "
                "party runs again and the owner has shared the model with all three anew"
            )
        return error

    def _probe(self, other: Endpoint) -> Status:
        """Ask another party how its service is, over a connection of its own."""
        deadline = Deadline.after(self._limits.probe_s)
        with connect(other, self._identity, deadline=deadline, meter=self._meter) as channel:
            return call(channel, ReadStatus(), Status, deadline=deadline)[0]

    def close(self) -> None:
        """Close the links that nobody took."""
        self._desk.close()
