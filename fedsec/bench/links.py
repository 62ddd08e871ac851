"""``fedsec bench links``: what one communication round costs, beside sockets with nothing around them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedsec.bench.end import KINDS
from fedsec.bench.workers import Worker
from fedsec.cluster.keys import identity_path, make_local_keys, numbered
from fedsec.transport import Identity

SIZES = (64, 2_000, 20_000, 200_000)
ENDS = (2, 3)
END = "fedsec.bench.end"
_WARM = 50


def bench_links(count: int) -> dict[str, dict[int, float]]:
    """Measure rounds of two and of three processes; returns microseconds by kind of link and size.

    Two processes send to each other at the same time; three pass on in a circle.

    Args:
        count: Rounds of each size.
    """
    results: dict[str, dict[int, float]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedsec-bench-")))
        names = numbered("end", max(ENDS))
        make_local_keys(folder, names, 0)
        workers = [stack.enter_context(Worker(END)) for _ in names]
        for ends in ENDS:
            for kind in KINDS:
                times = _measure(kind, folder, names[:ends], workers[:ends], count)
                results[f"{ends} processes, {kind}"] = times
    return results


def _measure(
    kind: str, keys: Path, names: Sequence[str], workers: Sequence[Worker], count: int
) -> dict[int, float]:
    meet(kind, keys, names, workers)
    together(workers, "rounds", [{"size": SIZES[0], "count": _WARM}] * len(workers))
    timings: dict[int, float] = {}
    for size in SIZES:
        asked = [{"size": size, "count": count}] * len(workers)
        timings[size] = max(together(workers, "rounds", asked)) * 1e6
    together(workers, "close", [{}] * len(workers))
    return timings


def meet(kind: str, keys: Path, names: Sequence[str], workers: Sequence[Worker]) -> None:
    """Connect the ends in a circle; two of them share one link.

    Args:
        kind: One of ``KINDS``.
        keys: Folder with an identity of each name.
        names: Of the ends.
        workers: Their processes, in the same order.
    """
    ports = [worker.ask("listen") for worker in workers]
    asked = []
    for number, name in enumerate(names):
        following = (number + 1) % len(names)
        key = Identity.load(identity_path(keys, names[following])).public_key.hex()
        dials = len(names) > 2 or number == 0
        asked.append(
            {
                "kind": kind,
                "identity": str(identity_path(keys, name)),
                "following": (names[following], ports[following], key) if dials else None,
                "accepts": len(names) > 2 or number == 1,
            }
        )
    together(workers, "meet", asked)


def together(workers: Sequence[Worker], operation: str, asked: Sequence[dict[str, Any]]) -> list[Any]:
    """Let every worker do an operation at the same time, each with its own arguments."""
    for worker, arguments in zip(workers, asked, strict=True):
        worker.tell(operation, **arguments)
    return [worker.answer() for worker in workers]


def print_links(results: Mapping[str, Mapping[int, float]], console: Console | None = None) -> None:
    """Print the table."""
    table = Table(title="One communication round, mean in microseconds", title_justify="left")
    table.add_column("links")
    for size in SIZES:
        table.add_column(f"{size} B", justify="right")
    for links, timings in results.items():
        table.add_row(links, *(f"{timings[size]:.0f}" for size in SIZES))
    (console or Console()).print(table)
