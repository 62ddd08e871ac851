"""What the rounds of one aggregator share, and its history that peers remember."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedsec.aggregation.messages import AbortRound, ChainHead, Hello, SetSignature, UploadList
from fedsec.aggregation.policy import Policy
from fedsec.aggregation.signing import Signer, digest
from fedsec.aggregation.store import Store
from fedsec.errors import StateError


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
    message: UploadList | SetSignature | Hello | AbortRound
    round_key: bytes


def commitment(round_key: bytes, aggregator: str, nonce: bytes, words: bytes) -> bytes:
    """Return the blinded commitment of an aggregator to its sum share."""
    return digest("sum share", round_key, aggregator.encode(), nonce, words)


def check_chain(store: Store, peer: str, public_key: bytes, chain: ChainHead) -> None:
    """Check that a peer's history is not behind what this aggregator last saw of it.

    Raises:
        StateError: The peer's state was rolled back or forked; it is named, and this is remembered.
    """
    seen = store.chain(public_key)
    if chain.counter < seen.counter or (chain.counter == seen.counter and chain.head != seen.head):
        text = (
            f"aggregator '{peer}' is behind: it showed event {seen.counter} before, now event {chain.counter}"
        )
        text = f"{text}; its state was rolled back, it must be enrolled anew, with a new key"
        with store.transaction():
            store.set_rollback(public_key, text)
        raise StateError(text)
