"""What a party's compute thread does while a service runs: agree, charge, compute, answer, prepare.

Party 0 leads: it proposes. Every step is a few small messages over the same links that the computation uses,
one after the other, so a step is also the heartbeat: a party that dies breaks its links, and one that hangs
is silent for longer than ``silence_s``.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Mapping, Sequence

import numpy as np

from fedsec.errors import ProtocolError
from fedsec.nn.engine import Engine
from fedsec.ring import RingArray
from fedsec.serving.agreement import (
    Ballot,
    Glance,
    Proposal,
    Proposer,
    RequestKey,
    Verdict,
    combine,
    fits_ahead,
    judge,
    judge_alone,
    key_of,
    read_ballot,
)
from fedsec.serving.book import ServiceBook
from fedsec.serving.limits import Limits
from fedsec.serving.messages import Entry
from fedsec.serving.refusals import refusal
from fedsec.serving.stock import Stock
from fedsec.serving.table import LEADER, Table
from fedsec.serving.waiting import WaitingRoom
from fedsec.sharing.replicated import RepShare
from fedsec.transport.hosting import Guests


class ServiceLoop:
    """One party's part in answering requests until the service's number is reached.

    Args:
        table: the agreement with the other two.
        engine: the computation, over the same links.
        stock: what is prepared, and when.
        book: the durable charges.
        room: where the parts wait.
        guests: the users' connections that this thread looks after.
        input_shape: shape of one image.
        fraction_bits: of the images' encoding.
        limits: waits and batch size.
        leaving: set when this party wants the service to end.
    """

    def __init__(
        self,
        table: Table,
        engine: Engine,
        stock: Stock,
        *,
        book: ServiceBook,
        room: WaitingRoom,
        guests: Guests,
        input_shape: tuple[int, ...],
        fraction_bits: int,
        limits: Limits,
        leaving: threading.Event,
    ) -> None:
        self._table = table
        self._engine = engine
        self._stock = stock
        self._book = book
        self._room = room
        self._guests = guests
        self._input_shape = input_shape
        self._fraction_bits = fraction_bits
        self._limits = limits
        self._leaving = leaving
        self._proposer = Proposer(limits.batch_images)
        self._last_step = time.monotonic()
        self._passed_over: set[RequestKey] = set()

    def run(self) -> list[str]:
        """Answer until the number is reached or a party leaves; returns the names of who leaves.

        Raises:
            PeerLostError, DeadlineError: a party is gone or silent.
            ProtocolError: a party broke the protocol.
            StateError: the charge could not be written.
        """
        while not self._book.finished():
            proposal = self._lead() if self._table.party_id == LEADER else self._follow()
            if proposal.ballot is None:
                self._stock.prepare(proposal.prepare, proposal.reveal)
                continue
            ballots = self._table.count(proposal.ballot)
            if leaving := self._who_leaves(ballots):
                return leaving
            self._decide(proposal.entries, ballots)
        return []

    def _lead(self) -> Proposal:
        """Leader's half of a step: wait for something to propose, and propose it."""
        proposal = self._await_something()
        self._last_step = time.monotonic()
        self._table.propose(proposal)
        self._unpack(proposal.entries)
        return proposal

    def _await_something(self) -> Proposal:
        """Sleep until there is something to vote on or to prepare, or a heartbeat is due."""
        while True:
            held, now = self._room.held(), time.monotonic()
            ahead = [set(ballot.ahead or ()) for ballot in self._table.cast.values()]
            entries = self._proposer.choose(held, now, ahead)
            heartbeat = self._last_step + self._limits.heartbeat_s - now
            if entries or heartbeat <= 0 or self._somebody_leaves():
                return Proposal(entries, self._vote_on(entries))
            due = self._proposer.next_due(held, now, ahead)
            pause = self._stock.due(now, idle=self._proposer.idle(held))
            if pause is not None and pause <= 0:
                images, reveal = self._stock.wanted()
                return Proposal((), None, images, reveal)
            waits = [wait for wait in (heartbeat, due, pause) if wait is not None]
            self._table.listen(min(waits), self._room.bell, self._guests)

    def _somebody_leaves(self) -> bool:
        """Leader: whether the next vote ends the service."""
        return self._leaving.is_set() or any(ballot.leaving for ballot in self._table.cast.values())

    def _follow(self) -> Proposal:
        """Follower's half of a step: hear, judge, tell everyone; tell ahead what can be told."""
        silence = self._table.silence()
        while True:
            if self._table.party_id not in self._table.cast:
                self._vote_ahead()
            proposal = self._table.hear(self._room.bell, self._guests, silence)
            if proposal is None:
                continue
            self._check(proposal)
            if proposal.ballot is not None and self._table.party_id not in self._table.cast:
                self._table.vote(self._vote_on(proposal.entries))
            return proposal

    def _check(self, proposal: Proposal) -> None:
        """Follower: refuse a proposal that no leader of ours would make.

        Raises:
            ProtocolError: more images than a batch may have, which bounds memory and time; the service ends.
        """
        images = sum(entry.images for entry in proposal.entries)
        if images > self._limits.batch_images:
            raise ProtocolError(
                f"expected at most {self._limits.batch_images} images in a proposal of "
                f"{self._table.name(LEADER)}, got {images}: the service ends"
            )

    def _vote_ahead(self) -> None:
        """Follower: say what this party accepts, if the leader may have some of it and all fits together.

        A ballot that names only what the leader lacks would be used up by the next request, which it does
        not name: that one would need another vote.
        """
        held, leaving = self._room.held(), self._leaving.is_set()
        self._passed_over &= held.keys()
        ahead = fits_ahead(held, self._book) if held.keys() - self._passed_over else None
        if leaving or ahead:
            accepted = tuple(entry for entry in ahead or () if self._room.reserve([key_of(entry)]))
            self._table.vote_ahead(Ballot((), leaving, accepted))
            # Durable before the decision is heard: the disk works while the leader does.
            self._book.charge_ahead(accepted)
            self._unpack(accepted)

    def _unpack(self, entries: Sequence[Entry]) -> None:
        """Expand parts that will be computed on, while the others are waited for."""
        if self._engine.reads_inputs:
            self._room.unpack(key_of(entry) for entry in entries)

    def _vote_on(self, entries: Sequence[Entry]) -> Ballot:
        """Judge a proposal; what is here of it is reserved until the decision."""
        here = self._room.reserve(key_of(entry) for entry in entries)
        return Ballot(judge(entries, here, self._book), self._leaving.is_set())

    def _who_leaves(self, ballots: Mapping[int, Ballot]) -> list[str]:
        """Names of the parties that end the service with this step."""
        return [self._table.name(party) for party, ballot in ballots.items() if ballot.leaving]

    def _decide(self, entries: Sequence[Entry], ballots: Mapping[int, Ballot]) -> None:
        """Answer what everyone accepted; refuse or put off the rest."""
        verdicts = combine(list(ballots.values()), entries)
        if self._table.party_id == LEADER:
            self._proposer.settle(entries, verdicts, time.monotonic())
        batch: list[Entry] = []
        for index, (entry, verdict) in enumerate(zip(entries, verdicts, strict=True)):
            if verdict is Verdict.ACCEPT:
                batch.append(entry)
            elif verdict.final:
                error = refusal(verdict, entry.images, self._book, entry.fingerprint)
                self._room.refuse(key_of(entry), error)
            else:
                self._room.put_off(key_of(entry), self._lacking(entries, index, ballots))
        self._pass_over(entries, ballots[self._table.party_id].ahead or ())
        if batch:
            self._answer(batch)
        if self._room.occupied:
            self._refuse_hopeless()
            self._room.release()
        if self._book.ahead:
            self._book.take_back(self._room.keys())

    def _pass_over(self, entries: Sequence[Entry], ahead: Sequence[Entry]) -> None:
        """Put off what this party said ahead and the leader did not propose, and note what it must lack."""
        proposed, reveals = {key_of(entry) for entry in entries}, {entry.reveal for entry in entries}
        room = self._limits.batch_images - sum(entry.images for entry in entries)
        for entry in ahead:
            if key_of(entry) not in proposed:
                self._room.put_off(key_of(entry), f"{self._table.name(LEADER)} got no part of it")
                if entry.images <= room and reveals <= {entry.reveal}:
                    self._passed_over.add(key_of(entry))

    def _lacking(self, entries: Sequence[Entry], index: int, ballots: Mapping[int, Ballot]) -> str:
        """Say which parties have no part of an entry, for the error that its sender may get."""
        names = [
            self._table.name(party)
            for party, ballot in ballots.items()
            if read_ballot(ballot, entries)[index] is Verdict.ABSENT
        ]
        return f"{' and '.join(names)} got no part of it" if names else "it found no room"

    def _answer(self, batch: Sequence[Entry]) -> None:
        """Charge, compute and give out one batch that all three accepted."""
        # Durable before any of the session's streams is used: a crash may cost an answer, never a charge.
        self._book.charge(batch)
        keys = [key_of(entry) for entry in batch]
        try:
            rows = self._compute(keys, batch)
        except Exception:
            # Without this party's share nobody can reconstruct: the service has not answered these.
            self._book.void(batch)
            raise
        start = 0
        for key, entry in zip(keys, batch, strict=True):
            self._room.resolve(key, rows[start : start + entry.images].tobytes())
            start += entry.images
        self._stock.asked(batch[-1].reveal, time.monotonic())

    def _compute(self, keys: Sequence[RequestKey], batch: Sequence[Entry]) -> RingArray:
        """Return this party's additive share of a batch's answers, one row an image.

        Security: the engine has masked the share by a fresh zero share, so that the three together tell
        their receiver the answer and nothing of how the shares came about.
        """
        images = sum(entry.images for entry in batch)
        rows = self._engine.predict(self._inputs(keys, images), batch[0].reveal)
        if len(rows) != images:
            raise ProtocolError(f"expected answers to {images} images, got {len(rows)}: the service ends")
        return rows

    def _inputs(self, keys: Sequence[RequestKey], images: int) -> RepShare:
        """Return this party's share of a batch, [images, *input_shape]."""
        if not self._engine.reads_inputs:
            nothing = np.zeros((images, *self._input_shape), dtype=np.uint64)
            return RepShare(own=nothing, next=nothing, fraction_bits=self._fraction_bits)
        parts = self._room.parts(keys)
        own, following = parts[0].own, parts[0].next
        if len(parts) > 1:
            own = np.concatenate([part.own for part in parts])
            following = np.concatenate([part.next for part in parts])
        shape = (-1, *self._input_shape)
        return RepShare(own.reshape(shape), following.reshape(shape), self._fraction_bits)

    def _refuse_hopeless(self) -> None:
        """Refuse what waits here and cannot be answered any more after the last charge."""
        held = self._room.held()
        if not held:
            return
        glance = Glance(self._book.left(), functools.cache(self._book.left_for))
        for key, wish in held.items():
            verdict = judge_alone(key, wish.images, glance)
            if verdict.final:
                self._room.refuse(key, refusal(verdict, wish.images, self._book, key.fingerprint))
