"""The view test with random inputs: each received bit is a fair coin, whatever its receiver knows.

Inputs and streams vary from lane to lane. A look is taken at the lowest bit and the two highest of every
received word, and at every received bit plane. Such a bit must

* not be an XOR of any number of known bits,
* be fair, also beside the XOR of any two known bits,
* be fair in each cell that the twelve nearest bits make: those of the inputs, in the second call of the
  session also the same bit of the first.

Known bits are those earlier of the same messages, those of everything drawn from the receiver's streams, and
of the inputs of both calls the bits of all three components and of each two components' sum (XOR for bit
sharings): every secret is among what the receiver is given here.

This finds a mask that is known, missing or used again. It does not see bits between the lowest and the
highest two, and not what leans only beside the XOR of three known bits and more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsec.mpc.simulator import View
from fedsec.testing.example import Example, known_draws, record_calls, stream_for
from fedsec.testing.inputs import Row, are_planes, rows_of
from fedsec.testing.mutants import Mutant
from fedsec.testing.statistics import (
    CELL_BITS,
    Looks,
    Span,
    fair_by_parity,
    fair_in_cells,
    row_as_integer,
)

CALLS = 2


def p_of_random_inputs(example: Example, lanes: int, seed: bytes, mutant: Mutant | None) -> float:
    """Run the test and return its p-value, corrected for the number of looks.

    Args:
        example: The protocol and its inputs.
        lanes: Number of lanes, a multiple of 64.
        seed: Fixes inputs and streams.
        mutant: What is wrong with the streams, if anything.
    """
    stream = stream_for(seed, "inputs")
    calls = [example.deal(lanes, stream) for _ in range(CALLS)]
    done = record_calls(example, calls, lanes, seed, mutant)
    inputs = [
        [row for name, spec in example.secrets.items() for row in spec.knowledge(dealt[name], lanes)]
        for dealt in calls
    ]
    looks = Looks()
    for view in done.views:
        known = [row for rows in inputs for row in rows]
        known += _bits_of_streams(done.views, view.party_id, lanes, mutant)
        _toss(view, known, inputs, lanes, looks)
    return looks.p


def _toss(view: View, known: list[Row], inputs: Sequence[list[Row]], lanes: int, looks: Looks) -> None:
    """Look at every bit that a party received."""
    span = Span(lanes)
    for row in known:
        span.add(row_as_integer(row))
    rows = [
        [row for message in view.received(call) for row in rows_of(message.words, lanes)]
        for call in range(CALLS)
    ]
    seen = np.array(known, dtype=np.uint64).reshape(len(known), lanes // 64)
    for call in range(CALLS):
        for i, target in enumerate(rows[call]):
            if not span.add(row_as_integer(target)):
                looks.add(0.0)  # an XOR of known bits: no coin at all
                return
            # Cells of what stands nearest: the same bit of the call before, and the inputs.
            near = [rows[0][i]] if call and i < len(rows[0]) else []
            near += [row for pair in zip(*inputs, strict=True) for row in pair] if call else inputs[0]
            looks.add(fair_by_parity(target, seen))
            looks.add(fair_in_cells(target, near[:CELL_BITS]))
            seen = np.concatenate([seen, target[np.newaxis]])


def _bits_of_streams(views: Sequence[View], party_id: int, lanes: int, mutant: Mutant | None) -> list[Row]:
    """Return bits of everything that anyone drew from a stream whose key this party holds."""
    rows: dict[bytes, Row] = {}
    for call in range(CALLS):
        for words in known_draws(views, party_id, call, mutant):
            # Words drawn once for all lanes are a constant of every lane, which is known anyway.
            if are_planes(words, lanes) or words.size % lanes == 0:
                rows |= {row.tobytes(): row for row in rows_of(words, lanes)}
    return list(rows.values())
