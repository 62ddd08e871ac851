"""The parts that wait at one party for their batch, and the threads that wait for the answers.

Connection threads put a part in and wait on its ticket; the compute thread looks, reserves and
resolves. Memory is bounded: so many images in all, so many requests and images a
certificate.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from fedsec.errors import DeadlineError, FedsecError, UsageError
from fedsec.nn import Reveal
from fedsec.serving.agreement import RequestKey, Wish
from fedsec.serving.parts import Part
from fedsec.transport.several import Bell


@dataclass(slots=True, eq=False)
class Ticket:
    """A waiting request: its part, and later its answer or its error.

    Attributes:
        since: when its part was there.
        decided: what the compute thread does with the ticket once, if it looks after the connection itself.
    """

    key: RequestKey
    images: int
    reveal: Reveal
    part: Part | None = field(default=None, repr=False)
    since: float = math.inf
    lacking: str = "the leader never proposed it"
    reserved: bool = False
    given_up: FedsecError | None = None
    done: threading.Event = field(default_factory=threading.Event)
    answer: bytes | None = field(default=None, repr=False)
    error: FedsecError | None = None
    decided: Callable[[Ticket], None] | None = None

    def resolve(self, answer: bytes) -> None:
        """Hand the answer to the waiting connection."""
        self.answer = answer
        self.done.set()
        self.tell()

    def refuse(self, error: FedsecError) -> None:
        """Hand an error to the waiting connection."""
        self.error = error
        self.done.set()
        self.tell()

    def tell(self) -> None:
        """Call ``decided``, if it is still to be called."""
        decided, self.decided = self.decided, None
        if decided is not None:
            decided(self)

    def outcome(self) -> bytes:
        """Return the answer, or raise what came instead."""
        if self.answer is None:
            raise self.error if self.error is not None else UsageError("the request was given up")
        return self.answer


class WaitingRoom:
    """All tickets of one service at one party; closed once the service has ended.

    Args:
        max_images: images that wait in all.
        max_per_user: requests of one certificate.
        max_images_per_user: images of one certificate.
        longest_s: a part is not kept for longer than this; whoever waits for its answer gives up earlier.

    Attributes:
        bell: rings whenever there is something that the compute thread may want to look at.
    """

    def __init__(
        self, *, max_images: int, max_per_user: int, max_images_per_user: int, longest_s: float
    ) -> None:
        self._max_images = max_images
        self._max_per_user = max_per_user
        self._max_images_per_user = max_images_per_user
        self._longest_s = longest_s
        self.bell = Bell()
        self._changed = threading.Condition()
        self._tickets: dict[RequestKey, Ticket] = {}
        self._closed: FedsecError | None = None
        self._ending: FedsecError | None = None

    def admit(
        self,
        key: RequestKey,
        images: int,
        reveal: Reveal,
        read: Callable[[], Part],
        decided: Callable[[Ticket], None] | None = None,
    ) -> Ticket:
        """Take a place for a request, then read its part into it; on error nothing is kept.

        The place comes first, so that what is being read counts against the same bounds as what waits.

        Args:
            key: names the request.
            images: how many it has.
            reveal: what it asks for.
            read: returns its part.
            decided: given by the compute thread for a connection that it looks after: called there with the
                ticket once the next vote is over, with an answer, an error, or neither.

        Raises:
            UsageError: the same request waits already, or too many wait.
            FedsecError: whatever ended the service, or what ``read`` raised.
        """
        with self._changed:
            self._check_space(key, images)
            ticket = self._tickets[key] = Ticket(key, images, reveal, decided=decided)
        try:
            part = read()
        except BaseException:
            with self._changed:
                if self._tickets.get(key) is ticket:
                    del self._tickets[key]
            raise
        with self._changed:
            self.check_open()
            ticket.part, ticket.since = part, time.monotonic()
        if decided is None:
            self.bell.ring()
        return ticket

    def _check_space(self, key: RequestKey, images: int) -> None:
        self.check_open()
        if self._ending is not None:
            raise type(self._ending)(*self._ending.args)
        if key in self._tickets:
            raise UsageError("a part of this request waits here: draw a fresh id for every request")
        same = [
            ticket.images for ticket in self._tickets.values() if ticket.key.fingerprint == key.fingerprint
        ]
        in_all = sum(ticket.images for ticket in self._tickets.values())
        # Half of the room is for certificates of which nothing waits yet.
        room = self._max_images // 2 if same else self._max_images
        if (
            len(same) >= self._max_per_user
            or sum(same) + images > self._max_images_per_user
            or in_all + images > room
        ):
            raise UsageError(
                f"too much waits here: {len(same)} requests of this certificate (of {self._max_per_user}) "
                f"with {sum(same)} images (of {self._max_images_per_user}), {in_all} images in all "
                f"(of {room}); ask again later"
            )

    def check_open(self) -> None:
        """Raise what ended the service, if it has ended; a fresh error for every sender."""
        if self._closed is not None:
            raise type(self._closed)(*self._closed.args)

    def held(self) -> dict[RequestKey, Wish]:
        """What every waiting request asks for, oldest first."""
        with self._changed:
            return {
                key: Wish(one.images, one.reveal)
                for key, one in self._tickets.items()
                if one.part is not None and one.given_up is None
            }

    def reserve(self, keys: Iterable[RequestKey]) -> dict[RequestKey, Wish]:
        """Keep these requests from being withdrawn until the parties have decided; what those here ask for.

        Without it a client that gives up between this party's vote and the batch would leave the
        other two waiting for a computation that this party has no part for.
        """
        with self._changed:
            wanted = [self._tickets[key] for key in keys if key in self._tickets]
            here = [ticket for ticket in wanted if ticket.part is not None and ticket.given_up is None]
            for ticket in here:
                ticket.reserved = True
            return {ticket.key: Wish(ticket.images, ticket.reveal) for ticket in here}

    def put_off(self, key: RequestKey, lacking: str) -> None:
        """Let a reserved request wait on, and remember why, for the error that its sender may get."""
        with self._changed:
            ticket = self._tickets.get(key)
            if ticket is None:
                return
            ticket.reserved, ticket.lacking = False, lacking
            error = ticket.given_up
        if error is not None:
            self.refuse(key, error)

    def parts(self, keys: Iterable[RequestKey]) -> list[Part]:
        """Return the parts of reserved requests; they stay here until they are answered."""
        with self._changed:
            held = [self._tickets[key].part for key in keys]
        return [part for part in held if part is not None]

    def unpack(self, keys: Iterable[RequestKey]) -> None:
        """Expand the parts of reserved requests, while the other parties' word is waited for."""
        for part in self.parts(key for key in keys if key in self._tickets):
            part.unpack()

    def resolve(self, key: RequestKey, answer: bytes) -> None:
        """Answer one request and let it go."""
        with self._changed:
            ticket = self._tickets.pop(key)
            self._changed.notify_all()
        ticket.resolve(answer)

    def refuse(self, key: RequestKey, error: FedsecError) -> None:
        """Take one request out of the line, if it is there, and tell its sender why."""
        with self._changed:
            ticket = self._tickets.pop(key, None)
            self._changed.notify_all()
        if ticket is not None:
            ticket.refuse(error)

    def withdraw(self, ticket: Ticket, error: FedsecError) -> None:
        """Give up waiting for a ticket; while the parties are deciding on it, only if it is put off."""
        with self._changed:
            if self._tickets.get(ticket.key) is not ticket:
                return
            if ticket.reserved:
                ticket.given_up = error
                return
            del self._tickets[ticket.key]
            self._changed.notify_all()
        ticket.refuse(error)

    def release(self) -> None:
        """After a vote: let those wait by themselves whom the compute thread looked after in vain.

        What is older than anyone waits goes, whatever became of its sender: it would be voted on for ever.
        """
        with self._changed:
            left = list(self._tickets.values())
        oldest = time.monotonic() - self._longest_s
        for ticket in left:
            if ticket.since < oldest:
                self.withdraw(ticket, DeadlineError(f"no answer within {self._longest_s:g} s: given up"))
            else:
                ticket.tell()

    def drain(self, error: FedsecError, seconds: float) -> None:
        """Refuse every new request with this error, and wait until what was accepted is answered.

        Args:
            error: what those get who come now.
            seconds: longest wait; a request of which another party has no part may never be answered.
        """
        with self._changed:
            self._ending = error
            self._changed.wait_for(lambda: not self._tickets, seconds)

    def keys(self) -> Collection[RequestKey]:
        """Return what waits here, in whatever state."""
        with self._changed:
            return set(self._tickets)

    @property
    def occupied(self) -> int:
        """How many requests wait here."""
        with self._changed:
            return len(self._tickets)

    def close(self, error: FedsecError) -> None:
        """Refuse everything that waits and everything that comes."""
        with self._changed:
            self._closed = error
            tickets = list(self._tickets.values())
            self._tickets.clear()
            self._changed.notify_all()
        for ticket in tickets:
            ticket.refuse(error)

    def wake(self) -> None:
        """Wake the compute thread, for example because the service is to stop."""
        self.bell.ring()
