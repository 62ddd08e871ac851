"""A party's side of private prediction: the routes of owner, users and the other two parties.

What a request may do follows from its certificate's role, which the transport checks before a body
is read. Each handler runs in its connection's thread; the computation has a thread of its own.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

from fedsec.aggregation.sealed.state import SealedStates
from fedsec.errors import (
    DeadlineError,
    ServiceEndedError,
    UsageError,
)
from fedsec.ring import Ring
from fedsec.serving import parts, sealed
from fedsec.serving.ledger import Ledger
from fedsec.serving.limits import Limits, check_model_bytes
from fedsec.serving.messages import (
    Describe,
    Description,
    ForgetModel,
    LedgerPage,
    ModelForgotten,
    ModelHeld,
    OpenLink,
    Query,
    ReadCount,
    ReadLedger,
    ReadStatus,
    Serve,
    ServiceCount,
    ShareModel,
    ShareSealed,
    Status,
    StopService,
)
from fedsec.serving.neighbours import Neighbours
from fedsec.serving.running import RunningService, Terms
from fedsec.serving.shelf import HeldModel, Shelf
from fedsec.serving.spending import Price, check_noise
from fedsec.serving.weights import join_weights, plan_from_wire, weight_elements
from fedsec.transport import Deadline, Endpoint, Identity, Meter, Role
from fedsec.transport.service import Call, Reply, Route


class PredictionService:
    """Everything that one computing party does for predictions.

    Args:
        identity: of this party.
        parties: the three computing parties in order; this one is among them.
        state: folder of the party's durable state; the ledger of charges is kept there, and sealed models of
            which trainings have left it a share are read from it.
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
        self._parties = parties
        self._limits = limits or Limits()
        self._neighbours = Neighbours(identity, parties, meter, self._limits)
        self._ledger = Ledger(state / "serving.sqlite")
        self._states = SealedStates(state)
        self._shelf = Shelf(self._limits.models)
        self._lock = threading.Lock()
        self._service: RunningService | None = None

    def routes(self) -> list[Route]:
        """Return what this party answers, and to whom."""
        owner, user = frozenset({Role.OWNER}), frozenset({Role.USER})
        party = frozenset({Role.PARTY})
        return [
            Route(ShareModel, owner, self._share_model, self._model_bytes),
            Route(ShareSealed, owner, self._share_sealed),
            Route(ForgetModel, owner, self._forget_model),
            Route(Serve, owner, self._serve),
            Route(StopService, owner, self._stop_service),
            Route(ReadStatus, owner | party, self._read_status),
            Route(ReadCount, owner, self._read_count),
            Route(ReadLedger, owner, self._read_ledger),
            Route(OpenLink, party, self._neighbours.open_link),
            Route(Describe, user, self._describe),
            Route(Query, user, self._query, self._query_bytes, seconds=self._limits.body_s),
        ]

    def stop(self, wait_s: float = 1.0) -> None:
        """Leave a running service, cleanly if the others answer in time, and close the ledger.

        Args:
            wait_s: for the others, after what was accepted is answered.
        """
        with self._lock:
            service = self._service
        if service is not None:
            self._end(service, wait_s)
        self._neighbours.close()
        self._ledger.close()

    # The owner's requests.

    def _model_bytes(self, message: ShareModel) -> int:
        """Exact length of this party's part of a model."""
        plan = plan_from_wire(message.plan, message.digest)
        size = parts.body_bytes(self.party_id, weight_elements(plan), Ring(plan.ring_bits))
        check_model_bytes(size, self._limits.model_bytes)
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

    def _share_sealed(self, request: Call) -> Reply:
        """Hold this party's part of a model that nobody has, from its own sealed state."""
        message: ShareSealed = request.message
        self._shelf.check_room(message.model)
        self._shelf.put(sealed.take(message, self._states, self._limits.model_bytes))
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
            message.noise,
        )
        check_noise(message.noise, message.reveals)
        price = None if message.noise is None else Price.of(message.noise, held.plan)
        with self._lock:
            if self._service is not None and not self._service.over:
                raise UsageError("a service is running here: stop it first, one is served at a time")
            book = self._ledger.open_service(
                message.service,
                message.model,
                num_requests=message.num_requests,
                quota=message.quota,
                answered=message.answered,
                price=price,
            )
            service = self._service = RunningService(
                self.party_id,
                terms,
                held,
                book,
                limits=self._limits,
                link_up=lambda deadline: self._neighbours.link_up(terms, deadline),
                explain=lambda error: self._neighbours.explain(terms.service, error),
            )
            service.start()
        service.await_started(Deadline.after(4 * self._limits.setup_s))
        return Reply(self._status())

    def _stop_service(self, _request: Call) -> Reply:
        """End the service and reply when it has ended."""
        with self._lock:
            service = self._service
        if service is not None:
            self._end(service, self._limits.silence_s + self._limits.heartbeat_s, by_owner=True)
        return Reply(self._status())

    def _end(self, service: RunningService, wait_s: float, *, by_owner: bool = False) -> None:
        """End a service: in step with the others, or else by breaking its links."""
        service.leave(by_owner=by_owner)
        self._neighbours.give_up(service.terms.service)
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

    def _read_count(self, request: Call) -> Reply:
        """Say how much a service has answered, from the ledger: also one from before a restart."""
        message: ReadCount = request.message
        answered = self._ledger.answered(message.service)
        known = answered is not None
        return Reply(ServiceCount(service=message.service, known=known, answered=answered or 0))

    def _read_ledger(self, request: Call) -> Reply:
        """List the newest queries: who, when, how many images; there is no more than that."""
        message: ReadLedger = request.message
        return Reply(LedgerPage(queries=tuple(self._ledger.queries(message.before, message.most))))

    # The users' requests.

    def _describe(self, _request: Call) -> Reply:
        """Describe the model that is being served."""
        service = self._current()
        return Reply(
            Description(
                service=service.terms.service,
                model=service.held.model,
                plan=service.held.plan_bytes,
                digest=service.held.digest,
                mode=service.terms.mode,
                reveals=service.terms.reveals,
                noise=service.terms.noise,
            )
        )

    def _query_bytes(self, message: Query) -> int:
        """Exact length of this party's part of a request; refuses what may not be asked for."""
        return self._current().queries.body_bytes(message)

    def _query(self, request: Call) -> Reply:
        """Take a part, wait until the parties have answered the request, reply with this party's share."""
        return self._current().queries.answer(request)

    def _current(self) -> RunningService:
        """Return the running service.

        Raises:
            ServiceEndedError: there is none.
            FedsecError: what ended the last one.
        """
        with self._lock:
            service = self._service
        if service is None:
            raise ServiceEndedError("no model is served here now: the owner starts a service first")
        with contextlib.suppress(DeadlineError):
            service.await_started(Deadline.after(self._limits.setup_s))
        service.room.check_open()
        return service
