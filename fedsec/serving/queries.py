"""A user's request at one party: what may be asked for, its ticket, and the reply."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

from fedsec.errors import DeadlineError, PeerLostError, ServiceEndedError, TrustError, UsageError
from fedsec.nn import Plan, Reveal
from fedsec.ring import Ring
from fedsec.serving import parts
from fedsec.serving.agreement import RequestKey, Verdict, judge_alone
from fedsec.serving.book import ServiceBook
from fedsec.serving.limits import Limits
from fedsec.serving.messages import Answer, Query
from fedsec.serving.refusals import refusal
from fedsec.serving.waiting import Ticket, WaitingRoom
from fedsec.transport.hosting import Guest, Guests
from fedsec.transport.identity import Role
from fedsec.transport.service import Call, Reply, Route


class Queries:
    """The requests for one service at one party.

    Args:
        party_id: 0, 1 or 2.
        service: the service's id.
        plan: the served network.
        heads: for all that may be revealed, the plan whose output is the answer.
        book: the charges.
        room: where the parts wait.
        limits: waits, and the most images of a request.

    Attributes:
        guests: the users' connections that the compute thread looks after.
    """

    def __init__(
        self,
        party_id: int,
        service: bytes,
        plan: Plan,
        *,
        heads: Mapping[Reveal, Plan],
        book: ServiceBook,
        room: WaitingRoom,
        limits: Limits,
    ) -> None:
        self._party_id = party_id
        self._service = service
        self._size = prod(plan.input_shape)
        self._ring = Ring(plan.ring_bits)
        self._heads = heads
        self._book = book
        self._room = room
        self._limits = limits
        route = Route(Query, frozenset({Role.USER}), self.answer, self.body_bytes)
        self.guests = Guests(route, self._host, room.bell, limits.body_s)

    def body_bytes(self, message: Query) -> int:
        """Exact length of this party's part of a request.

        Raises:
            ServiceEndedError: the request is for another service.
            TrustError: the owner does not allow to reveal this; the part is not read then.
            UsageError: more images than a request may have.
        """
        self._check_service(message)
        if message.reveal not in self._heads:
            raise TrustError(
                f"reveal={message.reveal!r} is not allowed here: the owner allows "
                f"{', '.join(self._heads)}; nothing was charged"
            )
        if message.images > self._limits.batch_images:
            raise UsageError(
                f"a request for this model may have {self._limits.batch_images} images, this one has "
                f"{message.images}"
            )
        return parts.body_bytes(self._party_id, message.images * self._size, self._ring)

    def _check_service(self, message: Query) -> None:
        if message.service != self._service:
            raise ServiceEndedError("that service has ended and another one runs: connect again")

    def answer(self, call: Call) -> Reply:
        """Take a part, wait until the parties have answered the request, reply with this party's share."""
        ticket = self._admit(call)
        return self._wait_for(call.message, ticket)

    def _admit(self, call: Call, decided: Callable[[Ticket], None] | None = None) -> Ticket:
        """Read a part into the room, if its request may be answered at all."""
        message: Query = call.message
        # Again: another service may have begun since the length of the body was checked.
        self._check_service(message)
        key = RequestKey(bytes.fromhex(call.peer.fingerprint), message.request)
        verdict = judge_alone(key, message.images, self._book)
        if verdict is not Verdict.ACCEPT:
            raise refusal(verdict, message.images, self._book, key.fingerprint)
        self._book.meet(key.fingerprint, call.peer.name)
        size = message.images * self._size

        def read() -> parts.Part:
            return parts.join(self._party_id, call.body.read(), size, self._ring)

        return self._room.admit(key, message.images, message.reveal, read, decided)

    def _wait_for(self, message: Query, ticket: Ticket) -> Reply:
        """Wait for the decision on a ticket; for its answer then."""
        if not ticket.done.wait(self._limits.part_s):
            text = f"the request was not answered within {self._limits.part_s:g} s: {ticket.lacking}"
            self._room.withdraw(ticket, DeadlineError(f"{text}; nothing was charged"))
            # Being computed right now, or refused above.
            if not ticket.done.wait(self._limits.answer_s):
                raise DeadlineError(
                    f"the request was not answered within {self._limits.answer_s:g} s of its computation; "
                    "it was charged"
                )
        return self._reply(message, ticket)

    def _reply(self, message: Query, ticket: Ticket) -> Reply:
        answer = ticket.outcome()
        told = Answer(
            request=message.request,
            images=message.images,
            fraction_bits=self._heads[message.reveal].output_fraction_bits,
            reveal=message.reveal,
        )
        return Reply(told, answer, self.guests)

    # In the compute thread.

    def _host(self, guest: Guest, call: Call) -> None:
        """Take a part without waiting for anything; the answer goes out when the ticket has it."""
        message: Query = call.message

        def decided(ticket: Ticket) -> None:
            if ticket.answer is not None:
                self.guests.answer(guest, self._reply(message, ticket))
            # An error to tell, or a wait that may become long: the connection's own thread does both.
            elif not self.guests.hand_over(guest, lambda: self._wait_for(message, ticket)):
                # Nobody would ever give this ticket up: it would keep its place as long as the service runs.
                lost = f"expected {call.peer} to wait for its answer; its connection has ended"
                self._room.withdraw(ticket, PeerLostError(lost))

        self._admit(call, decided)
