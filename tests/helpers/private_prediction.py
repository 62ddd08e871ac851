"""Predictions of a plan by the three simulated parties, in either mode."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsec.mpc import Party, simulate
from fedsec.nn import Plan, Weights, encode_input, share_weights
from fedsec.nn.engine import Mode, make_engine
from fedsec.nn.plan import Reveal
from fedsec.ring import RingArray, decode, fresh_stream
from fedsec.sharing import replicated
from fedsec.sharing.replicated import RepShare

_BATCHES = 4
"""Batches of one simulation: its dealer runs ahead, and what it has dealt waits in memory."""


def answers(
    plan: Plan,
    weights: Weights,
    images: np.ndarray,
    mode: Mode,
    *,
    reveal: Reveal = "logits",
    batch: int = 100,
) -> np.ndarray:
    """Share parameters and images, run the three parties batch by batch, join their answers."""
    head = plan.with_head(reveal)
    found = []
    for start in range(0, len(images), _BATCHES * batch):
        words = encode_input(plan, images[start : start + _BATCHES * batch])
        parts = [words[first : first + batch] for first in range(0, len(words), batch)]
        found.append(_joined(plan, weights, parts, mode, reveal))
    return decode(np.concatenate(found), head.output_fraction_bits)


def _joined(
    plan: Plan, weights: Weights, parts: Sequence[RingArray], mode: Mode, reveal: Reveal
) -> RingArray:
    parameters = share_weights(plan, weights, fresh_stream())
    inputs = [replicated.share(words, fresh_stream(), plan.fraction_bits) for words in parts]

    def program(party: Party) -> RingArray:
        engine = make_engine(mode, party, plan, parameters[party.id])
        shares: list[RepShare] = [triple[party.id] for triple in inputs]
        return np.concatenate([engine.predict(share, reveal) for share in shares])

    first, second, third = simulate(program).results
    total: RingArray = first + second + third
    return total
