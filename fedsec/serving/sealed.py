"""Serving a model that nobody has: parties take it out of their own sealed states, the owner only names it.

What is served follows from the plan, from where its parameters come from, and from the state, which all three
parties have in shares of one splitting. No weights are on the way, and none are with the owner.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

from fedsec.aggregation.sealed.state import SealedState, SealedStates
from fedsec.errors import TrustError, UsageError
from fedsec.nn import Plan
from fedsec.nn.sealed import Source, gather, serving_digest
from fedsec.serving.limits import check_model_bytes
from fedsec.serving.messages import ID_BYTES, ShareSealed
from fedsec.serving.shelf import HeldModel
from fedsec.serving.weights import plan_from_wire, plan_to_wire, weight_elements

_SHARE_BYTES = 16
"""Of one weight: two components of eight bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedModel:
    """A sealed state and how it is served; all of it public.

    Attributes:
        plan: The public plan.
        sources: Where its arrays of parameters come from.
        session: The training's session, 16 bytes.
        number: The state: the number of the round that made it.
        words: How many words the state has.
        fraction_bits: Of its words.
    """

    plan: Plan
    sources: tuple[Source, ...]
    session: bytes
    number: int
    words: int
    fraction_bits: int

    def message(self, model: bytes) -> ShareSealed:
        """Return what the owner tells each party, under a model id."""
        text, digest = plan_to_wire(self.plan)
        return ShareSealed(
            model=model,
            plan=text,
            digest=digest,
            session=self.session,
            number=self.number,
            sources=self.sources,
            words=self.words,
            fraction_bits=self.fraction_bits,
        )


def sharing_of(message: ShareSealed) -> bytes:
    """Return the name of the one splitting that all parties must serve: state, plan and sources."""
    named = ("fedsec sealed sharing v1", message.session, message.number, message.digest, message.sources)
    return hashlib.sha256(msgspec.msgpack.encode(named)).digest()[:ID_BYTES]


def take(message: ShareSealed, states: SealedStates, most_bytes: int) -> HeldModel:
    """Return this party's part of a sealed model.

    Args:
        message: What the owner has named.
        states: The states of this party.
        most_bytes: Largest part of a model's weights.

    Raises:
        ProtocolError: There is no such state, or the plan is not its own encoding.
        StateError: The state's file is damaged.
        TrustError: The state may not be served, or not under this plan.
        UsageError: Plan and state do not fit each other, or the part is too large.
    """
    plan = plan_from_wire(message.plan, message.digest)
    check_model_bytes(weight_elements(plan) * _SHARE_BYTES, most_bytes)
    state = states.read(message.session, message.number)
    _check(message, plan, state)
    weights = gather(plan, message.sources, state.share)
    sharing = sharing_of(message)
    return HeldModel(message.model, plan, message.plan, message.digest, sharing, weights, message.sources)


def _check(message: ShareSealed, plan: Plan, state: SealedState) -> None:
    if not state.closed:
        raise TrustError(
            f"state {message.number} of this session is one that hospitals may fetch and train on: only the"
            " last, closed one is served"
        )
    if (state.share.size, state.fraction_bits) != (message.words, message.fraction_bits):
        raise UsageError(
            f"the sealed state has {state.share.size} words with {state.fraction_bits} fraction bits, the"
            f" plan was made for {message.words} with {message.fraction_bits}"
        )
    if state.serves != serving_digest(plan, message.sources):
        raise TrustError(
            "this sealed state may be served only under the plan that was announced with its training; this"
            " is another one"
        )
