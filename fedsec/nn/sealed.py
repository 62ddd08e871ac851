"""Parameters of a plan that nobody has: taken out of a sealed state, which is there in shares only.

The state is one vector of words with F fraction bits. Each array of the plan's parameters is a run of its
words, or zeros, times a public number: 2^(f - F), where the plan wants f fraction bits, by what the kernel is
divided by for a pooling. Fewer bits take a protocol: shares cannot be divided locally.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from math import prod
from typing import Annotated

import msgspec
import numpy as np

from fedsec.errors import UsageError
from fedsec.mpc import Party, multiply_fraction
from fedsec.nn.plan import Plan, WeightSpec
from fedsec.nn.weights import bias_corrections
from fedsec.sharing.replicated import RepShare

WORD_BITS = 62
"""A word of the state times its factor stays below 2^62 in size: so much can be truncated soundly."""

_AT_ONCE = 1 << 18
"""Words truncated in one message: 2 MB."""


class Source(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where one array of a plan's parameters comes from: ``state[start:] * factor / 2^shift``, rounded.

    Attributes:
        start: First word of the state; None for an array of zeros, such as the bias of a layer without one.
        factor: Public number that each word is multiplied with.
        shift: Bits that are dropped after that.
    """

    start: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)] | None
    factor: Annotated[int, msgspec.Meta(ge=1, le=1 << WORD_BITS)] = 1
    shift: Annotated[int, msgspec.Meta(ge=0, le=WORD_BITS)] = 0


def serving_digest(plan: Plan, sources: Sequence[Source]) -> bytes:
    """Return the SHA-256 of a plan and of where its parameters come from.

    It is announced before training, from public data alone. Parties serve a closed state under nothing else:
    a plan of the owner's own could read parameters out, for example one Dense layer of them whose answers to
    a few inputs are the parameters themselves.
    """
    encoded = msgspec.msgpack.encode(("fedsec sealed serving v1", plan.to_json(), tuple(sources)))
    return hashlib.sha256(encoded).digest()


def check_sources(plan: Plan, sources: Sequence[Source], words: int) -> None:
    """Check that each array of a plan comes from words that a state has.

    Raises:
        UsageError: There are more or fewer sources than arrays, or one reaches beyond the state.
    """
    specs = plan.weight_specs
    if len(sources) != len(specs):
        raise UsageError(
            f"plan {plan.name!r} has {len(specs)} arrays of parameters, got {len(sources)} sources"
        )
    for number, (source, spec) in enumerate(zip(sources, specs, strict=True)):
        if source.start is not None and source.start + prod(spec.shape) > words:
            raise UsageError(
                f"array {number} of plan {plan.name!r} is to come from words {source.start} to"
                f" {source.start + prod(spec.shape) - 1}, the sealed state has {words}"
            )


def gather(plan: Plan, sources: Sequence[Source], state: RepShare) -> tuple[RepShare, ...]:
    """Return shares of the state's words that each array of the plan comes from, in the array's shape; local.

    Raises:
        UsageError: As ``check_sources``.
    """
    check_sources(plan, sources, state.size)
    flat = state.reshape(-1)
    return tuple(
        _zeros(spec, state) if source.start is None else _run(flat, source.start, spec)
        for source, spec in zip(sources, plan.weight_specs, strict=True)
    )


def rescale(
    party: Party, plan: Plan, sources: Sequence[Source], words: Sequence[RepShare]
) -> tuple[RepShare, ...]:
    """Turn gathered words of a state into the plan's parameters, in shares.

    Security: ``multiply_fraction``, or a product with a public number, which is local.

    Args:
        party: This party's session in the 64-bit ring.
        plan: Gives the fraction bits.
        sources: Where its arrays come from.
        words: What ``gather`` gave.

    Returns:
        Arrays as ``share_weights`` gives them, each off by at most one unit and right on average.
    """
    with party.step("rescale"):
        scaled = [
            _rescaled(party, source, spec, share)
            for source, spec, share in zip(sources, plan.weight_specs, words, strict=True)
        ]
    return tuple(
        share.add_public(party.id, more) if more else share
        for share, more in zip(scaled, bias_corrections(plan), strict=True)
    )


def _rescaled(party: Party, source: Source, spec: WeightSpec, words: RepShare) -> RepShare:
    if source.start is None or not source.shift:
        moved = words if source.start is None else words.scale_public(source.factor)
        return RepShare(moved.own, moved.next, spec.fraction_bits)
    pieces = _pieces(words.reshape(-1))
    parts = [multiply_fraction(party, piece, source.factor, source.shift) for piece in pieces]
    own, following = (np.concatenate([getattr(part, side) for part in parts]) for side in ("own", "next"))
    return RepShare(own, following, spec.fraction_bits).reshape(*spec.shape)


def _pieces(words: RepShare) -> Iterator[RepShare]:
    for start in range(0, words.size, _AT_ONCE):
        yield words[start : start + _AT_ONCE]


def _run(flat: RepShare, start: int, spec: WeightSpec) -> RepShare:
    return flat[start : start + prod(spec.shape)].reshape(*spec.shape)


def _zeros(spec: WeightSpec, like: RepShare) -> RepShare:
    zeros = np.zeros(spec.shape, dtype=like.ring.dtype)
    return RepShare(zeros, zeros, like.fraction_bits)
