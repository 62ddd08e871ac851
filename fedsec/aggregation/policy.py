"""What an aggregator admits on its own, whatever the server announces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedsec.aggregation.announcement import SIGNATURE_LABEL, Announcement, decode_announcement
from fedsec.aggregation.messages import Signed
from fedsec.aggregation.sealed.terms import REVEAL_TO
from fedsec.aggregation.signing import check_signature
from fedsec.errors import TrustError


@dataclass(frozen=True, slots=True)
class Policy:
    """The pinned keys and limits of one aggregator.

    Attributes:
        server: The Flower server's key: it may announce rounds and is the only recipient of a sum share.
        aggregators: Key of each aggregator by name, its own among them; a round has all of them.
        hospitals: Key of each enrolled hospital by name.
        minimum_cohort: Fewest hospitals in a sum.
        agreement_s: Longest wait for the other aggregators in each step of the agreement.
        collect_s: How long an agreed sum share waits for the server before it is erased.
        longest_upload_s: Longest time a round may stay open for uploads.
        most_rounds: Most rounds that are not final at one time.
        reveal_to: Who may have the average: what it serves must be among them.
    """

    server: bytes
    aggregators: Mapping[str, bytes]
    hospitals: Mapping[str, bytes]
    minimum_cohort: int = 3
    agreement_s: float = 30.0
    collect_s: float = 600.0
    longest_upload_s: float = 24 * 3600.0
    most_rounds: int = 64
    reveal_to: tuple[str, ...] = REVEAL_TO

    def check(self, me: str, signed: Signed) -> Announcement:
        """Check a signed announcement against the pinned keys and limits.

        Raises:
            TrustError: Names the first thing that differs; the round is not opened.
            ProtocolError: The bytes are no valid announcement.
        """
        check_signature(self.server, SIGNATURE_LABEL, signed.payload, signed.signature)
        announcement = decode_announcement(signed.payload)
        for what, group, known in (
            ("aggregator", announcement.aggregators, self.aggregators),
            ("hospital", announcement.roster, self.hospitals),
        ):
            for member in group:
                if known.get(member.name) != member.public_key:
                    raise TrustError(f"{what} '{member.name}' is not enrolled at '{me}' with that key")
        self._check_limits(me, announcement)
        return announcement

    def _check_limits(self, me: str, announcement: Announcement) -> None:
        left_out = sorted(set(self.aggregators) - {member.name for member in announcement.aggregators})
        if left_out:
            # Any n-1 may collude, of all that the operators agreed on and not of those the server picks.
            text = f"aggregators {left_out} are left out of {announcement.id}; the round is refused"
            raise TrustError(f"'{me}' takes part only with all aggregators of its cluster file: {text}")
        if announcement.recipient.public_key != self.server:
            raise TrustError(f"'{me}' sends its sum share to the pinned server only; the round is refused")
        if announcement.reveal_to not in self.reveal_to:
            text = f"reveal_to '{announcement.reveal_to}' is none of those that '{me}' admits"
            raise TrustError(f"{text} ({', '.join(self.reveal_to)}); the round is refused")
        if announcement.minimum_cohort < self.minimum_cohort:
            text = (
                f"minimum_cohort {announcement.minimum_cohort} is below the {self.minimum_cohort} of '{me}'"
            )
            raise TrustError(f"{text}; the round is refused")
        if announcement.upload_seconds > self.longest_upload_s:
            raise TrustError(f"'{me}' keeps a round open for {self.longest_upload_s:g} s at most")
