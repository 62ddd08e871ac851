"""How hospitals, server and aggregators reach an aggregator: one request, one reply.

A hospital asks all aggregators at the same time: the short requests are answered while the long one is
still being sent. Client and collector are written against :class:`Links`; :class:`TlsLinks` is the real
one, ``memory`` has the twin for one process.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import msgspec

from fedsec.aggregation.signing import Buffer
from fedsec.errors import DeadlineError, FedsecError, PeerLostError, UsageError
from fedsec.transport import Channel, Deadline, Endpoint, Identity, Meter
from fedsec.transport.calling import Calling, call
from fedsec.transport.several import wait_any
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

    def call_each(
        self, message: msgspec.Struct, bodies: Mapping[str, Buffer], reply: type[T], *, deadline: Deadline
    ) -> dict[str, T]:
        """Send one request with a body of its own to each of several aggregators, at the same time.

        Args:
            message: The request, the same for all.
            bodies: The body for each aggregator by name.
            reply: Class of the expected answers, which have no bodies.
            deadline: When to give up.

        Returns:
            The answer of each aggregator.

        Raises:
            FedsecError: As :meth:`call`, of the first aggregator that failed. The others were asked all the
                same.
        """

    def close(self) -> None:
        """Close every connection."""


@dataclass(frozen=True, slots=True)
class _Question(Generic[T]):
    message: msgspec.Struct
    body: Buffer
    reply: type[T]
    deadline: Deadline

    def over(self, channel: Channel) -> Calling[T]:
        return Calling(channel, self.message, self.reply, body=self.body, deadline=self.deadline)


@dataclass(frozen=True, slots=True)
class _UnderWay(Generic[T]):
    question: _Question[T]
    calling: Calling[T]
    kept: bool


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

    def connect(self, deadline: Deadline) -> None:
        """Open the connections that are missing, so that the first requests need not wait for them.

        Raises:
            TrustError, PeerLostError: As :func:`~fedsec.transport.tls.connect`.
        """
        for name in self._endpoints:
            self._channel(name, deadline)

    def call_each(
        self, message: msgspec.Struct, bodies: Mapping[str, Buffer], reply: type[T], *, deadline: Deadline
    ) -> dict[str, T]:
        """Send a request to several aggregators at the same time; see :class:`Links`."""
        answers: dict[str, T] = {}
        failed: dict[str, FedsecError] = {}
        under_way: dict[str, _UnderWay[T]] = {}
        try:
            for name in sorted(bodies, key=lambda one: memoryview(bodies[one]).nbytes):
                with _noted(failed, name):
                    question = _Question(message, bodies[name], reply, deadline)
                    under_way[name] = self._begin(name, question)
            while under_way:
                for name in _heard_of(under_way, deadline):
                    answer = None
                    with _noted(failed, name):
                        answer = self._hear(name, under_way[name])
                    if answer is not None:
                        answers[name] = answer
                    if answer is not None or name in failed:
                        del under_way[name]
        finally:
            # Left only by an error that is not ours: answers that nobody hears would come out of step.
            for name in under_way:
                self._drop(name)
        # Who failed first: after it the time may have been over for others, which had answered.
        for error in failed.values():
            raise error
        return answers

    def _begin(self, name: str, question: _Question[T]) -> _UnderWay[T]:
        channel, kept = self._channel(name, question.deadline)
        try:
            return _UnderWay(question, question.over(channel), kept)
        except PeerLostError as error:
            self._drop(name)
            if not kept or isinstance(error, DeadlineError):
                raise
        channel, _ = self._channel(name, question.deadline)
        return _UnderWay(question, question.over(channel), kept=False)

    def _hear(self, name: str, under_way: _UnderWay[T]) -> T | None:
        question = under_way.question
        try:
            answer = under_way.calling.hear()
        except PeerLostError as error:
            self._drop(name)
            if not under_way.kept or isinstance(error, DeadlineError):
                raise
            answer = self.call(
                name, question.message, question.reply, body=question.body, deadline=question.deadline
            )
        return None if answer is None else answer[0]

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


def _heard_of(under_way: Mapping[str, _UnderWay[T]], deadline: Deadline) -> list[str]:
    """Wait for a word of any aggregator: one that is silent must not use up the time of the others.

    Returns:
        Those that have said something; all when the time is over.
    """
    names = {one.calling.channel: name for name, one in under_way.items()}
    left = max(0.0, deadline.at - time.monotonic())
    return [names[channel] for channel in wait_any(list(names), left)] or list(under_way)


@contextlib.contextmanager
def _noted(failed: dict[str, FedsecError], name: str) -> Iterator[None]:
    try:
        yield
    except FedsecError as error:
        failed[name] = error
