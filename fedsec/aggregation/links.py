"""How hospitals, server and aggregators reach an aggregator: one request, one reply.

Client and collector are written against :class:`Links`; :class:`TlsLinks` is the real one, ``memory`` has
the twin for one process.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from typing import Protocol, TypeVar

import msgspec

from fedsec.aggregation.signing import Buffer
from fedsec.errors import DeadlineError, PeerLostError, UsageError
from fedsec.transport import Channel, Deadline, Endpoint, Identity, Meter
from fedsec.transport.calling import call
from fedsec.transport.tls import connect

T = TypeVar("T", bound=msgspec.Struct)


class Links(Protocol):
    """Requests to aggregators by name."""

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
        """Send a request and return the reply with its body.

        Raises:
            FedsecError: What the aggregator answered; PeerLostError or DeadlineError name it when it did not.
        """

    def close(self) -> None:
        """Close every connection."""


class TlsLinks:
    """One kept connection to each aggregator, made at the first request and again when it was lost.

    Every request of the aggregation may be repeated safely, so a request over a kept connection that turns
    out to be dead is sent once more over a new one.

    Args:
        endpoints: The pinned aggregators.
        identity: Who connects.
        meter: Counts the bytes of all connections; each has its own when missing.
    """

    def __init__(self, endpoints: Iterable[Endpoint], identity: Identity, meter: Meter | None = None) -> None:
        self._endpoints = {endpoint.name: endpoint for endpoint in endpoints}
        self._identity = identity
        self._meter = meter
        self._channels: dict[str, Channel] = {}
        self._lock = threading.Lock()
        self._interrupted = False

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
        """Send a request and return the reply with its body; see :class:`Links`."""
        channel, kept = self._channel(aggregator, deadline)
        try:
            return call(channel, message, reply, body=body, deadline=deadline, max_body_bytes=max_body_bytes)
        except PeerLostError as error:
            self._drop(aggregator)
            if not kept or isinstance(error, DeadlineError):
                raise
        channel, _ = self._channel(aggregator, deadline)
        return call(channel, message, reply, body=body, deadline=deadline, max_body_bytes=max_body_bytes)

    def interrupt(self) -> None:
        """End every request that another thread waits for, and refuse new ones; :meth:`close` comes after."""
        with self._lock:
            self._interrupted = True
            channels = list(self._channels.values())
        for channel in channels:
            channel.interrupt()

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            channel.close()

    def _channel(self, aggregator: str, deadline: Deadline) -> tuple[Channel, bool]:
        with self._lock:
            if self._interrupted:
                raise PeerLostError(f"the connection to '{aggregator}' was ended on this side")
            if (kept := self._channels.get(aggregator)) is not None:
                return kept, True
        if aggregator not in self._endpoints:
            raise UsageError(
                f"aggregator '{aggregator}' has no address here; known: {sorted(self._endpoints)}"
            )
        channel = connect(self._endpoints[aggregator], self._identity, deadline=deadline, meter=self._meter)
        with self._lock:
            self._channels[aggregator] = channel
        return channel, False

    def _drop(self, aggregator: str) -> None:
        with self._lock:
            channel = self._channels.pop(aggregator, None)
        if channel is not None:
            with contextlib.suppress(OSError):
                channel.close()
