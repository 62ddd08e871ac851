"""The model owner's end: weights leave in shares, one part to each party, and are served.

The owner speaks to each party itself. Weights are encoded and split here; a party never sees them,
and none of this writes them anywhere. Of a sealed model the owner has no weights either.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self, get_args

from fedsec.errors import (
    DeadlineError,
    FedsecError,
    PeerLostError,
    ProtocolError,
    ServiceEndedError,
    UsageError,
    by_code,
)
from fedsec.nn import REVEALS, Plan, Reveal, Weights
from fedsec.serving import parts
from fedsec.serving.asking import Ask, ask_each, connect_all
from fedsec.serving.messages import (
    ID_BYTES,
    ForgetModel,
    LabelNoise,
    Mode,
    ModelForgotten,
    ModelHeld,
    ReadCount,
    ReadStatus,
    Serve,
    ServiceCount,
    ShareModel,
    Status,
    StopService,
)
from fedsec.serving.sealed import SealedModel, sharing_of
from fedsec.serving.spending import check_noise
from fedsec.serving.weights import flat_weights, plan_to_wire
from fedsec.transport import Deadline, Endpoint, Identity, Meter
from fedsec.transport.calling import call

_CONNECT_S = 15.0
_SHARE_S = 120.0
_START_S = 90.0
_STOP_S = 40.0
_ANSWER_S = 8.0
"""A party that does not say within this time how it is counts as lost: it never computes to answer that."""
_POLL_S = 2.0


class Owner:
    """The owner of a model, connected to the three computing parties.

    Args:
        parties: the three computing parties in order (``ClusterFile.computing``).
        identity: the owner's, role inside.
        timeout_s: for connecting to all three.

    Raises:
        TrustError: a party is not the pinned one, or refuses this certificate.
        PeerLostError, DeadlineError: a party does not answer; the text names it.

    Attributes:
        meter: counts the bytes of the owner's connections.
    """

    def __init__(
        self, parties: Sequence[Endpoint], identity: Identity, *, timeout_s: float = _CONNECT_S
    ) -> None:
        self.meter = Meter()
        self._model: bytes | None = None
        self._channels = connect_all(tuple(parties), identity, Deadline.after(timeout_s), self.meter)

    def share(self, plan: Plan, weights: Weights, *, model_id: bytes | None = None) -> bytes:
        """Encode the weights, split them, and give each party its part, in memory.

        Args:
            plan: the public plan.
            weights: float arrays in plan order.
            model_id: 16 bytes; a fresh id by default. Sharing a model again under its old id, for
                example after a party's restart, keeps counting its users' quotas.

        Returns:
            The model's id.

        Raises:
            UsageError: a party has no room, or holds this id already.
            PeerLostError: a party was lost. The others forget what they took, where they can be reached;
                parts of two sharings are never served together.
        """
        model = os.urandom(ID_BYTES) if model_id is None else model_id
        plan_bytes, digest = plan_to_wire(plan)
        message = ShareModel(model=model, plan=plan_bytes, digest=digest, sharing=os.urandom(ID_BYTES))
        asks = [Ask(message, body) for body in parts.split(flat_weights(plan, weights))]
        return self._hand_out(asks, ModelHeld(model=model, digest=digest), message.sharing)

    def share_sealed(self, sealed: SealedModel, *, model_id: bytes | None = None) -> bytes:
        """Let each party take its part of a model that nobody has, from its own sealed state.

        Args:
            sealed: which state, and the plan; nothing of it is secret.
            model_id: as for ``share``.

        Returns:
            The model's id.

        Raises:
            ProtocolError: a party has no such state.
            TrustError: the state may not be served, or not under this plan.
            UsageError, PeerLostError: as for ``share``.
        """
        model = os.urandom(ID_BYTES) if model_id is None else model_id
        message = sealed.message(model)
        held = ModelHeld(model=model, digest=message.digest)
        return self._hand_out([Ask(message)] * len(self._channels), held, sharing_of(message))

    def _hand_out(self, asks: Sequence[Ask], expected: ModelHeld, sharing: bytes) -> bytes:
        """Let all three parties hold a model, or none."""
        try:
            answers = ask_each(self._channels, asks, ModelHeld, Deadline.after(_SHARE_S))
            for channel, (held, _) in zip(self._channels, answers, strict=True):
                if held != expected:
                    raise ProtocolError(
                        f"{channel.peer.name} holds another model than was sent: it is not served"
                    )
        except FedsecError:
            # What some of the parties took would fill their shelves; an older sharing of the model stays.
            with contextlib.suppress(FedsecError):
                self._forget(ForgetModel(model=expected.model, sharing=sharing))
            raise
        self._model = expected.model
        return expected.model

    def serve(
        self,
        num_requests: int | None = None,
        *,
        model_id: bytes | None = None,
        quota: int | None = None,
        mode: Mode = "dealt",
        reveals: Sequence[Reveal] = ("logits",),
        noise: LabelNoise | None = None,
        answered: int = 0,
        service_id: bytes | None = None,
    ) -> Status:
        """Start serving; returns when users can ask.

        Args:
            num_requests: images to answer before the service ends by itself; no limit by default.
            model_id: which model; the last one shared by default.
            quota: images that one certificate may ask of the model, over all its services; no limit
                by default.
            mode: how the parties compute.
            reveals: what users may ask for; each is rehearsed before users can ask.
            noise: how noisy labels are, and what may be spent on them; then nothing but them is revealed.
            answered: images of ``num_requests`` that earlier runs of this service have answered.
            service_id: 16 bytes that were never used before; a fresh id by default.

        Raises:
            UsageError: nothing was shared, a service runs already, or a limit, mode or reveal is none.
            PeerLostError, DeadlineError: a party was lost; the text names it.
        """
        model = self._model if model_id is None else model_id
        if model is None:
            raise UsageError("share a model first, or say which one by its id")
        for name, limit in (("num_requests", num_requests), ("quota", quota)):
            if limit is not None and limit < 1:
                raise UsageError(f"{name}: expected at least 1 image or None for no limit, got {limit}")
        _check_known("mode", [mode], get_args(Mode))
        _check_known("reveal", reveals, REVEALS)
        check_noise(noise, reveals)
        for channel, status in zip(self._channels, self.statuses(), strict=True):
            if model not in status.models:
                raise UsageError(
                    f"{channel.peer.name} holds no part of this model: share it with all three again"
                )
            if status.state in {"starting", "serving"}:
                raise UsageError(f"{channel.peer.name} serves already: stop that service first")
        message = Serve(
            service=os.urandom(ID_BYTES) if service_id is None else service_id,
            model=model,
            num_requests=num_requests,
            quota=quota,
            answered=answered,
            mode=mode,
            # In one order and once each, so that all that differs in two services' terms is meant to.
            reveals=tuple(reveal for reveal in REVEALS if reveal in reveals),
            noise=noise,
        )
        replies = ask_each(self._channels, [Ask(message)] * 3, Status, Deadline.after(_START_S))
        return replies[0][0]

    def status(self) -> Status:
        """Return the leader's status: state, images answered, and why a service failed."""
        return call(self._channels[0], ReadStatus(), Status, deadline=Deadline.after(_ANSWER_S))[0]

    def wait(self, timeout_s: float | None = None) -> Status:
        """Wait until the service has ended by itself.

        Args:
            timeout_s: longest wait; for ever by default, but never for a party that is gone.

        Returns:
            The last status, ``ended`` or ``stopped``.

        Raises:
            DeadlineError: the service runs longer than ``timeout_s``.
            PeerLostError: a party was lost; the text names it.
            FedsecError: whatever else ended the service.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            wait_s = _POLL_S if end is None else max(0.0, min(_POLL_S, end - time.monotonic()))
            asks = [Ask(ReadStatus(wait_s=wait_s))] * 3
            replies = ask_each(self._channels, asks, Status, Deadline.after(wait_s + _ANSWER_S))
            done = [status for status, _ in replies if status.state not in {"starting", "serving"}]
            if len(done) == len(replies):
                return _told([channel.peer.name for channel in self._channels], done)
            if end is not None and time.monotonic() >= end:
                raise DeadlineError(
                    f"the service still runs after {timeout_s:g} s, {replies[0][0].answered} images answered"
                )

    def stop(self) -> Status:
        """End the service, if one runs; returns when all three parties have ended it."""
        replies = ask_each(self._channels, [Ask(StopService())] * 3, Status, Deadline.after(_STOP_S))
        return replies[0][0]

    def answered(self, service: bytes) -> int:
        """Return how many images a service has answered, also before a restart of a party.

        An answer needs all three parties, so no party's ledger counts fewer than were given; the largest
        count also holds what a crash has interrupted.
        """
        replies = ask_each(
            self._channels, [Ask(ReadCount(service=service))] * 3, ServiceCount, Deadline.after(_ANSWER_S)
        )
        return max(count.answered for count, _ in replies)

    def forget(self, model_id: bytes | None = None) -> None:
        """Let all three parties drop their parts of a model that is not being served.

        Args:
            model_id: which model; the last one shared by default.
        """
        model = self._model if model_id is None else model_id
        if model is not None:
            self._forget(ForgetModel(model=model))

    def _forget(self, message: ForgetModel) -> None:
        """Ask all three parties to forget."""
        ask_each(self._channels, [Ask(message)] * 3, ModelForgotten, Deadline.after(_ANSWER_S))

    def close(self) -> None:
        """Close the connections; a running service goes on. May be called twice."""
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def statuses(self) -> list[Status]:
        """Return all three parties' statuses, in their order."""
        replies = ask_each(self._channels, [Ask(ReadStatus())] * 3, Status, Deadline.after(_ANSWER_S))
        return [status for status, _ in replies]


def _check_known(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Refuse what no party knows.

    Raises:
        UsageError: the text names what there is.
    """
    if not given or any(one not in known for one in given):
        raise UsageError(f"{what}: expected {', '.join(known)}, got {', '.join(given) or 'none'}")


def _told(names: Sequence[str], statuses: Sequence[Status]) -> Status:
    """Return the final status, or raise what a party says broke the service."""
    for status in statuses:
        if status.state == "failed":
            raise by_code(status.code)(status.text)
    idle = [name for name, status in zip(names, statuses, strict=True) if status.state == "idle"]
    if len(idle) == len(statuses):
        raise ServiceEndedError("no service runs, and none has run since the parties started")
    if idle:
        raise PeerLostError(
            f"{' and '.join(idle)} was started anew and knows nothing of the service: share the model with "
            "all three again"
        )
    return statuses[0]
