"""One request to each of the three parties at the same time, each over its own connection."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import msgspec

from fedsec.errors import FedsecError
from fedsec.transport import Channel, Deadline, Endpoint, Identity, Meter
from fedsec.transport.service import call
from fedsec.transport.tls import connect

GRACE_S = 2.0
"""After the first error the others get this long: usually they answer with the same one."""

T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Ask:
    """What one party is asked."""

    message: msgspec.Struct
    body: bytes = field(default=b"", repr=False)
    max_body_bytes: int = 0

    def of(self, channel: Channel, reply: type[T], deadline: Deadline) -> tuple[T, bytearray]:
        """Ask over a channel and return the answer."""
        limit = self.max_body_bytes
        return call(channel, self.message, reply, body=self.body, deadline=deadline, max_body_bytes=limit)


@dataclass(slots=True)
class _Outcomes(Generic[T]):
    """What came back, by party; the first error in time is the one that tells most."""

    replies: dict[int, tuple[T, bytearray]] = field(default_factory=dict)
    errors: list[FedsecError] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def settled(self, expected: int) -> bool:
        """Whether every party has answered or failed."""
        return len(self.replies) + len(self.errors) >= expected

    def collect(self, index: int, ask: Callable[[], tuple[T, bytearray]]) -> None:
        """Ask one party, in a thread of its own, and note what came."""
        error: FedsecError | None = None
        try:
            answer = ask()
        except FedsecError as failed:
            error = failed
        except Exception as unexpected:
            # A thread's exception would be lost, and the caller would wait for ever.
            error = FedsecError(f"the request to party {index} failed: {type(unexpected).__name__}")
        with self.changed:
            if error is None:
                self.replies[index] = answer
            else:
                self.errors.append(error)
            self.changed.notify_all()


def connect_all(
    parties: Sequence[Endpoint], identity: Identity, deadline: Deadline, meter: Meter
) -> tuple[Channel, ...]:
    """Open a connection to every party, or to none.

    Raises:
        TrustError: a party is not the pinned one, or refuses this certificate.
        PeerLostError, DeadlineError: a party does not answer; the text names it.
    """
    with ExitStack() as opened:
        channels = tuple(
            opened.enter_context(connect(party, identity, deadline=deadline, meter=meter))
            for party in parties
        )
        opened.pop_all()
        return channels


def ask_each(
    channels: Sequence[Channel], asks: Sequence[Ask], reply: type[T], deadline: Deadline
) -> list[tuple[T, bytearray]]:
    """Ask every party at once; returns the replies in the parties' order.

    The calls are made in threads because a party may answer only after all of them were asked.

    Raises:
        FedsecError: the first error that came, named after its party. Connections on which an answer is
            still outstanding then are interrupted and closed.
    """
    outcomes: _Outcomes[T] = _Outcomes()
    threads = [
        threading.Thread(
            target=outcomes.collect, args=(index, partial(ask.of, channel, reply, deadline)), daemon=True
        )
        for index, (channel, ask) in enumerate(zip(channels, asks, strict=True))
    ]
    # The leader, party 0, proposes a request as soon as it has its part: the others get theirs before.
    for thread in reversed(threads):
        thread.start()
    with outcomes.changed:
        outcomes.changed.wait_for(lambda: outcomes.errors or outcomes.settled(len(threads)))
        outcomes.changed.wait_for(lambda: outcomes.settled(len(threads)), GRACE_S)
    for channel, thread in zip(channels, threads, strict=True):
        if thread.is_alive() and outcomes.errors:
            channel.interrupt()
        thread.join()
    if outcomes.errors:
        raise outcomes.errors[0]
    return [outcomes.replies[index] for index in range(len(channels))]
