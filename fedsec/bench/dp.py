"""DP-SGD beside Keras' own ``fit`` of the same model, passes over the same images in turn; integer noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from fedsec.bench.dp_noise import bench_noise, rows_of_noise
from fedsec.bench.machine import machine
from fedsec.bench.report import Row, print_rows
from fedsec.bench.workers import Worker

Say = Callable[[str], None]

BATCH = 256
_ASKED = {"short-conv": (1.7, 1.2), "tf-privacy": (2.2, 1.5)}
"""Must and aim of the time of an example, as a multiple of plain training's."""
_MEMORY = (1.5, 1.5)


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    Attributes:
        examples: Images of a pass.
        passes: Passes of either kind, in turn.
        noise: Values of integer noise that are drawn at a time.
    """

    examples: int
    passes: int
    noise: int = 1_000_000


FULL = Effort(25_600, 7)
QUICK = Effort(5_120, 3)


def bench_dp(effort: Effort, say: Say) -> dict[str, Any]:
    """Measure every model, then the noise of sums.

    The time of an example is that of a pass by the examples in it: exactly with ``fit``, in expectation with
    Poisson samples. Sampling, filling up and noise are in it.

    Returns:
        What JSON can hold; times in microseconds an example, medians over the passes.
    """
    models = {name: _measured(name, effort, say) for name in _ASKED}
    say(f"{effort.noise:,} values of integer noise, {effort.passes} times ours and numpy's in turn")
    return {
        "machine": machine(),
        "batch": BATCH,
        "examples": effort.examples,
        "models": models,
        "noise": bench_noise(effort.noise, effort.passes),
    }


def _measured(name: str, effort: Effort, say: Say) -> dict[str, Any]:
    module = "fedsec.bench.dp_worker"
    with Worker(module) as plain, Worker(module) as private:
        say(f"{name}: {effort.passes} passes over {effort.examples} images, plain and private in turn")
        workers = {"plain": plain, "private": private}
        made = {
            kind: worker.ask(
                "make", model=name, private=kind == "private", examples=effort.examples, batch=BATCH
            )
            for kind, worker in workers.items()
        }
        turns = [
            {kind: worker.ask("epoch") for kind, worker in workers.items()} for _ in range(effort.passes)
        ]
        memory = {kind: worker.ask("memory") for kind, worker in workers.items()}
    # A Poisson pass has whole steps.
    seen = {"plain": effort.examples, "private": math.ceil(effort.examples / BATCH) * BATCH}
    times = {
        kind: {
            clock: float(np.median([turn[kind][clock] for turn in turns])) / seen[kind] * 1e6
            for clock in ("wall_s", "cpu_s")
        }
        for kind in workers
    }
    return {
        "parameters": made["plain"]["parameters"],
        "example_us": {kind: one["wall_s"] for kind, one in times.items()},
        "example_cpu_us": {kind: one["cpu_s"] for kind, one in times.items()},
        # Of each turn, so that what else the machine does meets both.
        "ratio": _median_ratio(turns, "wall_s"),
        "cpu_ratio": _median_ratio(turns, "cpu_s"),
        "memory_mib": memory,
    }


def _median_ratio(turns: list[dict[str, dict[str, float]]], clock: str) -> float:
    return float(np.median([turn["private"][clock] / turn["plain"][clock] for turn in turns]))


def rows_of(results: Mapping[str, Any]) -> list[Row]:
    """Return the figures of a measurement, in the table's order."""
    rows: list[Row] = []
    for name, found in results["models"].items():
        memory = found["memory_mib"]
        rows += [
            Row(f"{name}, time of an example by plain fit's", found["ratio"], "x", *_ASKED[name]),
            Row(f"{name}, CPU time by plain fit's", found["cpu_ratio"], "x"),
            Row(f"{name}, an example, plain", found["example_us"]["plain"], "us"),
            Row(f"{name}, an example, private", found["example_us"]["private"], "us"),
            Row(f"{name}, memory by plain fit's", memory["private"] / memory["plain"], "x", *_MEMORY),
        ]
    return rows + rows_of_noise(results["noise"])


def print_dp(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the table."""
    title = f"DP-SGD at batches of {results['batch']}, beside Keras' fit of the same model"
    print_rows(title, rows_of(results), console or Console())
