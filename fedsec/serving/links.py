"""The links between the three parties of one service: one dials, the other finds it on its desk.

Party i dials party i+1, so every two parties share one link. The desk only keeps what a pinned party
sent, at most one link a peer and service, and closes what nobody comes for.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from fedsec.errors import DeadlineError, ProtocolError, ServiceEndedError
from fedsec.transport import Channel, Deadline

_MOST_WAITING = 8


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A link on the desk: for which service, under which terms, since when."""

    service: bytes
    terms: bytes
    channel: Channel
    since: float


class LinkDesk:
    """Links that other parties opened and that no service of this party has taken yet."""

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._changed = threading.Condition()
        self._waiting: dict[tuple[str, bytes], _Waiting] = {}
        self._given_up: bytes | None = None

    def put(self, service: bytes, terms: bytes, channel: Channel) -> None:
        """Keep a link until its service takes it; an earlier one of the same peer and service is closed."""
        with self._changed:
            self._expire()
            old = self._waiting.pop((channel.peer.name, service), None)
            if len(self._waiting) >= _MOST_WAITING:
                channel.close()
                raise ProtocolError(
                    f"{_MOST_WAITING} links wait here already: {channel.peer.name}'s was refused"
                )
            self._waiting[channel.peer.name, service] = _Waiting(service, terms, channel, time.monotonic())
            self._changed.notify_all()
        if old is not None:
            old.channel.close()

    def take(self, peer: str, service: bytes, terms: bytes, deadline: Deadline) -> Channel:
        """Wait for a peer's link and take it.

        Args:
            peer: name of the party that dials.
            service: the service's id.
            terms: digest of what this party was told of the service.
            deadline: of the wait.

        Raises:
            DeadlineError: the peer opened no link.
            ProtocolError: the peer was told other terms by the owner.
            ServiceEndedError: the service was given up.
        """
        with self._changed:
            while (peer, service) not in self._waiting:
                if service == self._given_up:
                    raise ServiceEndedError("the service was stopped before it had its links")
                try:
                    self._changed.wait(deadline.remaining(peer))
                except DeadlineError as error:
                    raise DeadlineError(
                        f"expected {peer} to open its link for the service within {deadline.seconds:g} s; "
                        f"it did not: is it running, and does it hold the model?"
                    ) from error
            found = self._waiting.pop((peer, service))
        if found.terms != terms:
            found.channel.close()
            raise ProtocolError(
                f"{peer} was told other terms of this service (model, plan, limits or parties) than this "
                "party: it does not start; the owner shares the model with all three again"
            )
        return found.channel

    def give_up(self, service: bytes) -> None:
        """Let nobody wait for links of this service any more."""
        with self._changed:
            self._given_up = service
            self._changed.notify_all()

    def close(self) -> None:
        """Close everything on the desk."""
        with self._changed:
            for waiting in self._waiting.values():
                waiting.channel.close()
            self._waiting.clear()

    def _expire(self) -> None:
        """Close links that nobody came for."""
        oldest = time.monotonic() - self._keep_s
        for key in [key for key, waiting in self._waiting.items() if waiting.since < oldest]:
            self._waiting.pop(key).channel.close()
