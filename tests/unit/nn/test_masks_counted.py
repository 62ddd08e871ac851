"""Whole networks: every byte that a party receives has a byte of mask of its own, and none is left over."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from fedsec.mpc import Party, simulate
from fedsec.mpc.simulator import RecordingParty
from fedsec.nn.engine import MODES, Mode, make_engine
from fedsec.nn.plan import REVEALS, Reveal
from fedsec.ring import RingArray
from fedsec.testing.fixed_inputs import hidden_bytes, received_bytes

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))

from small_plan import LOGITS, Model, of_party, share_images

MODEL = Model.drawn(3)
IMAGES = np.random.default_rng(4).random((5, 6))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reveal", REVEALS)
def test_each_byte_received_takes_one_byte_of_a_stream_that_its_receiver_does_not_know(
    mode: Mode, reveal: Reveal
) -> None:
    """The zero share takes the rest: one word for each word of the answer."""
    weights, x = MODEL.shares(), share_images(IMAGES)

    def program(party: Party) -> RingArray:
        assert isinstance(party, RecordingParty)
        engine = make_engine(mode, party, LOGITS, of_party(weights, party.id))
        # Two blocks, of which the second is used in parts.
        engine.prepare(2, reveal)
        engine.predict(x[party.id][:1], reveal)
        return engine.predict(x[party.id], reveal)

    done = simulate(program, record=True)

    answers = 8 * (len(IMAGES) + 1) * LOGITS.with_head(reveal).output_shape[0]
    for view in done.views:
        unknown = hidden_bytes(done.views, view.party_id)
        if (mode, view.party_id) == ("dealt", 0):
            assert (received_bytes(view), unknown) == (0, answers)
            continue
        assert received_bytes(view) + answers == unknown
