"""A hospital's side of the aggregation: check the announcement, encode, share, upload, check the receipt."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy.typing as npt

from fedsec.aggregation.announcement import Announcement, ConfigValue, decode_accepted
from fedsec.aggregation.encoding import ClipReport, Floats, UpdateWords
from fedsec.aggregation.hospital_state import HospitalState, Submitted, Verdict
from fedsec.aggregation.links import Links, TlsLinks
from fedsec.aggregation.making import UploadParts, make_parts
from fedsec.aggregation.messages import Signed, Stored, Upload, header_digest
from fedsec.aggregation.noise.account import HospitalAccount
from fedsec.aggregation.receipt_asking import ask_receipt
from fedsec.aggregation.receipt_file import ReceiptFile, Receipts
from fedsec.aggregation.receipts import InclusionReceipt, check_acknowledgement, check_receipt
from fedsec.aggregation.sealed.model import fetch_model, model_tag
from fedsec.aggregation.sealed.terms import decode_model, origin_of
from fedsec.aggregation.signing import Signer
from fedsec.aggregation.tags import UpdateTag
from fedsec.aggregation.trust import TrustFile
from fedsec.errors import (
    DeadlineError,
    ProtocolError,
    RoundAbortedError,
    TrustError,
    UsageError,
)
from fedsec.transport import Deadline, Identity, Meter

RECEIPT_S = 30.0
_MOST_UNCONFIRMED = 8

_log = logging.getLogger(__name__)


class HospitalClient:
    """One hospital. Its connections to the aggregators stay open between rounds; one thread at a time.

    Args:
        trust: The hospital's own trust file.
        identity: Its identity; loaded from the trust file when missing.
        links: Its connections; TLS to the pinned aggregators when missing.
        meter: Counts the bytes of the TLS connections; a new one when missing.

    Attributes:
        name: The hospital's name.
        meter: The meter of its connections.

    Raises:
        TrustError: The identity is not the one that the roster pins.
        StateError: The state folder cannot be used.
    """

    def __init__(
        self,
        trust: TrustFile,
        *,
        identity: Signer | None = None,
        links: Links | None = None,
        meter: Meter | None = None,
    ) -> None:
        self.meter = Meter() if meter is None else meter
        if identity is None or links is None:
            loaded = Identity.load(trust.identity)
            identity = identity or loaded
            links = links or TlsLinks(trust.aggregators, loaded, self.meter)
        if trust.roster.get(identity.name) != identity.public_key:
            raise TrustError(f"the trust file's roster does not hold '{identity.name}' with its own key")
        self.name = identity.name
        self._trust, self._identity, self._links = trust, identity, links
        self._state = HospitalState(trust.state)
        self._account = HospitalAccount(trust.limits, trust.state)
        self._receipts = Receipts(trust.state)
        self._deadline: tuple[bytes, Deadline] | None = None
        self._pending: UploadParts | None = None
        self._sent = b""
        self._model: tuple[bytes, bytes] | None = None

    def __enter__(self) -> HospitalClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close connections and state."""
        self._links.close()
        self._state.close()

    def accept(
        self,
        payload: bytes,
        signature: bytes,
        arrays: Sequence[npt.NDArray[Any]],
        config: Mapping[str, ConfigValue],
    ) -> Announcement:
        """Check an announcement, and that arrays and config are those it describes, before training.

        The time for the upload runs from here.

        Args:
            payload: The announcement as it came.
            signature: The server's signature.
            arrays: The model's arrays as they came.
            config: Every config key that the training code will see.

        Returns:
            The announcement, for :meth:`submit`.

        Raises:
            TrustError: Names what differs from the trust file or from the session's first sealed round, or
                proves that the server signed two announcements for one round. Nothing was sent.
                It also says when the round would tell more about this hospital than the file pins.
            ProtocolError: The bytes are no valid announcement.
        """
        announcement = self._trust.check(payload, signature, arrays, config)
        if announcement.public_key_of(self.name) != self._identity.public_key:
            raise TrustError(f"the announcement has another key for '{self.name}' than its own")
        if announcement.phase == "evaluate" and self._state.used(
            announcement.id, self._model_tag(announcement)
        ):
            text = "this model was evaluated here before, under another round id; nothing was sent"
            raise TrustError(f"{text}: two sums that differ by one hospital would open its metrics")
        known = self._state.submitted(announcement.id) is not None
        self._account.require(announcement, submitted=known)
        if announcement.sealed is not None:
            self._state.require_origin(announcement.session, origin_of(announcement))
        self._state.accept(announcement.id, announcement.digest, Signed(payload, signature))
        self._deadline = (announcement.digest, Deadline.after(announcement.upload_seconds))
        return announcement

    def pay(self, announcement: Announcement) -> None:
        """Record what a round with noise costs, durably; a second time costs nothing.

        :meth:`submit` does so first of all. Call it before training: that no upload comes, because training
        fails or takes too long, tells something about the data as well.

        Raises:
            UsageError: It would exceed what the trust file pins. Nothing was sent.
            StateError: The disk does not take it. Nothing was sent.
        """
        self._account.charge(announcement)

    def submit(
        self,
        announcement: Announcement,
        update: Sequence[npt.NDArray[Any]],
        num_examples: int,
        metrics: Mapping[str, float],
        *,
        base: Sequence[npt.NDArray[Any]] | None = None,
        saturate: bool = False,
    ) -> bytes:
        """Encode and share an update and send each aggregator its part.

        Args:
            announcement: What :meth:`accept` returned.
            update: One array an announced array, as training made it; empty in an evaluation round.
            base: What training began with; ``update`` is then what it ended with, and the difference is
                formed in float64 on the way.
            num_examples: The number of examples behind the update.
            metrics: Exactly the announced metrics.
            saturate: Bring finite values that are out of the announced ranges to their ends instead of
                refusing them. Whoever answers a server should: a refusal tells it about a private value.

        Returns:
            The upload id (16 bytes), which is all that may go back over Flower. After an error, calling
            again resends identical bytes; a hospital that lost them in a restart sits the round out.

        Raises:
            RangeError, InputError: A value is not finite or out of its range. Nothing was sent. With
                ``saturate`` in a round with noise no value is refused.
            ProtocolError: The update, or an evaluation of this model, went out under another round id, or
                an aggregator refused it.
            PeerLostError: An aggregator cannot be reached or does not answer in time; it is named.
            DeadlineError: The time for uploads was over before the first call. Nothing was sent.
            UsageError: The round was not accepted, or would cost more than the trust file pins.
        """
        digest = announcement.digest
        if not self._state.accepted(announcement.id, digest):
            raise UsageError(f"{announcement.id} was not accepted here; call accept() first")
        known = self._state.submitted(announcement.id)
        deadline = self._upload_deadline(announcement)
        if known is None:
            self._account.charge(announcement)
            if deadline.passed:
                # Said here: an aggregator that was never asked must not get the blame.
                text = f"the {deadline.seconds:g} s for uploads to {announcement.id} were over"
                raise DeadlineError(f"{text} before this one began: nothing was sent, it sits the round out")
            tag = UpdateTag(self._state.key)
            words = UpdateWords(
                announcement.layout, update, num_examples, metrics, base=base, saturate=saturate, hear=tag.add
            )
            parts = make_parts(announcement, self._identity, words, self._sealed_tag(announcement))
            _report(announcement, words.report)
            known = Submitted(digest, parts.upload_id, header_digest(parts.header.payload))
            self._state.record(announcement.id, known, self._own_tag(announcement, tag))
            signed = self._state.announcement(announcement.id, digest)
            self._receipts.begin(announcement.id, ReceiptFile(self.name, signed, parts.header))
            self._pending = parts
        if self._pending is not None and self._pending.upload_id == known.upload_id:
            self._send(announcement, self._pending, known, deadline)
            self._pending, self._sent = None, known.upload_id
        elif self._sent != known.upload_id:
            raise ProtocolError(
                f"the upload of {announcement.id} was begun before a restart; train in the next round"
            )
        return known.upload_id

    def sealed_model(
        self, announcement: Announcement, arrays: Sequence[npt.NDArray[Any]], deadline: Deadline | None = None
    ) -> list[Floats]:
        """Return the model that a sealed round is about, put together from three parties' shares.

        Call it between :meth:`accept` and :meth:`submit`. The update is what training changed of it.

        Args:
            announcement: What :meth:`accept` returned.
            arrays: The arrays as they came: the initial parameters.
            deadline: When to give up; 30 s by default.

        Returns:
            The parameters, float64, exactly those that every other hospital gets.

        Raises:
            UsageError: The round is not sealed.
            TrustError, ProtocolError: A party refuses, or what came cannot be this model.
            PeerLostError: A party cannot be reached; it is named.
        """
        sealed = announcement.sealed
        if sealed is None:
            raise UsageError(f"{announcement.id} is not sealed: its model is what the server sent")
        words = fetch_model(
            self._links, announcement, sealed.base, arrays, deadline or Deadline.after(RECEIPT_S)
        )
        self._model = (announcement.digest, model_tag(self._trust.secret, announcement, words))
        return decode_model(words, announcement.arrays, sealed.fraction_bits)

    def last_model(
        self, announcement: Announcement, arrays: Sequence[npt.NDArray[Any]], deadline: Deadline | None = None
    ) -> tuple[int, list[Floats]]:
        """Return the number and the parameters of a sealed model's newest state.

        Args:
            announcement: The last training round that this hospital accepted.
            arrays: The initial parameters.
            deadline: When to give up; 30 s by default.

        Raises:
            TrustError: The newest state is closed, or the hospital is not in its roster.
            PeerLostError: A party cannot be reached; it is named.
        """
        sealed = announcement.sealed
        if sealed is None:
            raise UsageError(f"{announcement.id} is not sealed: its model is what the server sends")
        deadline = deadline or Deadline.after(RECEIPT_S)
        number = announcement.round
        try:
            words = fetch_model(self._links, announcement, number, arrays, deadline)
        except ProtocolError:
            # The round ended without a new state at all three parties: the one before is the last.
            number = sealed.base
            words = fetch_model(self._links, announcement, number, arrays, deadline)
        return number, decode_model(words, announcement.arrays, sealed.fraction_bits)

    def last_training(self, session: bytes) -> Announcement:
        """Return the announcement of the last training round of a session that this hospital accepted.

        Raises:
            UsageError: There is none, in this process or an earlier one.
        """
        for signed in self._state.announcements(session):
            announcement = decode_accepted(signed.payload)
            accepted = self._state.accepted(announcement.id, announcement.digest)
            if announcement.phase == "train" and accepted:
                return announcement
        raise UsageError(f"'{self.name}' took part in no training round of session {session.hex()[:8]}")

    def receipt(self, announcement: Announcement, deadline: Deadline | None = None) -> InclusionReceipt:
        """Ask whether this hospital's upload is in the sum and check the proof.

        Raises:
            TrustError: The aggregators acknowledged the upload and left it out, or the proof is wrong.
            RoundAbortedError: The round ended without a result; the update is void.
            PeerLostError: No aggregator answered in time.
        """
        known = self._state.submitted(announcement.id)
        if known is None:
            raise UsageError(f"nothing was submitted in {announcement.id}, so there is no receipt")
        deadline = deadline or Deadline.after(RECEIPT_S)
        try:
            reply = ask_receipt(self._links, announcement, known.upload_id, deadline)
        except ProtocolError:
            # No aggregator knows the round: nobody ever will, and asking again is in vain.
            self._state.add_verdict(announcement.id, Verdict.NOT_COUNTED)
            raise
        if reply.status != "included":
            self._state.add_verdict(announcement.id, Verdict.NOT_COUNTED)
        if reply.status == "aborted":
            raise RoundAbortedError(f"{announcement.id} was aborted; its update is void")
        if reply.status != "included":
            text = f"this hospital's upload is not in the sum of {announcement.id}"
            raise TrustError(f"{text}, the aggregators say: {reply.reason}")
        receipt = check_receipt(announcement, self.name, known.upload_id, known.header_digest, reply)
        self._state.add_verdict(announcement.id, Verdict.COUNTED)
        self._receipts.prove(announcement.id, reply)
        return receipt

    def unconfirmed(self) -> list[Announcement]:
        """Return rounds of which it is not known yet whether the upload was counted, a few at a time.

        What was uploaded is on disk: in a deployment each message may have a process of its own.
        """
        signed = self._state.unconfirmed(_MOST_UNCONFIRMED)
        return [decode_accepted(one.payload) for one in signed]

    def _own_tag(self, announcement: Announcement, update: UpdateTag) -> bytes:
        """Return what goes out under one round id alone."""
        if announcement.phase == "evaluate":
            return self._model_tag(announcement)
        if self._account.limited:
            # The budget bounds what two sums tell together. That an update has come again would be told
            # without noise: who does not upload is seen.
            return self._state.tag("noise", [announcement.digest])
        return update.digest()

    def _model_tag(self, announcement: Announcement) -> bytes:
        sealed = announcement.sealed
        if sealed is not None and sealed.base:
            # Its arrays are the initial ones in every round; the state that is evaluated has this name.
            return self._state.tag(
                "sealed evaluation", [announcement.session + sealed.base.to_bytes(4, "big")]
            )
        return self._state.tag("evaluation", announcement.array_digests)

    def _sealed_tag(self, announcement: Announcement) -> bytes:
        if announcement.sealed is None:
            return b""
        if self._model is None or self._model[0] != announcement.digest:
            raise UsageError(f"{announcement.id} is sealed; call sealed_model() and train what it returns")
        return self._model[1]

    def _upload_deadline(self, announcement: Announcement) -> Deadline:
        if self._deadline is not None and self._deadline[0] == announcement.digest:
            return self._deadline[1]
        return Deadline.after(announcement.upload_seconds)

    def _send(
        self, announcement: Announcement, parts: UploadParts, known: Submitted, deadline: Deadline
    ) -> None:
        replies = self._links.call_each(Upload(parts.header), parts.parts, Stored, deadline=deadline)
        for name, reply in replies.items():
            if reply.aggregator != name:
                raise ProtocolError(f"'{name}' acknowledged in the name of '{reply.aggregator}'")
            check_acknowledgement(announcement, known.upload_id, known.header_digest, reply)
        self._receipts.acknowledge(announcement.id, {name: one.signature for name, one in replies.items()})


def _report(announcement: Announcement, report: ClipReport) -> None:
    if report.clipped and announcement.encoding.noise is not None:
        # No warning: the norm is meant to be shorter than many updates.
        text = (
            "%s: the update was longer than the L2 norm of the round, or had values that are not finite; it"
            " was brought into it"
        )
        _log.info(text, announcement.id)
    elif report.clipped:
        text = "%s: %d of %d values were out of the announced ranges and were brought into them"
        _log.warning(text, announcement.id, report.clipped, report.total)
