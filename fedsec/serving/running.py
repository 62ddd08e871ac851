"""One service at one party, from linking up to its end: its thread, its state, its channels."""

from __future__ import annotations

import gc
import hashlib
import logging
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import prod

import msgspec
import numpy as np

from fedsec.errors import FedsecError, ServiceEndedError, StateError
from fedsec.mpc.party import Party
from fedsec.mpc.session import establish
from fedsec.nn import Reveal
from fedsec.nn.engine import Engine, make_engine
from fedsec.nn.sealed import rescale
from fedsec.ring import Ring
from fedsec.serving.book import ServiceBook
from fedsec.serving.consistency import compare_weights
from fedsec.serving.limits import Limits, most_images
from fedsec.serving.loop import ServiceLoop
from fedsec.serving.messages import LabelNoise, Mode, State, Status
from fedsec.serving.queries import Queries
from fedsec.serving.shelf import HeldModel
from fedsec.serving.stock import Stock
from fedsec.serving.table import Table
from fedsec.serving.waiting import WaitingRoom
from fedsec.sharing.replicated import RepShare
from fedsec.transport import Channel, Deadline, Endpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Terms:
    """What the owner told a party of a service; all three must have been told the same."""

    service: bytes
    model: bytes
    plan_digest: bytes
    sharing: bytes
    num_requests: int | None
    quota: int | None
    answered: int
    mode: Mode
    reveals: tuple[Reveal, ...]
    parties: tuple[Endpoint, ...]
    noise: LabelNoise | None = None

    @property
    def label_epsilon(self) -> float | None:
        """What a noisy label may spend; None if labels are told as they are."""
        return None if self.noise is None else self.noise.epsilon

    @property
    def left(self) -> int | None:
        """Images that the service may answer from its start; None for no limit."""
        return None if self.num_requests is None else self.num_requests - self.answered

    def digest(self) -> bytes:
        """Return SHA-256 over the terms in one canonical encoding; it names the session of the links."""
        parties = [(party.name, party.public_key) for party in self.parties]
        ids = (self.service, self.model, self.plan_digest, self.sharing)
        limits = (self.num_requests, self.quota, self.answered)
        told = ("fedsec serving terms v3", *ids, *limits, self.mode, self.reveals, self.noise, parties)
        return hashlib.sha256(msgspec.msgpack.encode(told)).digest()


LinkUp = Callable[[Deadline], tuple[Channel, Channel]]
"""Returns the links to the previous and to the following party."""

Explain = Callable[[FedsecError], FedsecError]
"""Finds out which party is behind an error of the links."""


class RunningService:
    """A service of which this party is one of three.

    Args:
        party_id: 0, 1 or 2.
        terms: what the owner asked for.
        held: this party's part of the model.
        book: the durable charges.
        limits: waits and sizes.
        link_up: makes the links.
        explain: names the culprit of a lost link.
    """

    def __init__(
        self,
        party_id: int,
        terms: Terms,
        held: HeldModel,
        book: ServiceBook,
        *,
        limits: Limits,
        link_up: LinkUp,
        explain: Explain,
    ) -> None:
        self.terms = terms
        self.held = held
        self.book = book
        # A replicated share is two words an element.
        image_bytes = 2 * prod(held.plan.input_shape) * Ring(held.plan.ring_bits).element_bytes
        self.room = WaitingRoom(
            max_images=min(limits.waiting_images, max(1, limits.waiting_bytes // image_bytes)),
            max_per_user=limits.waiting_per_user,
            max_images_per_user=limits.waiting_images_per_user,
            longest_s=limits.part_s + limits.answer_s,
        )
        epsilon = terms.label_epsilon
        heads = {reveal: held.plan.with_head(reveal, epsilon) for reveal in terms.reveals}
        batch_images = min(limits.batch_images, most_images(held.plan, terms.reveals, epsilon))
        limits = replace(limits, batch_images=batch_images)
        self.queries = Queries(
            party_id, terms.service, held.plan, heads=heads, book=book, room=self.room, limits=limits
        )
        self._party_id = party_id
        self._limits = limits
        self._link_up = link_up
        self._explain = explain
        self._leaving = threading.Event()
        self._since = time.time()
        self._by_owner = False
        self._links: tuple[Channel, ...] = ()
        self._engine: Engine | None = None
        self._changed = threading.Condition()
        self._state: State = "starting"
        self._error: FedsecError | None = None
        self._thread = threading.Thread(target=self._main, name="serving", daemon=True)

    def start(self) -> None:
        """Start the compute thread."""
        self._thread.start()

    @property
    def over(self) -> bool:
        """Whether the service has ended, in whatever way."""
        return self._state not in {"starting", "serving"}

    def await_started(self, deadline: Deadline) -> None:
        """Wait until predictions can be asked for.

        Raises:
            FedsecError: the service failed while starting.
            DeadlineError: it did not start in time.
        """
        with self._changed:
            while self._state == "starting":
                self._changed.wait(deadline.remaining("the other two parties"))
            if self._state == "failed" and self._error is not None:
                raise type(self._error)(*self._error.args)

    def await_end(self, seconds: float) -> bool:
        """Wait for the end, at most so long; returns whether it has come."""
        with self._changed:
            return self._changed.wait_for(lambda: self.over, seconds)

    def status(self, models: tuple[bytes, ...]) -> Status:
        """Return what the owner and the other parties may know."""
        with self._changed:
            state, error = self._state, self._error
        return Status(
            state=state,
            models=models,
            service=self.terms.service,
            model=self.terms.model,
            num_requests=self.terms.num_requests,
            quota=self.terms.quota,
            mode=self.terms.mode,
            reveals=self.terms.reveals,
            noise=self.terms.noise,
            answer_epsilon=self.book.answer_epsilon,
            spent_epsilon=self.book.spent_epsilon(),
            answered=self.book.answered(),
            waiting=self.room.occupied,
            prepared=self._prepared(),
            since=self._since,
            by_owner=self._by_owner,
            code="" if error is None else error.code,
            text="" if error is None else str(error),
        )

    def _prepared(self) -> int:
        """Images for which material lies ready, whatever will be revealed of them."""
        engine = self._engine
        return 0 if engine is None else sum(engine.ready(reveal) for reveal in self.terms.reveals)

    def leave(self, *, by_owner: bool = False) -> None:
        """Answer what was accepted, refuse what is new, then ask all three parties to end with the next step.

        Args:
            by_owner: whether the service's owner wants it, or this party alone.
        """
        with self._changed:
            self._by_owner = by_owner
        who = "its owner" if by_owner else "this party"
        ending = ServiceEndedError(f"the service is being stopped by {who}: nothing new is accepted")
        self.room.drain(ending, self._limits.drain_s)
        self._leaving.set()
        self.room.wake()

    def break_off(self) -> None:
        """End every wait on the links at once; the other parties see a lost link."""
        for link in self._links:
            link.interrupt()

    def _main(self) -> None:
        """Run the service in its thread and say how it ended."""
        state: State
        try:
            state, error = self._run()
        except Exception as unexpected:
            # The text of an unexpected exception could hold data; its type and place are enough to look.
            logger.error("the service ended with an internal error: %s", _where(unexpected))  # noqa: TRY400
            state, error = (
                "failed",
                FedsecError("the service ended with an internal error; see the party's log"),
            )
        # What was prepared for this session is of no use to any other.
        self._engine = None
        logger.info("service %s: %s", state, error)
        self._become(state, error)
        self.room.close(error)
        self.queries.guests.close()
        self._settle()

    def _settle(self) -> None:
        """Take back what was charged ahead and not decided: nothing of it will be answered."""
        try:
            self.book.take_back(())
        except StateError as error:
            # It stays charged, as after a crash.
            logger.warning("%s", error)

    def _run(self) -> tuple[State, FedsecError]:
        """Serve; the links are closed before anyone asks who was lost."""
        try:
            with ExitStack() as links:
                return self._serve(links)
        except ServiceEndedError as given_up:
            return "stopped", given_up
        except FedsecError as lost:
            return "failed", self._explain(lost)

    def _serve(self, links: ExitStack) -> tuple[State, FedsecError]:
        """Link up, rehearse once, answer until the end."""
        previous, following = self._link_up(Deadline.after(self._limits.setup_s))
        self._links = (links.enter_context(previous), links.enter_context(following))
        if self._leaving.is_set():
            # Who stopped the service found no links to break off.
            raise ServiceEndedError("the service was stopped before it had started")
        plan = self.held.plan
        party = establish(
            self._party_id,
            previous,
            following,
            self.terms.digest(),
            Deadline.after(self._limits.setup_s),
            ring=Ring(plan.ring_bits),
        )
        names = {party.previous_id: previous.peer.name, party.following_id: following.peer.name}
        compare_weights(party, self.held.weights, names)
        engine = make_engine(self.terms.mode, party, plan, self._weights(party), self.terms.label_epsilon)
        self._rehearse(party, engine)
        self._engine = engine
        loop = ServiceLoop(
            Table(self._party_id, previous, following, self._limits.silence_s),
            engine,
            Stock(engine, self.terms.reveals, self.terms.left),
            book=self.book,
            room=self.room,
            guests=self.queries.guests,
            input_shape=plan.input_shape,
            fraction_bits=plan.fraction_bits,
            limits=self._limits,
            leaving=self._leaving,
        )
        self._become("serving", None)
        logger.info("service starts: %s images to answer", self.terms.num_requests or "unlimited")
        leaving = loop.run()
        if leaving:
            return "stopped", ServiceEndedError(f"the service was stopped by {' and '.join(leaving)}")
        return "ended", ServiceEndedError(f"the service has answered its {self.terms.num_requests} images")

    def _weights(self, party: Party) -> tuple[RepShare, ...]:
        """Return this party's shares of the weights; of a sealed model they are made here."""
        held = self.held
        if held.sources is None:
            return held.weights
        party.wait_s = self._limits.setup_s
        return rescale(party, held.plan, held.sources, held.weights)

    def _rehearse(self, party: Party, engine: Engine) -> None:
        """Predict one image of zeros before anyone asks, so that the first user waits for no compilation."""
        zeros = np.zeros((1, *self.held.plan.input_shape), dtype=party.ring.dtype)
        # Once after an installation every kernel is compiled here, at all three: on a busy machine that takes
        # longer than to link up. A party that is lost meanwhile breaks its links and is not waited for.
        party.wait_s = 2 * self._limits.setup_s
        share = RepShare(own=zeros, next=zeros, fraction_bits=self.held.plan.fraction_bits)
        for reveal in self.terms.reveals:
            engine.predict(share, reveal)
        party.wait_s = self._limits.step_s
        # What lives as long as the process is looked through once more and then no more: a full collection
        # takes tens of milliseconds, which a user would wait for.
        gc.unfreeze()
        gc.collect()
        gc.freeze()

    def _become(self, state: State, error: FedsecError | None) -> None:
        """Change the state and tell whoever waits for it."""
        with self._changed:
            self._state, self._error = state, error
            self._changed.notify_all()


def _where(error: BaseException) -> str:
    """Return type and place of an exception, without its text."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "unknown place"
    return f"{type(error).__name__} at {place}"
