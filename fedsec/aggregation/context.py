"""What the rounds of one aggregator share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedsec.aggregation.messages import AbortRound, Hello, MissedEvents, SetSignature, UploadList
from fedsec.aggregation.policy import Policy
from fedsec.aggregation.signing import Signer, digest
from fedsec.aggregation.store import Store


@dataclass(frozen=True, slots=True)
class Context:
    """What all rounds of an aggregator share."""

    signer: Signer
    store: Store
    policy: Policy
    clock: Callable[[], float]
    """Seconds since the epoch: deadlines outlive a restart."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A statement for one peer; ``counter`` orders what one aggregator says."""

    peer: str
    counter: int
    message: UploadList | SetSignature | Hello | MissedEvents | AbortRound
    round_key: bytes


def commitment(round_key: bytes, aggregator: str, nonce: bytes, words: bytes) -> bytes:
    """Return the blinded commitment of an aggregator to its sum share."""
    return digest("sum share", round_key, aggregator.encode(), nonce, words)
