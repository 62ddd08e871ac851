"""A plan and its weights on the wire: the plan as canonical JSON, the weights as one split vector."""

from __future__ import annotations

import hashlib
import hmac
from math import prod

import numpy as np

from fedsec.errors import ProtocolError, UsageError
from fedsec.nn import Plan, Weights, encode_weights
from fedsec.ring import RingArray
from fedsec.serving.parts import Part
from fedsec.sharing.replicated import RepShare


def plan_to_wire(plan: Plan) -> tuple[bytes, bytes]:
    """Return a plan's canonical bytes and their SHA-256."""
    text = plan.to_json()
    return text, hashlib.sha256(text).digest()


def plan_from_wire(text: bytes, digest: bytes) -> Plan:
    """Read a plan that came with its digest.

    Raises:
        ProtocolError: the digest is another one, or the bytes are not the canonical ones of a plan,
            so that equal plans could have different digests.
        UsageError: the bytes are no plan.
    """
    if not hmac.compare_digest(hashlib.sha256(text).digest(), digest):
        raise ProtocolError("expected a plan with the digest that came beside it, got another: it is refused")
    try:
        plan = Plan.from_json(text)
    except RecursionError as error:
        raise UsageError("this is no plan of fedsec: it is nested too deeply") from error
    if plan.to_json() != text:
        raise ProtocolError("expected a plan in its canonical encoding, got another: it is refused")
    return plan


def weight_elements(plan: Plan) -> int:
    """Number of ring elements of all weights together."""
    return sum(prod(spec.shape) for spec in plan.weight_specs)


def flat_weights(plan: Plan, weights: Weights) -> RingArray:
    """Encode all weights and lay them one after the other, in plan order.

    Raises:
        InputError: number or shapes are not those of the plan.
        RangeError: a weight does not fit the ring.
    """
    flat: RingArray = np.concatenate([words.reshape(-1) for words in encode_weights(plan, weights)])
    return flat


def join_weights(plan: Plan, part: Part) -> tuple[RepShare, ...]:
    """Cut one party's part of the flat weights into shares of each array."""
    shares: list[RepShare] = []
    start = 0
    for spec in plan.weight_specs:
        end = start + prod(spec.shape)
        own, following = part.own[start:end].reshape(spec.shape), part.next[start:end].reshape(spec.shape)
        shares.append(RepShare(own=own, next=following, fraction_bits=spec.fraction_bits))
        start = end
    return tuple(shares)
