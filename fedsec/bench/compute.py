"""One party's engine, measured by itself: no users, no agreement on what comes next."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedsec.bench.asker import pictures
from fedsec.bench.timing import Timing
from fedsec.mpc import Party, establish
from fedsec.nn import Plan, Reveal, encode_input, share_weights
from fedsec.nn.engine import Engine, Mode, make_engine
from fedsec.ring import KEY_BYTES, RING64, KeyedStream
from fedsec.sharing import replicated
from fedsec.sharing.replicated import RepShare
from fedsec.transport import Deadline, SocketChannel

_WAIT_S = 30.0
_WARM = 3


def compute(
    party_id: int,
    before: SocketChannel,
    following: SocketChannel,
    *,
    plan: str,
    mode: Mode,
    reveal: Reveal,
    images: int,
    count: int,
) -> dict[str, dict[str, float]]:
    """Prepare and predict again and again; returns wall and CPU times of both as percentiles.

    All weights are zero and shared with a key that everybody knows: nothing here is anybody's secret, and
    no time depends on it.

    Args:
        party_id: 0, 1 or 2.
        before: Link to the party before.
        following: Link to the party after.
        plan: File of the plan.
        mode: How to compute.
        reveal: What the answer is.
        images: Images a prediction.
        count: Predictions.
    """
    party = establish(party_id, before, following, b"bench", Deadline.after(_WAIT_S), wait_s=_WAIT_S)
    engine, x = _ready(party, Plan.load(Path(plan)), mode, images)
    seconds: dict[str, list[float]] = {}
    for turn in range(_WARM + count):
        for name, call in (
            ("prepare", lambda: engine.prepare(images, reveal)),
            ("online", lambda: engine.predict(x, reveal)),
        ):
            # All begin at the same time, as they do when a request has come.
            party.pass_back(np.zeros(1, RING64.dtype))
            wall, cpu = _wall_and_cpu(call)
            if turn >= _WARM:
                seconds.setdefault(name, []).append(wall)
                seconds.setdefault(f"{name} CPU", []).append(cpu)
    return {name: Timing.of(each).summary() for name, each in seconds.items()}


def _ready(party: Party, plan: Plan, mode: Mode, images: int) -> tuple[Engine, RepShare]:
    known = KeyedStream(bytes(KEY_BYTES))
    weights = [np.zeros(spec.shape) for spec in plan.weight_specs]
    words = encode_input(plan, pictures((images, *plan.input_shape), plan.input_low, plan.input_high))
    shares = share_weights(plan, weights, known)[party.id]
    return make_engine(mode, party, plan, shares), replicated.share(words, known, plan.fraction_bits)[
        party.id
    ]


def _wall_and_cpu(call: Callable[[], object]) -> tuple[float, float]:
    cpu, wall = time.thread_time(), time.perf_counter()
    call()
    return time.perf_counter() - wall, time.thread_time() - cpu
