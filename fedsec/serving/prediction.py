"""A party's side of private prediction: the routes of owner, users and the other two parties.

What a request may do follows from its certificate's role, which the transport checks before a body
is read. Each handler runs in its connection's thread; the computation has a thread of its own.
"""

from __future__ import annotations

import contextlib
import threading
from math import prod
from pathlib import Path

from fedsec.errors import (
    DeadlineError,
    FedsecError,
    PeerLostError,
    ServiceEndedError,
    TrustError,
    UsageError,
    by_code,
)
from fedsec.ring import Ring
from fedsec.serving import parts
from fedsec.serving.agreement import RequestKey, Verdict, judge_alone, refusal
from fedsec.serving.ledger import Ledger
from fedsec.serving.limits import Limits, most_images
from fedsec.serving.links import LinkDesk
from fedsec.serving.messages import (
    Answer,
    Describe,
    Description,
    ForgetModel,
    LinkOpened,
    ModelForgotten,
    ModelHeld,
    OpenLink,
    Query,
    ReadStatus,
    Serve,
    ShareModel,
    Status,
    StopService,
)
from fedsec.serving.running import RunningService, Terms
from fedsec.serving.shelf import HeldModel, Shelf
from fedsec.serving.weights import join_weights, plan_from_wire, weight_elements
from fedsec.transport import Channel, Deadline, Endpoint, Identity, Meter, Role
from fedsec.transport.service import Call, Reply, Route, call
from fedsec.transport.tls import connect

_PROBE_S = 2.0


class PredictionService:
    """Everything that one computing party does for predictions.

    Args:
        identity: of this party.
        parties: the three computing parties in order; this one is among them.
        state: folder of the party's durable state; only the ledger of charges is kept there.
        meter: counts what passes on links that this party opens.
        limits: memory and waits.

    Raises:
        UsageError: this party is none of the three.
        StateError: the ledger cannot be opened.
    """

    def __init__(
        self,
        identity: Identity,
        parties: tuple[Endpoint, ...],
        state: Path,
        *,
        meter: Meter | None = None,
        limits: Limits | None = None,
    ) -> None:
        names = [party.name for party in parties]
        if len(parties) != parts.PARTIES or identity.name not in names:
            raise UsageError(f"expected {identity.name} to be one of three computing parties, got {names}")
        self.party_id = names.index(identity.name)
        self._identity = identity
        self._parties = parties
        self._meter = meter
        self._limits = limits or Limits()
        self._ledger = Ledger(state / "serving.sqlite")
        self._desk = LinkDesk(keep_s=self._limits.setup_s)
        self._shelf = Shelf(self._limits.models)
        self._lock = threading.Lock()
        self._service: RunningService | None = None

    def routes(self) -> list[Route]:
        """Return what this party answers, and to whom."""
        owner, user = frozenset({Role.OWNER}), frozenset({Role.USER})
        party = frozenset({Role.PARTY})
        return [
            Route(ShareModel, owner, self._share_model, self._model_bytes),
            Route(ForgetModel, owner, self._forget_model),
            Route(Serve, owner, self._serve),
            Route(StopService, owner, self._stop_service),
            Route(ReadStatus, owner | party, self._read_status),
            Route(OpenLink, party, self._open_link),
            Route(Describe, user, self._describe),
            Route(Query, user, self._query, self._query_bytes, seconds=self._limits.body_s),
        ]

    def stop(self, wait_s: float = 2.0) -> None:
        """Leave a running service, cleanly if the others answer in time, and close the ledger."""
        with self._lock:
            service = self._service
        if service is not None:
            self._end(service, wait_s)
        self._desk.close()
        self._ledger.close()

    # The owner's requests.

    def _model_bytes(self, message: ShareModel) -> int:
        """Exact length of this party's part of a model."""
        plan = plan_from_wire(message.plan, message.digest)
        size = parts.body_bytes(self.party_id, weight_elements(plan), Ring(plan.ring_bits))
        if size > self._limits.model_bytes:
            raise UsageError(
                f"a model's part may have {self._limits.model_bytes} bytes here, this one has {size}"
            )
        return size

    def _share_model(self, request: Call) -> Reply:
        """Hold this party's part of a model, in memory."""
        message: ShareModel = request.message
        self._shelf.check_room(message.model)
        plan = plan_from_wire(message.plan, message.digest)
        body = request.body.read()
        part = parts.join(self.party_id, body, weight_elements(plan), Ring(plan.ring_bits))
        weights = join_weights(plan, part)
        self._shelf.put(
            HeldModel(message.model, plan, message.plan, message.digest, message.sharing, weights)
        )
        return Reply(ModelHeld(model=message.model, digest=message.digest))

    def _forget_model(self, request: Call) -> Reply:
        """Drop the part of a model that no service uses."""
        message: ForgetModel = request.message
        with self._lock:
            if (
                self._service is not None
                and not self._service.over
                and self._service.terms.model == message.model
            ):
                raise UsageError("this model is being served: stop the service first")
            self._shelf.drop(message.model, message.sharing)
        return Reply(ModelForgotten(model=message.model))

    def _serve(self, request: Call) -> Reply:
        """Start a service and reply when it answers."""
        message: Serve = request.message
        held = self._shelf.get(message.model)
        terms = Terms(
            message.service,
            message.model,
            held.digest,
            held.sharing,
            message.num_requests,
            message.quota,
            message.answered,
            message.mode,
            message.reveals,
            self._parties,
        )
        with self._lock:
            if self._service is not None and not self._service.over:
                raise UsageError("a service is running here: stop it first, one is served at a time")
            book = self._ledger.open_service(
                message.service,
                message.model,
                num_requests=message.num_requests,
                quota=message.quota,
                answered=message.answered,
            )
            service = self._service = RunningService(
                self.party_id,
                terms,
                held,
                book,
                limits=self._limits,
                link_up=lambda deadline: self._link_up(terms, deadline),
                explain=lambda error: self._explain(terms.service, error),
            )
            service.start()
        service.await_started(Deadline.after(3 * self._limits.setup_s))
        return Reply(self._status())

    def _stop_service(self, _request: Call) -> Reply:
        """End the service and reply when it has ended."""
        with self._lock:
            service = self._service
        if service is not None:
            self._end(service, self._limits.silence_s + self._limits.heartbeat_s)
        return Reply(self._status())

    def _end(self, service: RunningService, wait_s: float) -> None:
        """End a service: in step with the others, or else by breaking its links."""
        service.leave()
        self._desk.give_up(service.terms.service)
        if not service.await_end(wait_s):
            service.break_off()
            service.await_end(wait_s)

    def _read_status(self, request: Call) -> Reply:
        """Say how the service is; waits for its end as long as the message asks."""
        message: ReadStatus = request.message
        with self._lock:
            service = self._service
        if service is not None and message.wait_s > 0:
            service.await_end(message.wait_s)
        return Reply(self._status())

    def _status(self) -> Status:
        """Return the newest service's status."""
        with self._lock:
            service = self._service
        if service is None:
            return Status(state="idle", models=self._shelf.ids())
        return service.status(self._shelf.ids())

    # The links between the parties.

    def _open_link(self, request: Call) -> None:
        """Put the previous party's link on the desk, for the service that it names."""
        message: OpenLink = request.message
        previous = self._parties[(self.party_id - 1) % parts.PARTIES]
        if (request.peer.name, request.peer.public_key) != (previous.name, previous.public_key):
            raise TrustError(
                f"expected a link from {previous.name}, got one from {request.peer}; it was refused"
            )
        self._desk.put(message.service, message.terms, request.detach(LinkOpened(service=message.service)))

    def _link_up(self, terms: Terms, deadline: Deadline) -> tuple[Channel, Channel]:
        """Dial the following party, take the previous one's link."""
        following = self._parties[(self.party_id + 1) % parts.PARTIES]
        previous = self._parties[(self.party_id - 1) % parts.PARTIES]
        channel = connect(following, self._identity, deadline=deadline, meter=self._meter)
        try:
            opened = OpenLink(service=terms.service, terms=terms.digest())
            call(channel, opened, LinkOpened, deadline=deadline)
            return self._desk.take(previous.name, terms.service, terms.digest(), deadline), channel
        except BaseException:
            channel.close()
            raise

    def _explain(self, service: bytes, error: FedsecError) -> FedsecError:
        """Find out who is behind a broken service: a party that is gone, or one that ended it for a reason.

        The first error that a party sees may name the wrong one: when party 2 dies, party 1 gives up
        and closes its links, and party 0 may notice that first.
        """
        if not isinstance(error, PeerLostError):
            return error
        gone: list[str] = []
        for other in self._parties:
            if other.name == self._identity.name:
                continue
            try:
                status = self._probe(other)
            except PeerLostError:
                gone.append(other.name)
                continue
            except FedsecError:
                continue
            told = by_code(status.code)
            if status.service == service and status.code and not issubclass(told, PeerLostError):
                return told(f"{other.name} ended the service: {status.text}")
        if gone:
            return PeerLostError(
                f"{' and '.join(gone)} was lost ({error.code}): the service has ended; start the party again "
                "and share the model with all three anew"
            )
        return error

    def _probe(self, other: Endpoint) -> Status:
        """Ask another party how its service is, over a connection of its own."""
        deadline = Deadline.after(_PROBE_S)
        with connect(other, self._identity, deadline=deadline, meter=self._meter) as channel:
            return call(channel, ReadStatus(), Status, deadline=deadline)[0]

    # The users' requests.

    def _describe(self, _request: Call) -> Reply:
        """Describe the model that is being served."""
        service = self._current(None)
        return Reply(
            Description(
                service=service.terms.service,
                model=service.held.model,
                plan=service.held.plan_bytes,
                digest=service.held.digest,
                mode=service.terms.mode,
                reveals=service.terms.reveals,
            )
        )

    def _query_bytes(self, message: Query) -> int:
        """Exact length of this party's part of a request.

        Raises:
            TrustError: the owner does not allow to reveal this; the part is not read then.
            UsageError: more images than a request may have.
        """
        service = self._current(message.service)
        plan = service.held.plan
        if message.reveal not in service.terms.reveals:
            raise TrustError(
                f"reveal={message.reveal!r} is not allowed here: the owner allows "
                f"{', '.join(service.terms.reveals)}; nothing was charged"
            )
        if message.images > most_images(plan):
            raise UsageError(
                f"a request for this model may have {most_images(plan)} images, this one has {message.images}"
            )
        size = message.images * prod(plan.input_shape)
        return parts.body_bytes(self.party_id, size, Ring(plan.ring_bits))

    def _query(self, request: Call) -> Reply:
        """Take a part, wait until the parties have answered the request, reply with this party's share."""
        message: Query = request.message
        service = self._current(message.service)
        plan = service.held.plan
        key = RequestKey(bytes.fromhex(request.peer.fingerprint), message.request)
        verdict = judge_alone(key, message.images, service.book)
        if verdict is not Verdict.ACCEPT:
            raise refusal(verdict, message.images, service.book, key.fingerprint)
        size, ring = message.images * prod(plan.input_shape), Ring(plan.ring_bits)
        ticket = service.room.admit(
            key, message.images, lambda: parts.join(self.party_id, request.body.read(), size, ring)
        )
        if not ticket.done.wait(self._limits.part_s):
            text = f"the request was not answered within {self._limits.part_s:g} s: {ticket.lacking}"
            service.room.withdraw(ticket, DeadlineError(f"{text}; nothing was charged"))
            # Being computed right now, or refused above.
            if not ticket.done.wait(self._limits.answer_s):
                raise DeadlineError(
                    f"the request was not answered within {self._limits.answer_s:g} s of its computation; "
                    "it was charged"
                )
        return Reply(
            Answer(
                request=message.request,
                images=message.images,
                fraction_bits=plan.output_fraction_bits,
                reveal=message.reveal,
            ),
            ticket.outcome(),
        )

    def _current(self, wanted: bytes | None) -> RunningService:
        """Return the running service.

        Raises:
            ServiceEndedError: there is none, or another than the one wanted.
            FedsecError: what ended the last one.
        """
        with self._lock:
            service = self._service
        if service is None:
            raise ServiceEndedError("no model is served here now: the owner starts a service first")
        with contextlib.suppress(DeadlineError):
            service.await_started(Deadline.after(self._limits.setup_s))
        service.room.check_open()
        if wanted is not None and wanted != service.terms.service:
            raise ServiceEndedError("that service has ended and another one runs: connect again")
        return service
