"""The messages of sealed rounds. ``docs/reference/wire-format.md`` describes the same for other programs."""

from __future__ import annotations

import msgspec

from fedsec.aggregation.announcement import RoundId


class SealedStart(msgspec.Struct, frozen=True, tag="sealed_start", forbid_unknown_fields=True):
    """Server to computing party: the initial parameters, which are public. The body is the arrays' bytes."""

    round: RoundId


class Reshare(msgspec.Struct, frozen=True, tag="reshare_sum", forbid_unknown_fields=True):
    """Aggregator to computing party, after the agreement: its sum share, split afresh.

    The body is part i || part i+1 (little-endian) of the update words for computing party i; ``weight`` is
    the aggregator's share of the weight word, which is opened.
    """

    round: RoundId
    weight: int


class OpenSealedLink(msgspec.Struct, frozen=True, tag="open_sealed_link", forbid_unknown_fields=True):
    """Computing party to the one after it: this connection becomes their link for one computation."""

    round: RoundId


class SealedLinkOpened(msgspec.Struct, frozen=True, tag="sealed_link_opened", forbid_unknown_fields=True):
    """Reply: what follows on the connection are messages of the computation."""


class SealedStatus(msgspec.Struct, frozen=True, tag="sealed_status", forbid_unknown_fields=True):
    """Server to computing party: asks what became of the state that a round makes."""

    round: RoundId


class SealedOutcome(msgspec.Struct, frozen=True, tag="sealed_outcome", forbid_unknown_fields=True):
    """Reply. ``status``: "pending", "stored" (durably) or "failed"; ``reason`` only for "failed"."""

    status: str
    reason: str = ""


class FetchState(msgspec.Struct, frozen=True, tag="fetch_state", forbid_unknown_fields=True):
    """Hospital to computing party: asks for its component of a state of the sealed model."""

    session: bytes
    number: int


class StateShare(msgspec.Struct, frozen=True, tag="state_share", forbid_unknown_fields=True):
    """Reply. The body is component i of party i (little-endian 64-bit words); the three add up.

    ``origin`` names the initial parameters that the state was made from; hospitals compare it.
    """

    fraction_bits: int
    origin: bytes
