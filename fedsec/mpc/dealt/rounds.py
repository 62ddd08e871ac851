"""Running the evaluators' computations in step: each round of all of them is one message each way."""

from __future__ import annotations

from collections.abc import Sequence

from fedsec.mpc.dealt.gates import FIRST, SECOND, Rounds
from fedsec.mpc.party import Layout, Party
from fedsec.ring import RingArray


def run_together(party: Party, computations: Sequence[Rounds]) -> list[RingArray]:
    """Run computations with the same number of rounds, e.g. one network on several blocks of images.

    Args:
        party: An evaluator.
        computations: What it computes; the other evaluator runs its side of the same.

    Returns:
        The result of each.

    Raises:
        PeerLostError, DeadlineError, ProtocolError: As ``Party.exchange``.
    """
    other = SECOND if party.id == FIRST else FIRST
    if len(computations) == 1:
        return [_run_alone(party, other, computations[0])]
    results: list[RingArray] = []
    received: Sequence[RingArray | None] = [None] * len(computations)
    while True:
        mine: list[RingArray] = []
        for computation, theirs in zip(computations, received, strict=True):
            try:
                mine.append(computation.send(theirs) if theirs is not None else next(computation))
            except StopIteration as stop:
                results.append(stop.value)
        if len(results) == len(computations):
            return results
        received = party.exchange({other: mine}, {other: [Layout.of(words) for words in mine]})[other]


def _run_alone(party: Party, other: int, computation: Rounds) -> RingArray:
    """Run one computation, the usual case: what a round costs in Python is most of what an image costs."""
    try:
        words = next(computation)
        while True:
            words = computation.send(party.swap(other, words))
    except StopIteration as stop:
        result: RingArray = stop.value
        return result
