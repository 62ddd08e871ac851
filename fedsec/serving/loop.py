"""What a party's compute thread does while a service runs: agree, charge, compute, answer.

Party 0 leads: it proposes. Every step is three small messages from each to each over the same
links that the computation uses, one after the other, so a step is also the heartbeat: a party
that dies breaks its links, and one that hangs is silent for longer than ``silence_s``.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec
import numpy as np

from fedsec.errors import ProtocolError
from fedsec.mpc.party import Party
from fedsec.ring import RingArray
from fedsec.serving.agreement import (
    Glance,
    Proposer,
    RequestKey,
    Verdict,
    combine,
    judge,
    judge_alone,
    key_of,
    refusal,
)
from fedsec.serving.ledger import ServiceBook
from fedsec.serving.limits import Limits
from fedsec.serving.messages import Ballot, Entry, Proposal
from fedsec.serving.waiting import WaitingRoom
from fedsec.sharing.replicated import RepShare
from fedsec.transport import Channel, Deadline
from fedsec.transport.decoding import MALFORMED

LEADER = 0
_STEP_BYTES = 16_384  # a proposal of 128 entries has 7 kB
_ENCODER = msgspec.msgpack.Encoder()

T = TypeVar("T")

Compute = Callable[[RepShare], RepShare]
"""Images in shares [N, *input_shape] to logits in shares [N, classes]."""


class Table:
    """Where the three parties talk between batches: proposals and ballots, step by step.

    Args:
        party_id: 0, 1 or 2.
        previous: link to party ``party_id - 1``.
        following: link to party ``party_id + 1``.
        silence_s: longest wait for one message.
    """

    def __init__(self, party_id: int, previous: Channel, following: Channel, silence_s: float) -> None:
        self.party_id = party_id
        self._links = {(party_id - 1) % 3: previous, (party_id + 1) % 3: following}
        self._silence_s = silence_s
        self._step = 0

    def name(self, party_id: int) -> str:
        """Return the name of a party at this table."""
        if party_id == self.party_id:
            return self._links[(party_id + 1) % 3].me
        return self._links[party_id].peer.name

    def propose(self, proposal: Proposal) -> None:
        """Leader: open the next step."""
        self._step += 1
        for link in self._links.values():
            self._send(link, "proposal", proposal)

    def hear(self) -> Proposal:
        """Follower: wait for the leader's next step."""
        self._step += 1
        return self._receive(self._links[LEADER], "proposal", Proposal)

    def vote(self, ballot: Ballot) -> dict[int, Ballot]:
        """Follower: tell both others, hear the other follower; returns the ballots by party."""
        for link in self._links.values():
            self._send(link, "ballot", ballot)
        other = 3 - self.party_id
        return {self.party_id: ballot, other: self._receive(self._links[other], "ballot", Ballot)}

    def count(self) -> dict[int, Ballot]:
        """Leader: hear both followers."""
        return {party: self._receive(link, "ballot", Ballot) for party, link in sorted(self._links.items())}

    def _send(self, link: Channel, kind: str, message: msgspec.Struct) -> None:
        """Send one small message of this step."""
        link.send(f"serve_{kind}/{self._step}", _ENCODER.encode(message), Deadline.after(self._silence_s))

    def _receive(self, link: Channel, kind: str, message: type[T]) -> T:
        """Receive one small message of this step."""
        deadline = Deadline.after(self._silence_s)
        frame = link.receive(f"serve_{kind}/{self._step}", max_bytes=_STEP_BYTES, deadline=deadline)
        try:
            return msgspec.msgpack.decode(frame, type=message)
        except MALFORMED as error:
            raise ProtocolError(f"{link.peer.name} sent a malformed {kind}: the service ends") from error


class ServiceLoop:
    """One party's part in answering requests until the service's number is reached.

    Args:
        party: the MPC session of this service.
        table: the agreement over the same links.
        book: the durable charges.
        room: where the parts wait.
        compute: the model.
        input_shape: shape of one image.
        fraction_bits: of the images' encoding.
        limits: waits and batch size.
    """

    def __init__(
        self,
        party: Party,
        table: Table,
        *,
        book: ServiceBook,
        room: WaitingRoom,
        compute: Compute,
        input_shape: tuple[int, ...],
        fraction_bits: int,
        limits: Limits,
        leaving: threading.Event,
    ) -> None:
        self._party = party
        self._table = table
        self._book = book
        self._room = room
        self._compute = compute
        self._input_shape = input_shape
        self._fraction_bits = fraction_bits
        self._limits = limits
        self._leaving = leaving
        self._proposer = Proposer(limits.batch_images)
        self._last_step = time.monotonic()

    def run(self) -> list[str]:
        """Answer until the number is reached or a party leaves; returns the names of who leaves.

        Raises:
            PeerLostError, DeadlineError: a party is gone or silent.
            ProtocolError: a party broke the protocol.
            StateError: the charge could not be written.
        """
        while self._book.left() != 0:
            entries, ballots = self._lead() if self._table.party_id == LEADER else self._follow()
            if leaving := self._who_leaves(ballots):
                return leaving
            self._decide(entries, ballots)
        return []

    def _lead(self) -> tuple[tuple[Entry, ...], dict[int, Ballot]]:
        """Leader's half of a step: wait for something to propose, propose it, count."""
        entries = self._await_entries()
        self._last_step = time.monotonic()
        ballot = self._vote_on(entries)
        self._table.propose(Proposal(entries, ballot))
        return entries, {LEADER: ballot, **self._table.count()}

    def _await_entries(self) -> tuple[Entry, ...]:
        """Sleep until there is something to propose, a heartbeat is due, or this party leaves."""
        while True:
            seen, held, now = self._room.generation, self._room.held(), time.monotonic()
            entries = self._proposer.choose(held, now)
            heartbeat = self._last_step + self._limits.heartbeat_s - now
            if entries or heartbeat <= 0 or self._leaving.is_set():
                return entries
            due = self._proposer.next_due(held, now)
            self._room.wait_beyond(seen, heartbeat if due is None else min(heartbeat, max(due, 0.0005)))

    def _follow(self) -> tuple[tuple[Entry, ...], dict[int, Ballot]]:
        """Follower's half of a step: hear, judge, tell everyone."""
        proposal = self._table.hear()
        ballots = self._table.vote(self._vote_on(proposal.entries))
        return proposal.entries, {LEADER: proposal.ballot, **ballots}

    def _vote_on(self, entries: Sequence[Entry]) -> Ballot:
        """Judge a proposal; what is here of it is reserved until the decision."""
        here = self._room.reserve(key_of(entry) for entry in entries)
        return Ballot(judge(entries, here, self._book), self._leaving.is_set())

    def _who_leaves(self, ballots: Mapping[int, Ballot]) -> list[str]:
        """Names of the parties that end the service with this step."""
        return [self._table.name(party) for party, ballot in sorted(ballots.items()) if ballot.leaving]

    def _decide(self, entries: Sequence[Entry], ballots: Mapping[int, Ballot]) -> None:
        """Answer what everyone accepted; refuse or put off the rest."""
        verdicts = combine([ballot.verdicts for ballot in ballots.values()], len(entries))
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
                self._room.put_off(key_of(entry), self._lacking(index, ballots))
        if batch:
            self._answer(batch)
            self._refuse_hopeless()

    def _lacking(self, index: int, ballots: Mapping[int, Ballot]) -> str:
        """Say which parties have no part of an entry, for the error that its sender may get."""
        names = [
            self._table.name(party)
            for party, ballot in sorted(ballots.items())
            if ballot.verdicts[index] == Verdict.ABSENT
        ]
        return f"{' and '.join(names)} got no part of it" if names else "it found no room"

    def _answer(self, batch: Sequence[Entry]) -> None:
        """Charge, compute and give out one batch that all three accepted."""
        # Durable before any of the session's streams is used: a crash may cost an answer, never a charge.
        self._book.charge(batch)
        keys = [key_of(entry) for entry in batch]
        try:
            rows = self._logits(keys)
        except Exception:
            # Without this party's share nobody can reconstruct: the service has not answered these.
            self._book.void(batch)
            raise
        start = 0
        for key, entry in zip(keys, batch, strict=True):
            self._room.resolve(key, rows[start : start + entry.images].tobytes())
            start += entry.images

    def _logits(self, keys: Sequence[RequestKey]) -> RingArray:
        """Compute the logits of a batch and return this party's additive share of them, [N, classes].

        Security: the share is masked by a fresh zero share, so that the three together tell their
        receiver the logits and nothing of how the replicated shares came about.
        """
        parts = self._room.parts(keys)
        own = np.concatenate([part.own for part in parts]).reshape(-1, *self._input_shape)
        following = np.concatenate([part.next for part in parts]).reshape(-1, *self._input_shape)
        logits = self._compute(RepShare(own=own, next=following, fraction_bits=self._fraction_bits))
        masked: RingArray = logits.own + self._party.zero_share(logits.shape)
        return masked.reshape(len(own), -1)

    def _refuse_hopeless(self) -> None:
        """Refuse what waits here and cannot be answered any more after the last charge."""
        glance = Glance(self._book.left(), functools.cache(self._book.left_for))
        for key, images in self._room.held().items():
            verdict = judge_alone(key, images, glance)
            if verdict.final:
                self._room.refuse(key, refusal(verdict, images, self._book, key.fingerprint))
