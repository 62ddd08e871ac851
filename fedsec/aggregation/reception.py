"""Uploads on their way into an aggregator: the header, the part while it arrives, the acknowledgement."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fedsec.aggregation.announcement import RoundId
from fedsec.aggregation.context import Context
from fedsec.aggregation.messages import (
    NONCE_BYTES,
    STORED_LABEL,
    ListEntry,
    Signed,
    Stored,
    Upload,
    UploadHeader,
    begin_part_digest,
    header_digest,
    stored_payload,
)
from fedsec.aggregation.parts import SeedWriter
from fedsec.aggregation.round import Round
from fedsec.aggregation.signing import Buffer, sign
from fedsec.aggregation.summing import PartChecksum
from fedsec.aggregation.uploads import check_header, read_header
from fedsec.errors import FedsecError, ProtocolError, StateError
from fedsec.sharing.compressed import SEED_BYTES
from fedsec.transport import Peer


@dataclass(frozen=True, slots=True)
class _Arrival:
    round: Round
    header: UploadHeader
    digest: bytes
    writer: SeedWriter
    checksum: PartChecksum


class Reception:
    """Takes uploads, several at the same time.

    Args:
        context: What the rounds of the aggregator share.
        lock: The aggregator's lock. It is not held while bytes arrive: a slow hospital delays nobody.
        find: Returns a round; called under the lock.

    Attributes:
        drafts: Parts that are arriving, by round and hospital.
    """

    def __init__(self, context: Context, lock: threading.RLock, find: Callable[[RoundId], Round]) -> None:
        self._context, self._lock, self._find = context, lock, find
        self._me = context.signer.name
        self.drafts: dict[tuple[bytes, str], SeedWriter] = {}

    def most_bytes(self, message: Upload) -> int:
        """Return the largest part of the round that an upload names: the bound for its body.

        Raises:
            ProtocolError: The header is malformed, or the round is unknown.
        """
        with self._lock:
            layout = self._find(read_header(message.header).round).announcement.layout
            return NONCE_BYTES + max(layout.vector_bytes, SEED_BYTES)

    def take(self, peer: Peer, message: Upload, chunks: Iterable[Buffer]) -> Stored:
        """Take a part and acknowledge it once it is on disk.

        Raises:
            TrustError: It is not the connected hospital's own.
            ProtocolError: It does not fit its header, the round or what the hospital uploaded before.
            RoundAbortedError: The round was aborted.
            StateError: The disk does not take it.
        """
        with self._lock:
            round_, header = self._checked_header(peer, message.header)
            digest = header_digest(message.header.payload)
            if (stored := self._stored(round_, header, digest)) is not None:
                return stored
            key = (round_.key, header.hospital)
            # One draft a hospital and round, or its connections could fill the disk; the latest counts, as
            # the connection of an earlier attempt may be dead without a sign.
            if key in self.drafts:
                self.drafts[key].give_way()
            self.drafts[key] = writer = round_.holdings.writer(header.hospital, digest)
            arrival = _Arrival(
                round_, header, digest, writer, round_.holdings.checksum(header.hospital, digest)
            )
        try:
            with writer:
                self._receive(arrival, chunks)
                difference = arrival.checksum.difference()
                self._settle(arrival)
                with self._lock:
                    return self._keep(arrival, difference)
        finally:
            with self._lock:
                if self.drafts.get(key) is writer:
                    del self.drafts[key]

    def _settle(self, arrival: _Arrival) -> None:
        """Make the part durable; the disk is waited for without the lock, too."""
        try:
            arrival.writer.sync()
            arrival.writer.commit()
        except StateError:
            with self._lock:
                # Its folder is gone when the round has ended meanwhile.
                arrival.round.require_open()
            raise

    def _receive(self, arrival: _Arrival, chunks: Iterable[Buffer]) -> None:
        header = arrival.header
        state = begin_part_digest(header.upload_id, self._me, arrival.writer.size)
        for chunk in chunks:
            # All three while it is in the cache.
            arrival.writer.write(chunk)
            state.update(chunk)
            arrival.checksum.add(chunk)
        arrival.writer.require_whole()
        if state.digest() != header.digests[header.recipients.index(self._me)]:
            raise ProtocolError(
                f"the part of '{header.hospital}' is not the one its header names; it was dropped"
            )

    def _keep(self, arrival: _Arrival, difference: int) -> Stored:
        round_, header, digest = arrival.round, arrival.header, arrival.digest
        try:
            stored = self._stored(round_, header, digest)
        except FedsecError:
            # Too late, or another upload was faster. No row names the file, unless it came twice.
            known = self._context.store.upload(round_.key, header.hospital)
            if known is None or known.entry.header_digest != digest:
                arrival.writer.withdraw()
            raise
        if stored is not None:
            return stored
        payload = stored_payload(header.round, header.upload_id, digest, self._me)
        signature = sign(self._context.signer, STORED_LABEL, payload)
        entry = ListEntry(header.hospital, header.upload_id, digest, difference)
        round_.add_upload(entry, signature, header.model, arrival.checksum.seed)
        return Stored(self._me, signature)

    def _stored(self, round_: Round, header: UploadHeader, digest: bytes) -> Stored | None:
        """Return the acknowledgement that was given before; without one, check that one may be given."""
        known = self._context.store.upload(round_.key, header.hospital)
        if known is not None and known.entry.header_digest == digest:
            return Stored(self._me, known.signature)
        round_.require_open()
        if known is not None:
            raise ProtocolError(f"'{header.hospital}' has uploaded to {round_.announcement.id} before")
        if self._context.store.upload_id_used(header.hospital, header.upload_id):
            raise ProtocolError(f"the upload id of '{header.hospital}' was used before")
        return None

    def _checked_header(self, peer: Peer, signed: Signed) -> tuple[Round, UploadHeader]:
        round_ = self._find(read_header(signed).round)
        return round_, check_header(round_.announcement, round_.digest, peer, signed)
