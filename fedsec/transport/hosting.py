"""Connections whose requests another thread takes: one that answers them all, one after the other.

To wake a thread costs some 50 microseconds, and twice as much while two of them want the interpreter: for a
request that takes a millisecond that is a lot, once for the request and once for the answer. So a
connection's own thread may leave its connection to the thread that does the work. The host takes requests
that have come whole, and only those; it never waits for a peer. Whatever else there is to do (a request in
pieces, a long body, an error to tell, an answer that the peer does not take, the end of the connection) it
gives back to the connection's own thread, which has all the time that it needs.

Two threads must never use one connection: TLS is not made for it. A connection belongs to the host until the
host gives it back, and to its own thread from then on. While one of its requests is being worked on nothing
more is read from it, whatever its peer sends, so it cannot be given back for a reason of its own before that
request has its answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from fedsec.errors import DeadlineError, FedsecError, PeerLostError
from fedsec.transport.bodies import UNASKED_BYTES
from fedsec.transport.channel import Channel
from fedsec.transport.deadline import Deadline
from fedsec.transport.jobs import progress
from fedsec.transport.service import (
    Call,
    Occupation,
    Refused,
    Reply,
    Route,
    most_frame_bytes,
    open_request,
    outcome,
    send_error,
    send_outcome,
    serve_call,
    start_reply,
)
from fedsec.transport.several import Bell
from fedsec.transport.sockets import SocketChannel

MOST_GUESTS = 64
"""Connections that one host looks after at a time; others keep their own threads."""

Rest = Callable[[], None]
"""What is left to do for a request, in the connection's own thread."""


@dataclass(slots=True, eq=False)
class Guest:
    """A connection that is with the host.

    Attributes:
        channel: The connection; only the host uses it until it is given back.
        occupation: What its server knows of it.
        heard: When its last request came, or when it came to the host.
    """

    channel: SocketChannel
    occupation: Occupation
    heard: float = field(default_factory=time.monotonic)
    rest: Rest | None = None
    back: threading.Event = field(default_factory=threading.Event)

    def patience(self, idle_s: float) -> float:
        """Return how long to wait until it is looked again whether there was no request for ``idle_s``."""
        return idle_s if self.occupation.busy else max(0.0, self.heard + idle_s - time.monotonic())


class Guests:
    """The connections that are with one host, and what the host does with them.

    ``keep`` is for the connections' own threads; everything else but ``close`` is for the host's.

    Args:
        route: The one kind of request that the host takes; its handler takes no connection over.
        begin: Takes a request that has come whole; ``answer`` or ``hand_over`` must follow for every one.
        bell: Wakes the host.
        seconds: Time for an answer that the peer does not take at once.
    """

    def __init__(
        self, route: Route, begin: Callable[[Guest, Call], None], bell: Bell, seconds: float
    ) -> None:
        self._route = route
        self._label = f"{route.tag}/request"
        self._begin = begin
        self._bell = bell
        self._seconds = seconds
        self._lock = threading.Lock()
        self._guests: dict[Channel, Guest] = {}
        # Replaced and never changed, so that the host may look through it without the lock.
        self._present: tuple[Guest, ...] = ()
        self._closed = False

    @property
    def channels(self) -> tuple[SocketChannel, ...]:
        """The connections of which a request may be taken: one at a time of each."""
        return tuple(guest.channel for guest in self._present if not guest.occupation.busy)

    def keep(self, channel: Channel, occupation: Occupation, idle_s: float) -> Rest | None:
        """Leave a connection to the host until it is given back; see ``service.Host``."""
        if not isinstance(channel, SocketChannel):
            return None
        guest = Guest(channel, occupation)
        with self._lock:
            if self._closed or occupation.ending or len(self._guests) >= MOST_GUESTS:
                return None
            self._guests[channel] = guest
            self._present = tuple(self._guests.values())
        self._bell.ring()
        while not guest.back.wait(guest.patience(idle_s)):
            if occupation.busy or guest.heard + idle_s > time.monotonic():
                continue
            # The host sees the end and gives the connection back; with work, if a request came just now.
            channel.interrupt()
            if not guest.back.wait(self._seconds) and self._remove(guest, None):
                raise DeadlineError(f"expected a request of {channel.peer} within {idle_s:g} s and got none")
            break
        return guest.rest

    def receive(self, channel: Channel) -> None:
        """Take what has come on a connection, or give the connection back."""
        guest = self._guests.get(channel)
        if guest is None or guest.occupation.busy:
            return
        guest.occupation.busy, guest.heard = True, time.monotonic()
        try:
            frame = guest.channel.arrived(self._label, most_frame_bytes(channel))
            if frame is None:
                self.give_back(guest)
                return
            call = open_request(channel, frame, self._route, Deadline.after(self._seconds))
        except Refused as refused:
            self.give_back(guest, partial(refused.answer, channel, Deadline.after(self._seconds)))
        except FedsecError as error:
            self.give_back(guest, partial(_fail, error))
        else:
            self._take(guest, call)

    def _take(self, guest: Guest, call: Call) -> None:
        if not call.complete:
            self.give_back(guest, partial(self._serve_late, guest, call))
            return
        error = outcome(self._route.tag, call.peer, lambda: self._begin(guest, call))
        if isinstance(error, FedsecError):
            deadline = Deadline.after(self._seconds)
            self.give_back(guest, partial(send_error, guest.channel, self._route.tag, error, deadline))

    def _serve_late(self, guest: Guest, call: Call) -> None:
        call.let_body_come()
        serve_call(guest.channel, self._route, call, self._seconds)

    def answer(self, guest: Guest, reply: Reply) -> None:
        """Send an answer; what the peer does not take at once is left to the connection's own thread.

        Nothing is sent on a connection that is not with the host any more.
        """
        if self._guests.get(guest.channel) is not guest:
            return
        if memoryview(reply.body).nbytes > UNASKED_BYTES:
            self.hand_over(guest, lambda: reply)
            return
        try:
            job = start_reply(guest.channel, self._route.tag, reply)
        except PeerLostError as error:
            self.give_back(guest, partial(_fail, error))
            return
        guest.occupation.busy = job is not None
        if job is not None:
            self.give_back(guest, partial(progress, [job], Deadline.after(self._seconds)))
        elif guest.occupation.ending:
            self.give_back(guest)

    def hand_over(self, guest: Guest, work: Callable[[], Reply | None]) -> bool:
        """Let the connection's own thread find the answer to a request that the host has taken.

        Returns:
            Whether it will; false if the connection is not with the host any more.
        """
        return self.give_back(guest, partial(self._serve, guest, work))

    def _serve(self, guest: Guest, work: Callable[[], Reply | None]) -> None:
        answer = outcome(self._route.tag, guest.channel.peer, work)
        send_outcome(guest.channel, self._route.tag, answer, Deadline.after(self._seconds))

    def give_back(self, guest: Guest, rest: Rest | None = None) -> bool:
        """Return a connection to its own thread, with what is left to do.

        Returns:
            Whether it was with the host; if not, nobody does what is left to do.
        """
        given = self._remove(guest, rest)
        if given:
            guest.back.set()
        return given

    def _remove(self, guest: Guest, rest: Rest | None) -> bool:
        with self._lock:
            # By then the same connection may be here again, as another guest.
            if self._guests.get(guest.channel) is not guest:
                return False
            del self._guests[guest.channel]
            self._present = tuple(self._guests.values())
            guest.rest, guest.occupation.busy = rest, rest is not None
        return True

    def close(self) -> None:
        """Return all connections and take no more; the host does not look after any afterwards."""
        with self._lock:
            self._closed = True
            guests = list(self._guests.values())
        for guest in guests:
            self.give_back(guest)


def _fail(error: FedsecError) -> None:
    """Raise, in the connection's own thread, what the host has met."""
    raise error
