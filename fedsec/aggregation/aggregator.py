"""One aggregator: all its rounds, the requests it answers and what it has to say to its peers.

There are no sockets here. ``service`` puts it behind a port, ``memory`` connects several in one process.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from fedsec.aggregation.announcement import MOST_ROUNDS, SESSION_BYTES, RoundId, decode_announcement
from fedsec.aggregation.context import Context, Outgoing
from fedsec.aggregation.history import History
from fedsec.aggregation.messages import (
    AbortRound,
    Announce,
    Announced,
    CloseUploads,
    CollectSum,
    FinishRound,
    GetReceipt,
    Greeted,
    Hello,
    MissedEvents,
    Receipt,
    Received,
    SetSignature,
    SumShare,
    Upload,
    UploadList,
    read_statement,
)
from fedsec.aggregation.parts import PartFolder, erase_folder
from fedsec.aggregation.policy import Policy
from fedsec.aggregation.reception import Reception
from fedsec.aggregation.round import Round
from fedsec.aggregation.signing import Buffer, Signer
from fedsec.aggregation.store import RoundRow, State, Store
from fedsec.errors import (
    FedsecError,
    PeerLostError,
    ProtocolError,
    RoundAbortedError,
    StateError,
    TrustError,
)
from fedsec.transport import Peer

MOST_REASON = 500
_MOST_FINAL = 8


class Aggregator:
    """The aggregator's state machine over all its rounds; safe to call from several threads.

    Args:
        signer: Its identity.
        policy: Its pinned keys and limits.
        folder: Its state folder; what an earlier process left there is resumed.
        clock: Seconds since the epoch.

    Raises:
        StateError: The folder cannot be used or is damaged.
    """

    def __init__(
        self, signer: Signer, policy: Policy, folder: Path, clock: Callable[[], float] = time.time
    ) -> None:
        self.lock = threading.RLock()
        self.name = signer.name
        self._store = Store(folder)
        self._context = Context(signer, self._store, policy, clock)
        self._history = History(self._context)
        self._farewells: set[Outgoing] = set()
        self._rounds = {row.key: self._load(row) for row in self._store.rounds()}
        self._unclean: list[Round] = []
        self._final: dict[bytes, Round] = {}
        self._reception = Reception(self._context, self.lock, self._find)
        self._remove_orphans()
        self._handlers: dict[type[Any], Callable[[Peer, Any], tuple[msgspec.Struct, bytes]]] = {
            Announce: self._announce,
            CloseUploads: self._close_uploads,
            UploadList: lambda peer, message: self._statement("list", peer, message),
            SetSignature: lambda peer, message: self._statement("set", peer, message),
            Hello: lambda peer, message: (self._heard(peer, message), b""),
            MissedEvents: lambda peer, message: (self._caught_up(peer, message), b""),
            AbortRound: self._abort,
            CollectSum: self._collect,
            FinishRound: self._finish,
            GetReceipt: self._receipt,
        }

    def close(self) -> None:
        """Close the database; everything said is already durable."""
        with self.lock:
            self._store.close()

    # Requests.

    def handle(
        self, peer: Peer, message: msgspec.Struct, chunks: Iterable[Buffer] = ()
    ) -> tuple[msgspec.Struct, bytes]:
        """Answer one request.

        Args:
            peer: Who asks, as its certificate says; its role was checked by the route.
            message: One of the requests in ``messages``.
            chunks: The body in pieces (uploads only).

        Returns:
            The reply and its body.

        Raises:
            FedsecError: The request is refused; what was stored before is unchanged, except that a peer's
                contradiction aborts its round.
        """
        if isinstance(message, Upload):
            return self._reception.take(peer, message, chunks), b""
        with self.lock:
            return self._handlers[type(message)](peer, message)

    def most_upload_bytes(self, message: Upload) -> int:
        """Return the largest part of the round that an upload names: the bound for its body.

        Raises:
            ProtocolError: The header is malformed, or the round is unknown.
        """
        return self._reception.most_bytes(message)

    # Progress.

    def advance(self) -> None:
        """Take every step that is due in every round.

        Raises:
            StateError: The disk takes nothing any more, not even that a round is aborted.
        """
        with self.lock:
            for round_ in list(self._rounds.values()):
                try:
                    round_.advance()
                except StateError as error:
                    round_.abort(f"aggregator '{self.name}' cannot use its state: {error}")
                if round_.state.final:
                    self._leave(round_)
            self._unclean = [round_ for round_ in self._unclean if not round_.clean()]

    def next_deadline(self) -> float:
        """Return when the next round is due by the clock (seconds since the epoch), or infinity."""
        with self.lock:
            return min((round_.deadline for round_ in self._rounds.values()), default=math.inf)

    @property
    def greeted(self) -> bool:
        """Whether every other aggregator has answered the greeting of this process."""
        return self._history.greeted

    def outgoing(self, peer: str) -> list[Outgoing]:
        """Return what one peer has not confirmed yet, in the order it has to be said."""
        with self.lock:
            if (greeting := self._history.greeting(peer)) is not None:
                return [greeting]
            heard = self._history.heard(peer)
            found = [one for round_ in self._rounds.values() for one in round_.outgoing(peer, heard)]
            found += [one for one in self._farewells if one.peer == peer]
            found.sort(key=lambda one: (one.counter, one.round_key))
            for place, one in enumerate(found):
                # Never past a statement that is still to be said: its head would seem to be an old one.
                if (page := self._history.page_before(one)) is not None:
                    return [*found[:place], page]
            return found

    def delivered(self, outgoing: Outgoing, reply: msgspec.Struct) -> None:
        """Note a peer's reply to something that was to be said."""
        with self.lock:
            self._farewells.discard(outgoing)
            if isinstance(reply, Greeted):
                if reason := self._history.answered(outgoing.peer, reply):
                    for one in self._rounds.values():
                        one.stop(reason)
            elif isinstance(outgoing.message, MissedEvents):
                self._history.told(outgoing)
            elif (round_ := self._rounds.get(outgoing.round_key)) is not None:
                self._history.told(outgoing)
                round_.delivered(outgoing)

    def refused(self, outgoing: Outgoing, error: FedsecError) -> None:
        """Note that a peer refused a statement: if it aborted the round, this aggregator does so too."""
        with self.lock:
            # Said once: a peer that does not hear it aborts by its own deadline.
            self._farewells.discard(outgoing)
            round_ = self._rounds.get(outgoing.round_key)
            if round_ is not None and isinstance(error, RoundAbortedError | StateError):
                round_.stop(f"aggregator '{outgoing.peer}' ended the round: {error}")

    # For the rounds whose sum stays in shares.

    def round(self, round_id: RoundId) -> Round:
        """Return a round that was announced here.

        Raises:
            ProtocolError: It was not.
        """
        with self.lock:
            return self._find(round_id)

    def active(self) -> list[Round]:
        """Return the rounds that are not final."""
        with self.lock:
            return list(self._rounds.values())

    # Handlers, under the lock.

    def _announce(self, peer: Peer, message: Announce) -> tuple[Announced, bytes]:
        self._require_server(peer)
        self._history.require_current()
        announcement = self._context.policy.check(self.name, message.announcement)
        key, digest = announcement.id.key, announcement.digest
        if (row := self._store.round(key)) is not None:
            if row.announcement.payload != message.announcement.payload:
                with self._store.transaction():
                    self._store.add_evidence(key, message.announcement)
                raise TrustError(f"the server signed two announcements for {announcement.id}; both are kept")
            if row.state is State.ABORTED:
                raise RoundAbortedError(row.reason)
            return Announced(digest), b""
        if len(self._rounds) >= self._context.policy.most_rounds:
            raise ProtocolError(f"'{self.name}' has {len(self._rounds)} rounds open; finish one first")
        deadline = self._context.clock() + announcement.upload_seconds
        row = RoundRow(key, State.OPEN, message.announcement, deadline, "")
        PartFolder(self._store.parts_root, key).create()
        with self._store.transaction():
            self._store.add_round(row)
        self._rounds[key] = Round(self._context, row, announcement)
        return Announced(digest), b""

    def _close_uploads(self, peer: Peer, message: CloseUploads) -> tuple[Received, bytes]:
        self._require_server(peer)
        self._find(message.round).ask_to_close()
        return Received(), b""

    def _statement(self, kind: str, peer: Peer, message: UploadList | SetSignature) -> tuple[Received, bytes]:
        self._require_aggregator(peer)
        subject = read_statement(kind, message.statement)
        self._find(subject.round).take(kind, peer.name, message.statement, message.missed)
        return Received(), b""

    def _heard(self, peer: Peer, message: Hello) -> Greeted:
        self._require_aggregator(peer)
        return self._history.hear(peer, message)

    def _caught_up(self, peer: Peer, message: MissedEvents) -> Received:
        self._require_aggregator(peer)
        self._history.catch_up(peer, message)
        return Received()

    def _collect(self, peer: Peer, message: CollectSum) -> tuple[SumShare, bytes]:
        round_ = self._find(message.round)
        reply, body = round_.collect(peer.public_key)
        if reply.ready and round_.announcement.encoding.noise is not None:
            # A state that was set back could hold another set than the one a share went out for, and noise
            # on each would be a draw of its own.
            try:
                self._history.require_current()
            except PeerLostError:
                return SumShare(ready=False), b""
        return reply, body

    def _finish(self, peer: Peer, message: FinishRound) -> tuple[Received, bytes]:
        self._require_server(peer)
        self._find(message.round).finish()
        return Received(), b""

    def _abort(self, peer: Peer, message: AbortRound) -> tuple[Received, bytes]:
        self._require_aggregator(peer)
        round_ = self._find(message.round)
        if peer.name in {member.name for member in round_.announcement.aggregators}:
            round_.stop(f"aggregator '{peer.name}' ended the round: {message.reason[:MOST_REASON]}")
        return Received(), b""

    def _receipt(self, peer: Peer, message: GetReceipt) -> tuple[Receipt, bytes]:
        round_ = self._find(message.round)
        if round_.announcement.public_key_of(peer.name) != peer.public_key:
            raise TrustError(f"'{peer.name}' has another key than the one in {round_.announcement.id}")
        return round_.receipt(peer.name, message.upload_id), b""

    # Helpers.

    def _leave(self, round_: Round) -> None:
        del self._rounds[round_.key]
        self._unclean.append(self._remembered(round_))
        if round_.state is State.ABORTED:
            message = AbortRound(round_.announcement.id, round_.reason)
            counter = self._store.chain().counter
            peers = {member.name for member in round_.announcement.aggregators} - {self.name}
            self._farewells |= {Outgoing(peer, counter, message, round_.key) for peer in peers}

    def _find(self, round_id: RoundId) -> Round:
        fits = len(round_id.session) == SESSION_BYTES and 0 <= round_id.round <= MOST_ROUNDS
        known = self._rounds.get(round_id.key) or self._final.get(round_id.key) if fits else None
        if known is not None:
            return known
        row = self._store.round(round_id.key) if fits else None
        if row is None:
            raise ProtocolError(f"'{self.name}' was not told of that round")
        return self._remembered(self._load(row))

    def _remembered(self, round_: Round) -> Round:
        """Keep a final round in memory for a while: every hospital comes for its receipt."""
        self._final[round_.key] = round_
        if len(self._final) > _MOST_FINAL:
            del self._final[next(iter(self._final))]
        return round_

    def _load(self, row: RoundRow) -> Round:
        return Round(self._context, row, decode_announcement(row.announcement.payload))

    def _require_server(self, peer: Peer) -> None:
        if peer.public_key != self._context.policy.server:
            raise TrustError(f"'{peer.name}' is not the server that '{self.name}' has pinned")

    def _require_aggregator(self, peer: Peer) -> None:
        if self._context.policy.aggregators.get(peer.name) != peer.public_key:
            raise TrustError(f"'{peer.name}' is no aggregator that '{self.name}' has pinned")

    def _remove_orphans(self) -> None:
        self._store.forget_final()
        active = {round_.folder.path for round_ in self._rounds.values()}
        for folder in self._store.parts_root.iterdir():
            if folder not in active:
                erase_folder(folder)
        for round_ in self._rounds.values():
            if round_.state is State.OPEN:
                round_.folder.create()
            else:
                round_.resume()
