"""One round at one aggregator, as a state machine without any input or output but its store and part files.

::

    open --(deadline, server)--> listed --(n lists)--> signed --(n set signatures)--> agreed --> finished

      any of open, listed, signed --(deadline, cohort, contradiction, server)--> aborted

An aggregator signs one list and one set a round, commits each before it leaves, and gives its sum share
away only in ``agreed`` and only to the recipient in the announcement. ``finished`` and ``aborted`` are final.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from fedsec.aggregation import merkle
from fedsec.aggregation.agreement import included_set, leaves, without_other_models
from fedsec.aggregation.announcement import Announcement
from fedsec.aggregation.chain import NOTHING_SEEN
from fedsec.aggregation.context import Context, Outgoing
from fedsec.aggregation.messages import (
    IncludedUpload,
    ListEntry,
    ListStatement,
    Receipt,
    SetStatement,
    Signed,
    SumShare,
    read,
)
from fedsec.aggregation.noise.adding import add_noise
from fedsec.aggregation.parts import PartFolder
from fedsec.aggregation.sealed.sum import bind_sum, fresh_nonce, sealed_part, server_part
from fedsec.aggregation.statements import ContradictionError, Statements
from fedsec.aggregation.store import RoundRow, State
from fedsec.aggregation.summing import Holdings
from fedsec.errors import ProtocolError, RoundAbortedError, StateError, TrustError
from fedsec.ring import RingArray

_log = logging.getLogger(__name__)


class _Proofs:
    """What receipts are made of: every hospital of a round asks for one."""

    def __init__(self, round_key: bytes, included: Sequence[IncludedUpload]) -> None:
        self.tree = merkle.Tree(leaves(round_key, included))
        self.places = {(one.hospital, one.upload_id): index for index, one in enumerate(included)}


class Round:
    """The state of one round; every method leaves the store consistent, also when it raises."""

    def __init__(self, context: Context, row: RoundRow, announcement: Announcement) -> None:
        self.announcement = announcement
        self.digest = announcement.digest
        self.key = row.key
        self.state = row.state
        self.deadline = row.deadline
        self.reason = row.reason
        self.folder = PartFolder(context.store.parts_root, row.key)
        self._context = context
        self._me = context.signer.name
        self._aggregators = [member.name for member in announcement.aggregators]
        self.holdings = Holdings(announcement, self._me, self.folder, context.store)
        self._statements = Statements(context, announcement)
        self._proofs: _Proofs | None = None
        self._clean = False

    def __repr__(self) -> str:
        return f"Round({self.announcement.id}, {self.state})"

    # Uploads.

    def require_open(self) -> None:
        """Check that uploads are still taken.

        Raises:
            RoundAbortedError: The round was aborted.
            ProtocolError: The upload is too late.
        """
        if self.state is State.ABORTED:
            # The reason may name other hospitals; it is for the server and the aggregators.
            raise RoundAbortedError(f"{self.announcement.id} was aborted")
        if self.state is not State.OPEN:
            raise ProtocolError(f"{self.announcement.id} takes no more uploads: this one came too late")

    def add_upload(
        self, entry: ListEntry, acknowledgement: bytes, model: bytes = b"", seed: bytes = b""
    ) -> None:
        """Store that a part is complete, and its seed; the file of a vector is committed before."""
        self.require_open()
        with self._context.store.transaction():
            self._context.store.add_upload(self.key, entry, acknowledgement)
            if seed:
                covered = self.folder.cover(entry.header_digest, seed)
                self._context.store.add_seed(self.key, entry.hospital, covered)
            if model:
                self._context.store.add_model(self.key, entry.hospital, model)

    def ask_to_close(self) -> None:
        """Close the uploads now, as the server awaits no more; durable, or a crash would undo it."""
        now = self._context.clock()
        if self.state is State.OPEN and now < self.deadline:
            self._move(State.OPEN, now)

    # Agreement.

    def advance(self) -> None:
        """Take every step that is due: by messages, by the clock or on request."""
        steps = {
            State.OPEN: self._leave_open,
            State.LISTED: self._leave_listed,
            State.SIGNED: self._leave_signed,
            State.AGREED: self._leave_agreed,
        }
        before = None
        while before is not self.state and self.state in steps:
            before = self.state
            steps[self.state]()

    def take(self, kind: str, sender: str, statement: Signed, missed: tuple[bytes, ...] = ()) -> None:
        """Take a peer's signed statement of kind "list" or "set", with the events it may have missed.

        Raises:
            TrustError: The sender is no other aggregator of this round, or the signature is not its own.
            ProtocolError: The statement is malformed.
            StateError: It contradicts an earlier one, or the sender is behind what it showed before; the
                round is aborted unless it is agreed.
            RoundAbortedError: The round was aborted here.
        """
        self._statements.require_peer(sender)
        if self.state is State.ABORTED:
            raise RoundAbortedError(self.reason)
        if self.state is State.OPEN and kind == "set":
            raise ProtocolError(f"'{sender}' signed a set before it had the list of '{self._me}'")
        try:
            self._statements.hear(kind, sender, statement, missed)
        except ContradictionError as error:
            self.stop(str(error))
            raise

    def outgoing(self, peer: str, heard: int) -> list[Outgoing]:
        """Return the statements that a peer has not confirmed yet; ``heard`` is the last event it knows."""
        if self.state not in {State.LISTED, State.SIGNED, State.AGREED}:
            return []
        return self._statements.outgoing(peer, heard)

    def delivered(self, outgoing: Outgoing) -> None:
        """Note that a peer has confirmed a statement."""
        self._statements.delivered(outgoing)

    def abort(self, reason: str) -> None:
        """End the round without a result and erase what it holds. Final; nothing is ever signed again."""
        if self.state.final:
            return
        self._move(State.ABORTED, 0.0, reason)
        self.clean()

    def stop(self, reason: str) -> None:
        """Abort, unless the aggregators have agreed: then the sum share may already be out."""
        if self.state is not State.AGREED:
            self.abort(reason)

    def clean(self) -> bool:
        """Erase what a final round still holds; False when something is left and it has to be tried again."""
        self.holdings.forget()
        left = False
        for erase in () if self._clean else (self.folder.erase, lambda: self._context.store.forget(self.key)):
            try:
                erase()
            except StateError as error:
                left = True
                _log.error("%s has ended and its traces are not erased yet: %s", self.announcement.id, error)
        self._clean = not left
        return self._clean

    def resume(self) -> None:
        """Remove files that a crash left behind: parts that were never acknowledged or are summed already."""
        keep = self.state in {State.OPEN, State.LISTED}
        self.holdings.erase(self._context.store.uploads(self.key) if keep else None)

    # Outcome.

    def collect(self, public_key: bytes) -> tuple[SumShare, bytes]:
        """Return the sum share once all n set signatures are stored.

        Raises:
            TrustError: The asker is not the recipient named in the announcement.
            RoundAbortedError: The round was aborted, or its sum share is erased.
        """
        if public_key != self.announcement.recipient.public_key:
            raise TrustError("a sum share goes to the recipient named in the announcement and to nobody else")
        if self.state is State.ABORTED:
            raise RoundAbortedError(self.reason)
        if self.state is State.FINISHED:
            raise RoundAbortedError(f"{self.announcement.id} is finished and its sum share erased")
        if self.state is not State.AGREED:
            return SumShare(ready=False), b""
        store = self._context.store
        reply = SumShare(True, self._set_statements(), store.included(self.key), store.excluded(self.key))
        return reply, server_part(self.announcement, self._me, self.folder.read_sum())

    def included(self) -> tuple[IncludedUpload, ...]:
        """Return S once it is signed here."""
        return self._context.store.included(self.key)

    def update_share(self) -> tuple[RingArray, int]:
        """Return this aggregator's share of an agreed sealed sum: the updates' words and the weight.

        Raises:
            ProtocolError: The round is not agreed, or ended meanwhile.
        """
        if self.announcement.sealed is None or self.state is not State.AGREED:
            raise ProtocolError(f"{self.announcement.id} has no agreed sum that could stay in shares")
        return sealed_part(self.announcement, self.folder.read_sum())

    def finish(self) -> None:
        """Erase the sum share of an agreed round; end one that is not agreed."""
        if self.state is State.AGREED:
            self._move(State.FINISHED, 0.0)
            self.clean()
        else:
            self.abort("the server ended the round before the aggregators agreed")

    def receipt(self, hospital: str, upload_id: bytes) -> Receipt:
        """Tell a hospital whether its upload is in S, with the proof."""
        if self.state is State.ABORTED:
            return Receipt("aborted")
        if self.state not in {State.AGREED, State.FINISHED}:
            return Receipt("pending")
        if self._proofs is None:
            self._proofs = _Proofs(self.key, self._context.store.included(self.key))
        if (index := self._proofs.places.get((hospital, upload_id))) is not None:
            path = self._proofs.tree.path(index)
            return Receipt("included", "", index, path, self._set_statements())
        reasons = {one.hospital: one.reason for one in self._context.store.excluded(self.key)}
        return Receipt("excluded", reasons.get(hospital, "missing"))

    # Steps.

    def _leave_open(self) -> None:
        # Not when the whole roster has uploaded here: a hospital that uploads to this aggregator first and
        # slowly to the next would start the clock of the agreement here and end the round of all.
        if not self._late():
            return
        uploads = self._context.store.uploads(self.key)
        self.holdings.forget_checksum()
        entries = tuple(row.entry for row in uploads.values())
        statement = ListStatement(self.announcement.id, self.digest, self._me, entries, NOTHING_SEEN)
        with self._context.store.transaction():
            self._say("list", State.LISTED, statement)
        self._enter(State.LISTED)

    def _leave_listed(self) -> None:
        lists = self._statements.of("list")
        if len(lists) < len(self._aggregators):
            self._abort_if_late(lists.keys(), "list of uploads")
            return
        found = included_set(
            self.announcement, {name: read(one, ListStatement) for name, one in lists.items()}
        )
        found = without_other_models(found, self._context.store.models(self.key))
        cohort = max(self.announcement.minimum_cohort, self._context.policy.minimum_cohort)
        if len(found.included) < cohort:
            reasons = ", ".join(f"{one.hospital} {one.reason}" for one in found.excluded)
            self.abort(f"{len(found.included)} complete uploads, the minimum cohort is {cohort} ({reasons})")
            return
        words, nonce = self.holdings.sum(found.included), fresh_nonce(self.announcement)
        root = found.root(self.key)
        # The same over the same set after any crash, and on a disk that was set back: the key was made
        # when the round was announced.
        add_noise(words, self.announcement.layout, self.digest, self.folder.noise_key(self.digest, root))
        self.folder.write_sum(nonce, words)
        bound = bind_sum(self.announcement, self._me, nonce, words.tobytes())
        statement = SetStatement(
            self.announcement.id, self.digest, self._me, len(found.included), root, bound, NOTHING_SEEN
        )
        with self._context.store.transaction():
            self._context.store.set_included(self.key, found.included, found.excluded)
            self._say("set", State.SIGNED, statement)
        self._enter(State.SIGNED)
        try:
            self.holdings.erase()
        except StateError as error:
            # The set is signed and the sum is stored: the rest goes with the folder when the round ends.
            _log.warning("parts of %s stay on disk until its end: %s", self.announcement.id, error)

    def _leave_signed(self) -> None:
        sets = self._statements.of("set")
        mine = read(sets[self._me], SetStatement)
        for name, signed in sets.items():
            other = read(signed, SetStatement)
            if (other.root, other.included) != (mine.root, mine.included):
                self.abort(f"aggregator '{name}' signed another included set than '{self._me}'")
                return
        if len(sets) < len(self._aggregators):
            self._abort_if_late(sets.keys(), "signature of the included set")
            return
        self._move(State.AGREED, self._context.clock() + self._context.policy.collect_s)

    def _leave_agreed(self) -> None:
        if self._late():
            self.finish()

    # Helpers.

    def _set_statements(self) -> tuple[Signed, ...]:
        sets = self._statements.of("set")
        return tuple(sets[name] for name in self._aggregators)

    def _say(self, kind: str, state: State, statement: ListStatement | SetStatement) -> None:
        self._statements.say(kind, statement)
        deadline = self._context.clock() + self._context.policy.agreement_s
        self._context.store.set_state(self.key, state, deadline)

    def _enter(self, state: State) -> None:
        self.state = state
        self.deadline = self._context.clock() + self._context.policy.agreement_s

    def _move(self, state: State, deadline: float, reason: str = "") -> None:
        with self._context.store.transaction():
            self._context.store.set_state(self.key, state, deadline, reason)
        self.state, self.deadline, self.reason = state, deadline, reason

    def _late(self) -> bool:
        return self._context.clock() >= self.deadline

    def _abort_if_late(self, present: Collection[str], what: str) -> None:
        if self._late():
            missing = ", ".join(f"'{name}'" for name in self._aggregators if name not in present)
            waited = f"{self._context.policy.agreement_s:g} s"
            self.abort(f"aggregator {missing} did not send its {what} within {waited}")
