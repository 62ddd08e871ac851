"""The Flower server's side: announce a round, close it, check and join the sum shares."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import numpy.typing as npt

from fedsec.aggregation.agreement import leaves
from fedsec.aggregation.announcement import Announcement, sign_announcement
from fedsec.aggregation.checksum import Checksum
from fedsec.aggregation.encoding import DecodedSum, Floats, decode_sum
from fedsec.aggregation.links import Links, TlsLinks
from fedsec.aggregation.merkle import root
from fedsec.aggregation.messages import (
    Announce,
    Announced,
    CloseUploads,
    CollectSum,
    FinishRound,
    Received,
    SetStatement,
    Signed,
    SumShare,
)
from fedsec.aggregation.receipts import check_statements
from fedsec.aggregation.sealed.collect import send_initial, why_not_stored
from fedsec.aggregation.sealed.plan import plan_division
from fedsec.aggregation.sealed.sum import opened_words, server_part_bytes
from fedsec.aggregation.signing import Signer
from fedsec.errors import FedsecError, ProtocolError, RoundAbortedError, UsageError
from fedsec.ring import RingArray
from fedsec.sharing import additive
from fedsec.transport import Deadline, Endpoint, Identity, Meter

_FINISH_S = 5.0


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What a round opened.

    Attributes:
        arrays: The weighted mean update, float64, in announced order; empty in evaluation and sealed rounds.
        total_weight: The sum of the weights.
        metrics: The weighted mean of each metric.
        included: The hospitals in the sum, sorted.
        excluded: Why each other hospital of the roster is not: "missing", "incomplete", "inconsistent".
        error_bound: The largest possible error of an element of ``arrays`` from rounding, and of a round with
            noise from that as well, but with the probability that ``noise.terms`` states.
        words: The opened sum itself, ring elements, without the checksum word; of a sealed sum only those of
            the weight and the metrics.
        state: The number of the sealed state that the round made; None when it made none.
        not_sealed: Why a sealed training round made no state: its update is thrown away. Empty otherwise.
    """

    arrays: tuple[Floats, ...]
    total_weight: int
    metrics: dict[str, float]
    included: tuple[str, ...]
    excluded: dict[str, str]
    error_bound: float
    words: RingArray = field(repr=False)
    state: int | None = None
    not_sealed: str = ""

    @property
    def included_count(self) -> int:
        """The number of hospitals in the sum."""
        return len(self.included)


class Collector:
    """Announces rounds and collects their sums. It takes no part in choosing who is included.

    Args:
        endpoints: The aggregators.
        identity: The server's identity.
        links: Its connections; TLS to the endpoints when missing.
        meter: Counts the bytes of the TLS connections; a new one when missing.

    Attributes:
        meter: The meter of its connections.

    Raises:
        UsageError: TLS connections are to be made and the identity is no loaded one.
    """

    def __init__(
        self,
        endpoints: Iterable[Endpoint],
        identity: Signer,
        *,
        links: Links | None = None,
        meter: Meter | None = None,
    ) -> None:
        self.meter = Meter() if meter is None else meter
        if links is None:
            if not isinstance(identity, Identity):
                raise UsageError("a collector over TLS needs a loaded identity")
            links = TlsLinks(endpoints, identity, self.meter)
        self._identity, self._links = identity, links

    def __enter__(self) -> Collector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._links.close()

    def announce(
        self,
        announcement: Announcement,
        deadline: Deadline,
        arrays: Sequence[npt.NDArray[Any]] | None = None,
    ) -> Signed:
        """Sign an announcement and open the round at every aggregator, before any hospital hears of it.

        Args:
            announcement: The round.
            deadline: When to give up.
            arrays: The announced arrays, for a sealed round that begins from them.

        Returns:
            The bytes and signature for the hospitals.

        Raises:
            TrustError: An aggregator refuses keys or limits.
            PeerLostError: An aggregator cannot be reached; it is named.
        """
        signed = Signed(announcement.encode(), sign_announcement(announcement, self._identity))
        digest = announcement.digest
        for member in announcement.aggregators:
            reply, _ = self._links.call(member.name, Announce(signed), Announced, deadline=deadline)
            if reply.digest != digest:
                raise ProtocolError(f"'{member.name}' opened another announcement than the one sent")
        send_initial(self._links, announcement, arrays, deadline)
        return signed

    def collect(self, announcement: Announcement, deadline: Deadline) -> RoundResult:
        """Close the uploads, wait for the agreement and open the sum.

        Args:
            announcement: The announced round.
            deadline: Should leave the aggregators their own deadline (30 s by default), so that the error
                can name the aggregator that is missing.

        Raises:
            RoundAbortedError: The round has no result, e.g. the cohort is too small; the text says why.
            ProtocolError: An aggregator sent a share or a set that it had not signed; it is named.
            PeerLostError: An aggregator cannot be reached in time; it is named.
        """
        try:
            for member in announcement.aggregators:
                message = CloseUploads(announcement.id)
                self._links.call(member.name, message, Received, deadline=deadline)
            replies = [self._share(announcement, one.name, deadline) for one in announcement.aggregators]
            result = _open(announcement, replies)
            if announcement.sealed is None or announcement.phase != "train":
                return result
            why = why_not_stored(self._links, announcement, deadline)
            return replace(result, state=None if why else announcement.round, not_sealed=why)
        finally:
            # Good or bad, the outcome is known: nobody needs the shares any longer.
            self._finish(announcement)

    def _share(
        self, announcement: Announcement, aggregator: str, deadline: Deadline
    ) -> tuple[SumShare, bytearray]:
        size = server_part_bytes(announcement)
        message = CollectSum(announcement.id)
        while True:
            reply, body = self._links.call(
                aggregator, message, SumShare, deadline=deadline, max_body_bytes=size
            )
            if reply.ready:
                if len(body) != size:
                    raise ProtocolError(
                        f"'{aggregator}' sent a sum share of {len(body)} bytes, expected {size}"
                    )
                return reply, body
            deadline.remaining(f"aggregator '{aggregator}', which waits for the others,")

    def _finish(self, announcement: Announcement) -> None:
        deadline = Deadline.after(_FINISH_S)
        for member in announcement.aggregators:
            # An aggregator that cannot be told erases by its own deadline.
            with contextlib.suppress(FedsecError):
                self._links.call(member.name, FinishRound(announcement.id), Received, deadline=deadline)


def _open(announcement: Announcement, replies: Sequence[tuple[SumShare, bytearray]]) -> RoundResult:
    first = replies[0][0]
    statements = check_statements(announcement, first.statements)
    layout, sealed = announcement.layout, announcement.sealed is not None
    names = tuple(one.hospital for one in first.included)
    known = {member.name for member in announcement.roster}
    shares = []
    for member, statement, (reply, body) in zip(announcement.aggregators, statements, replies, strict=True):
        _check_reply(announcement, statement, reply)
        shares.append(opened_words(announcement, member.name, bytes(body), statement.commitment))
    if names != tuple(sorted(set(names))) or not set(names) <= known:
        raise ProtocolError("the included set is not sorted, or names a stranger: the round is void")
    total = additive.reconstruct(shares)
    # Of a sealed sum the checksum word is not opened: it says something about the updates.
    if not sealed and Checksum(layout, announcement.digest).difference(total):
        raise RoundAbortedError(
            "the opened sum contradicts its checksum word: an aggregator left the protocol"
        )
    decoded = decode_sum(replace(layout, arrays=()) if sealed else layout, total, len(names))
    return RoundResult(
        arrays=decoded.arrays,
        total_weight=decoded.total_weight,
        metrics=decoded.metrics,
        included=names,
        excluded={one.hospital: one.reason for one in first.excluded},
        error_bound=_error_bound(announcement, decoded, len(names)),
        words=total if sealed else total[:-1],
    )


def _error_bound(announcement: Announcement, decoded: DecodedSum, included: int) -> float:
    """Return the largest error of an element of the mean, or of the change of a sealed model."""
    sealed, arrays = announcement.sealed, announcement.layout.arrays
    if sealed is None or not arrays:
        return decoded.error_bound
    encoding, weight = announcement.encoding, decoded.total_weight
    rounding = encoding.error_bound_for(max(spec.clip for spec in arrays), included, weight)
    return rounding + plan_division(encoding, arrays, weight, sealed.fraction_bits).error_bound


def _check_reply(announcement: Announcement, statement: SetStatement, reply: SumShare) -> None:
    mine = check_statements(announcement, reply.statements)
    agreed = (mine[0].root, mine[0].included) == (statement.root, statement.included)
    fits = agreed and len(reply.included) == statement.included
    if not fits or root(leaves(announcement.id.key, reply.included)) != statement.root:
        raise ProtocolError(
            f"'{statement.aggregator}' sent another included set than it signed: the round is void"
        )
