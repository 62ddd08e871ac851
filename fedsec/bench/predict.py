"""``fedsec bench predict``: what a private prediction costs, beside Keras in the clear, in one run.

Three party processes, a client process and a Keras process; on a machine with few cores only one of them
is asked at a time. The private and the clear way take turns, so that both meet the same weather.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsec.bench.counting import count
from fedsec.bench.machine import machine
from fedsec.bench.models import CLEAR, CNN, MLP, SHORT_CONV
from fedsec.bench.service import Service, an_image, parties, served
from fedsec.bench.timing import Timing
from fedsec.bench.workers import Worker
from fedsec.cluster.cluster import Cluster
from fedsec.errors import PeerLostError
from fedsec.lab.share import plan_of
from fedsec.nn import REVEALS, Reveal
from fedsec.nn.engine import MODES

WAYS = ("predict", "call", "function")

LABEL_EPSILON = 3.0
"""Of the noisy labels that are measured; a smaller or larger one changes the table that is dealt, no more."""

BATCH = 128
ONE_WAY_MS = 10.0
_END_S = 20.0
_REFILL_S = 0.4
_NOISY_TURNS = 2

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Effort:
    """How often each thing is done.

    Attributes:
        turns: The private and the clear way take turns so often.
        images: Private predictions of one image a turn, and one at a time for the sustained rate.
        clear: Clear predictions a turn, each way.
        batches: Batches a turn.
        reveals: Predictions of each kind of answer.
        wan: Predictions over the long line; none leaves it out.
        starts: Starts of ``fedsec serve``; none leaves it out.
        grown: Predictions of each large model; none leaves them out.
    """

    turns: int
    images: int
    clear: int
    batches: int
    reveals: int
    wan: int
    starts: int
    grown: int


FULL = Effort(turns=10, images=50, clear=10, batches=2, reveals=200, wan=20, starts=3, grown=50)
QUICK = Effort(turns=2, images=10, clear=2, batches=1, reveals=5, wan=0, starts=0, grown=0)


def bench_predict(model: Path | None, effort: Effort, say: Say) -> dict[str, Any]:
    """Measure everything and return it as what JSON can hold.

    Args:
        model: The folder of a run or a Keras file; by default the short-conv network with random weights.
        effort: How often each thing is done.
        say: Hears what is being measured.

    Raises:
        FedsecError: A model that cannot be served, or a process that was lost.
    """
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedsec-bench-")))
        clear = stack.enter_context(Worker(CLEAR))
        made = _model(clear, model, work)
        run = Path(made["folder"])
        results: dict[str, Any] = {"machine": machine(), "model": made}
        say("three parties over TLS, dealt and plain, and Keras, taking turns")
        with parties(work / "tls") as cluster:
            with served(run, cluster) as service:
                results["dealt"] = _dealt(service, clear, effort)
            results["noisy_label"] = _noisy(run, cluster, effort)
            with served(run, cluster, mode="plain", reveals=["logits"]) as service:
                results["plain"] = _one_service(service, effort)
        say("the same over plain TCP, for which parties and client warn: INSECURE")
        with (
            parties(work / "tcp", insecure_plaintext=True) as cluster,
            served(run, cluster, reveals=["logits"]) as service,
        ):
            results["dealt_tcp"] = _one_service(service, effort)
        say("rounds and bytes, counted in a simulation")
        results["counts"] = _counts(run)
        if effort.starts:
            say("starting `fedsec serve`")
            results["ready_s"] = [_ready_s(run) for _ in range(effort.starts)]
        if effort.wan:
            say(f"a line of {2 * ONE_WAY_MS:g} ms")
            results["wan"] = _wan(run, work, effort.wan)
        if effort.grown:
            say("larger models")
            results["grown"] = {name: _grown(name, clear, work, effort.grown) for name in (MLP, CNN)}
        return results


def _model(clear: Worker, model: Path | None, work: Path) -> dict[str, Any]:
    runs = str(work / "runs")
    made: dict[str, Any] = (
        clear.ask("make", name=SHORT_CONV, runs=runs)
        if model is None
        else clear.ask("load", path=str(model), runs=runs)
    )
    return {"name": SHORT_CONV if model is None else str(model), **made}


def _dealt(service: Service, clear: Worker, effort: Effort) -> dict[str, Any]:
    """Measure dealt mode in turns with Keras; then the other answers, memory and what the meters say."""
    _warm(service, REVEALS)
    for how in WAYS:
        clear.ask("times", how=how, count=3)
        clear.ask("times", how=how, count=2, images=BATCH)
    singles: list[float] = []
    batches: list[float] = []
    alone: dict[str, list[float]] = {how: [] for how in WAYS}
    many: dict[str, list[float]] = {how: [] for how in WAYS}
    for _ in range(effort.turns):
        singles += _single(service, effort.images)
        batches += service.times(effort.batches, BATCH)
        for how in WAYS:
            alone[how] += clear.ask("times", how=how, count=effort.clear)
            many[how] += clear.ask("times", how=how, count=effort.batches, images=BATCH)
    return {
        "one": Timing.of(singles).summary(),
        "batch": Timing.of(batches).summary(),
        "keras_one": {how: Timing.of(seconds).summary() for how, seconds in alone.items()},
        "keras_batch": {how: Timing.of(seconds).summary() for how, seconds in many.items()},
        **_sustained(service, effort),
        "reveals": _reveals(service, effort),
        "memory_mib": service.memory(),
    }


def _reveals(service: Service, effort: Effort) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {reveal: [] for reveal in REVEALS}
    for _ in range(effort.turns):
        for reveal in REVEALS:
            # The stock follows what was asked for last.
            service.times(1, reveal=reveal)
            seconds[reveal] += _single(service, max(1, effort.reveals // effort.turns), reveal)
    return {reveal: Timing.of(each).summary() for reveal, each in seconds.items()}


def _noisy(run: Path, cluster: Cluster, effort: Effort) -> dict[str, Any]:
    """Measure a noisy label beside the label itself: services of their own, in turns."""
    seconds: dict[str, list[float]] = {"label": [], "noisy": []}
    for _ in range(_NOISY_TURNS):
        for name, epsilon in (("label", None), ("noisy", LABEL_EPSILON)):
            with served(run, cluster, reveals=["label"], label_epsilon=epsilon) as service:
                service.times(5, reveal="label")
                seconds[name] += _single(service, max(1, effort.reveals // _NOISY_TURNS), "label")
    plan, weights = plan_of(run)
    counted = count(plan, weights, "dealt", "label", LABEL_EPSILON).summary()
    timed = {name: Timing.of(each).summary() for name, each in seconds.items()}
    return {"epsilon": LABEL_EPSILON, "counts": counted, **timed}


def _sustained(service: Service, effort: Effort) -> dict[str, Any]:
    """Ask without a pause, one image at a time and in batches; bytes and processor time by process."""
    singles, batches = effort.turns * effort.images, effort.turns * effort.batches
    bytes_before, cpu_before = service.party_bytes(), service.cpu_seconds()
    one_at_a_time = service.rate(singles)
    bytes_after, cpu_between = service.party_bytes(), service.cpu_seconds()
    in_batches = service.rate(batches, BATCH)
    cpu_after = service.cpu_seconds()
    return {
        "sustained_images_s": one_at_a_time,
        "batch_images_s": in_batches,
        "party_bytes_an_image": an_image(bytes_after, bytes_before, singles),
        "cpu_ms_an_image": an_image(cpu_between, cpu_before, singles, 1e-3),
        "batch_cpu_ms_an_image": an_image(cpu_after, cpu_between, batches * BATCH, 1e-3),
    }


def _one_service(service: Service, effort: Effort) -> dict[str, Any]:
    _warm(service, ["logits"])
    return {
        "one": Timing.of([s for _ in range(effort.turns) for s in _single(service, effort.images)]).summary(),
        **_sustained(service, effort),
        "memory_mib": service.memory(),
    }


def _single(service: Service, count: int, reveal: Reveal = "logits") -> list[float]:
    """Ask as users do who find that nobody has asked for a moment: with material in stock."""
    time.sleep(_REFILL_S)
    return service.times(count, reveal=reveal)


def _warm(service: Service, reveals: Any) -> None:
    for reveal in reveals:
        service.times(5, reveal=reveal)
    service.times(2, BATCH)


def _counts(run: Path) -> dict[str, Any]:
    plan, weights = plan_of(run)
    return {
        mode: {reveal: count(plan, weights, mode, reveal).summary() for reveal in REVEALS} for mode in MODES
    }


def _wan(run: Path, work: Path, images: int) -> dict[str, Any]:
    results: dict[str, Any] = {"round_trip_ms": 2 * ONE_WAY_MS}
    with parties(work / "wan", one_way_ms=ONE_WAY_MS) as cluster:
        for mode in MODES:
            with served(run, cluster, mode=mode, reveals=["logits", "label"]) as service:
                _warm(service, [])
                results[mode] = {
                    reveal: Timing.of(service.times(images, reveal=reveal)).summary()
                    for reveal in ("logits", "label")
                }
    return results


def _grown(name: str, clear: Worker, work: Path, images: int) -> dict[str, Any]:
    made = clear.ask("make", name=name, runs=str(work / "runs"))
    run = Path(made["folder"])
    results: dict[str, Any] = {"parameters": made["parameters"]}
    with parties(work / name) as cluster:
        for mode in MODES:
            with served(run, cluster, mode=mode, reveals=["logits"]) as service:
                service.times(5)
                results[mode] = {
                    "one": Timing.of(_single(service, images)).summary(),
                    "batch_images_s": service.rate(2, BATCH),
                    "memory_mib": service.memory(),
                }
    clear.ask("times", how="predict", count=3)
    results["keras_one"] = Timing.of(clear.ask("times", how="predict", count=10)).summary()
    return results


def _ready_s(run: Path) -> float:
    """Return the seconds from the command ``fedsec serve RUN`` to the line that says how to ask."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "fedsec", "serve", str(run)],
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        try:
            for line in process.stdout or ():
                if line.startswith(b"serving"):
                    return time.perf_counter() - start
            process.wait(_END_S)
            errors.seek(0)
            raise PeerLostError(
                f"expected `fedsec serve` to serve, it ended: {errors.read().decode()[-500:]}"
            )
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=_END_S)
