"""All roles of the aggregation in one process, without sockets or threads: for tests and for teaching.

Requests are encoded and decoded as on the wire. Time stands still unless the caller moves the aggregators'
clock, so every order of messages can be tried.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import msgspec

from fedsec.aggregation.aggregator import Aggregator
from fedsec.aggregation.messages import Greeted, Hello, Received
from fedsec.aggregation.signing import Buffer
from fedsec.errors import FedsecError, PeerLostError
from fedsec.transport import Deadline, Peer
from fedsec.transport.decoding import decode_as

T = TypeVar("T", bound=msgspec.Struct)


class MemoryNetwork:
    """Aggregators that reach each other by function calls.

    Args:
        aggregators: The running aggregators.
        peers: What each aggregator's certificate says, by name.

    Attributes:
        offline: Names that neither answer nor speak, as if their process had died.
    """

    def __init__(self, aggregators: Iterable[Aggregator], peers: Iterable[Peer]) -> None:
        self.aggregators = {one.name: one for one in aggregators}
        self.offline: set[str] = set()
        self._peers = {peer.name: peer for peer in peers}

    def links(self, peer: Peer) -> MemoryLinks:
        """Return the requests of one participant."""
        return MemoryLinks(self, peer)

    def pump(self) -> None:
        """Let every aggregator take its due steps and deliver what it has to say until nothing moves."""
        moved = True
        while moved:
            for name, one in self.aggregators.items():
                if name not in self.offline:
                    one.advance()
            moved = any(self._deliver(sender, receiver) for sender, receiver in self._pairs())

    def ask(self, peer: Peer, name: str, message: msgspec.Struct, body: Buffer = b"") -> tuple[bytes, bytes]:
        """Let an aggregator answer one request.

        Returns:
            The encoded reply and its body.

        Raises:
            FedsecError: The aggregator's error, its name before the text.
        """
        if name in self.offline or name not in self.aggregators:
            raise PeerLostError(f"aggregator '{name}' cannot be reached")
        decoded = decode_as(msgspec.msgpack.encode(message), type(message))
        try:
            reply, answer = self.aggregators[name].handle(peer, decoded, [body])
        except FedsecError as error:
            raise type(error)(f"{name}: {error}") from error
        return msgspec.msgpack.encode(reply), answer

    def _pairs(self) -> list[tuple[str, str]]:
        names = [name for name in self.aggregators if name not in self.offline]
        return [(sender, receiver) for sender in names for receiver in names if sender != receiver]

    def _deliver(self, sender: str, receiver: str) -> bool:
        aggregator = self.aggregators[sender]
        for outgoing in aggregator.outgoing(receiver):
            kind: type[Greeted | Received] = Greeted if isinstance(outgoing.message, Hello) else Received
            try:
                reply, _ = self.ask(self._peers[sender], receiver, outgoing.message)
            except FedsecError as error:
                aggregator.refused(outgoing, error)
                return False
            aggregator.delivered(outgoing, decode_as(reply, kind))
            return True
        return False


class MemoryLinks:
    """One participant's requests over a :class:`MemoryNetwork`; the network moves before and after each."""

    def __init__(self, network: MemoryNetwork, peer: Peer) -> None:
        self._network = network
        self._peer = peer

    def call(
        self,
        aggregator: str,
        message: msgspec.Struct,
        reply: type[T],
        *,
        body: Buffer = b"",
        deadline: Deadline,
        max_body_bytes: int = 0,
    ) -> tuple[T, bytearray]:
        """Send a request and return the reply with its body; see :class:`~fedsec.aggregation.links.Links`."""
        deadline.remaining(aggregator)
        self._network.pump()
        encoded, answer = self._network.ask(self._peer, aggregator, message, body)
        self._network.pump()
        return decode_as(encoded, reply), bytearray(answer[: max_body_bytes or None])

    def call_each(
        self, message: msgspec.Struct, bodies: Mapping[str, Buffer], reply: type[T], *, deadline: Deadline
    ) -> dict[str, T]:
        """Ask one after the other; see :class:`~fedsec.aggregation.links.Links`."""
        return {
            name: self.call(name, message, reply, body=body, deadline=deadline)[0]
            for name, body in bodies.items()
        }

    def close(self) -> None:
        """Nothing is open."""
