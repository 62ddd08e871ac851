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
    NONCE_BYTES,
    STORED_LABEL,
    AbortRound,
    Announce,
    Announced,
    CloseUploads,
    CollectSum,
    FinishRound,
    GetReceipt,
    Greeted,
    Hello,
    ListEntry,
    Receipt,
    Received,
    SetSignature,
    Signed,
    Stored,
    SumShare,
    Upload,
    UploadHeader,
    UploadList,
    header_digest,
    part_digest,
    read_statement,
    stored_payload,
)
from fedsec.aggregation.parts import PartFolder, PartWriter, erase_folder, part_bytes
from fedsec.aggregation.policy import Policy
from fedsec.aggregation.round import Round
from fedsec.aggregation.signing import Buffer, Signer, sign
from fedsec.aggregation.store import RoundRow, State, Store
from fedsec.aggregation.uploads import check_header, read_header
from fedsec.errors import FedsecError, ProtocolError, RoundAbortedError, StateError, TrustError
from fedsec.sharing.compressed import SEED_BYTES
from fedsec.transport import Peer

MOST_REASON = 500


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
        self._drafts: dict[tuple[bytes, str], PartWriter] = {}
        self._remove_orphans()
        self._handlers: dict[type[Any], Callable[[Peer, Any], tuple[msgspec.Struct, bytes]]] = {
            Announce: self._announce,
            CloseUploads: self._close_uploads,
            UploadList: lambda peer, message: self._statement("list", peer, message.statement),
            SetSignature: lambda peer, message: self._statement("set", peer, message.statement),
            Hello: lambda peer, message: (self._heard(peer, message), b""),
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
            return self._upload(peer, message, chunks), b""
        with self.lock:
            return self._handlers[type(message)](peer, message)

    def most_upload_bytes(self, message: Upload) -> int:
        """Return the largest part of the round that an upload names: the bound for its body.

        Raises:
            ProtocolError: The header is malformed, or the round is unknown.
        """
        with self.lock:
            layout = self._find(read_header(message.header).round).announcement.layout
            return NONCE_BYTES + max(layout.vector_bytes, SEED_BYTES)

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
            found = [one for round_ in self._rounds.values() for one in round_.outgoing() if one.peer == peer]
            greeting = self._history.greeting(peer)
            found += [] if greeting is None else [greeting]
            found += [one for one in self._farewells if one.peer == peer]
            return sorted(found, key=lambda one: one.counter)

    def delivered(self, outgoing: Outgoing, reply: msgspec.Struct) -> None:
        """Note a peer's reply to something that was to be said."""
        with self.lock:
            self._farewells.discard(outgoing)
            if isinstance(reply, Greeted):
                if reason := self._history.answered(outgoing.peer, reply):
                    for one in self._rounds.values():
                        one.stop(reason)
            elif (round_ := self._rounds.get(outgoing.round_key)) is not None:
                round_.delivered(outgoing)

    def refused(self, outgoing: Outgoing, error: FedsecError) -> None:
        """Note that a peer refused a statement: if it aborted the round, this aggregator does so too."""
        with self.lock:
            # Said once: a peer that does not hear it aborts by its own deadline.
            self._farewells.discard(outgoing)
            round_ = self._rounds.get(outgoing.round_key)
            if round_ is not None and isinstance(error, RoundAbortedError | StateError):
                round_.stop(f"aggregator '{outgoing.peer}' ended the round: {error}")

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

    def _upload(self, peer: Peer, message: Upload, chunks: Iterable[Buffer]) -> Stored:
        with self.lock:
            round_, header = self._checked_header(peer, message.header)
            digest = header_digest(message.header.payload)
            if (stored := self._stored(round_, header, digest)) is not None:
                return stored
            size = part_bytes(round_.announcement, header.hospital, self.name)
            key = (round_.key, header.hospital)
            # One draft a hospital and round, or its connections could fill the disk; the latest counts, as
            # the connection of an earlier attempt may be dead without a sign.
            if key in self._drafts:
                self._drafts[key].give_way()
            self._drafts[key] = writer = PartWriter(round_.folder.part(digest), size)
        try:
            # The lock is not held while bytes arrive: a slow hospital delays nobody.
            with writer:
                self._receive(header, writer, chunks, size)
                with self.lock:
                    return self._keep(round_, header, digest, writer)
        finally:
            with self.lock:
                if self._drafts.get(key) is writer:
                    del self._drafts[key]

    def _receive(self, header: UploadHeader, writer: PartWriter, chunks: Iterable[Buffer], size: int) -> None:
        expected = header.digests[header.recipients.index(self.name)]
        found = part_digest(header.upload_id, self.name, writer.through(chunks), size)
        writer.sync()
        if found != expected:
            raise ProtocolError(
                f"the part of '{header.hospital}' is not the one its header names; it was dropped"
            )

    def _keep(self, round_: Round, header: UploadHeader, digest: bytes, writer: PartWriter) -> Stored:
        round_.require_open()
        if (stored := self._stored(round_, header, digest)) is not None:
            return stored
        writer.commit()
        checksum = round_.checksum_difference(header.hospital, digest)
        payload = stored_payload(header.round, header.upload_id, digest, self.name)
        signature = sign(self._context.signer, STORED_LABEL, payload)
        round_.add_upload(ListEntry(header.hospital, header.upload_id, digest, checksum), signature)
        return Stored(self.name, signature)

    def _stored(self, round_: Round, header: UploadHeader, digest: bytes) -> Stored | None:
        known = self._store.upload(round_.key, header.hospital)
        if known is not None:
            if known.entry.header_digest == digest:
                return Stored(self.name, known.signature)
            raise ProtocolError(f"'{header.hospital}' has uploaded to {round_.announcement.id} before")
        if self._store.upload_id_used(header.hospital, header.upload_id):
            raise ProtocolError(f"the upload id of '{header.hospital}' was used before")
        return None

    def _checked_header(self, peer: Peer, signed: Signed) -> tuple[Round, UploadHeader]:
        round_ = self._find(read_header(signed).round)
        header = check_header(round_.announcement, round_.digest, peer, signed)
        known = self._store.upload(round_.key, header.hospital)
        if known is None or known.entry.header_digest != header_digest(signed.payload):
            round_.require_open()
        return round_, header

    def _close_uploads(self, peer: Peer, message: CloseUploads) -> tuple[Received, bytes]:
        self._require_server(peer)
        self._find(message.round).ask_to_close()
        return Received(), b""

    def _statement(self, kind: str, peer: Peer, statement: Signed) -> tuple[Received, bytes]:
        self._require_aggregator(peer)
        subject = read_statement(kind, statement)
        self._find(subject.round).take(kind, peer.name, statement)
        return Received(), b""

    def _heard(self, peer: Peer, message: Hello) -> Greeted:
        self._require_aggregator(peer)
        return self._history.hear(peer, message)

    def _collect(self, peer: Peer, message: CollectSum) -> tuple[SumShare, bytes]:
        return self._find(message.round).collect(peer.public_key)

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
        self._unclean.append(round_)
        if round_.state is State.ABORTED:
            message = AbortRound(round_.announcement.id, round_.reason)
            counter = self._store.chain().counter
            peers = {member.name for member in round_.announcement.aggregators} - {self.name}
            self._farewells |= {Outgoing(peer, counter, message, round_.key) for peer in peers}

    def _find(self, round_id: RoundId) -> Round:
        fits = len(round_id.session) == SESSION_BYTES and 0 <= round_id.round <= MOST_ROUNDS
        row = self._store.round(round_id.key) if fits and round_id.key not in self._rounds else None
        if fits and round_id.key in self._rounds:
            return self._rounds[round_id.key]
        if row is None:
            raise ProtocolError(f"'{self.name}' was not told of that round")
        return self._load(row)

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
