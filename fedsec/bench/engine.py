"""``fedsec bench engine``: the three parties' computation alone, prepared part and online part."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedsec.bench.links import END, meet, together
from fedsec.bench.models import CLEAR, SHORT_CONV
from fedsec.bench.workers import Worker
from fedsec.cluster.keys import make_local_keys, numbered
from fedsec.lab.rundir import RunFolder
from fedsec.nn import Reveal
from fedsec.nn.engine import MODES
from fedsec.sharing.replicated import PARTIES

BATCHES = (1, 16, 128)
_KINDS = ("tls", "tcp")
_IMAGES = 256


def bench_engine(
    run: Path | None, reveal: Reveal, count: int, batches: Sequence[int] = BATCHES
) -> dict[str, Any]:
    """Measure and return wall and CPU times by mode, kind of link, batch and party.

    Args:
        run: A run's folder; by default the short-conv network.
        reveal: What the answer is.
        count: Predictions of one image; of larger batches fewer.
        batches: Images in each prediction.
    """
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="fedsec-bench-") as work:
        names = numbered("end", PARTIES)
        make_local_keys(Path(work) / "keys", names, 0)
        plan = str(RunFolder.open(run or _short_conv(Path(work))).plan)
        for mode in MODES:
            for kind in _KINDS:
                with ExitStack() as stack:
                    workers = [stack.enter_context(Worker(END)) for _ in names]
                    for images in batches:
                        meet(kind, Path(work) / "keys", names, workers)
                        asked = {"plan": plan, "mode": mode, "reveal": reveal, "images": images}
                        asked["count"] = max(3, min(count, _IMAGES // images if images > 1 else count))
                        each = [{"party_id": number, **asked} for number in range(PARTIES)]
                        results[f"{mode}, {kind}, {images}"] = together(workers, "compute", each)
                        together(workers, "close", [{}] * PARTIES)
    return results


def _short_conv(work: Path) -> Path:
    with Worker(CLEAR) as clear:
        return Path(clear.ask("make", name=SHORT_CONV, runs=str(work / "runs"))["folder"])


def print_engine(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Print medians in milliseconds."""
    table = Table(title="The engine alone, median in milliseconds", title_justify="left")
    table.add_column("mode, links, images")
    for column in ("party", "prepare", "CPU", "online", "CPU"):
        table.add_column(column, justify="right")
    for measured, parties in results.items():
        for number, times in enumerate(parties):
            shown = (
                f"{times[name]['median']:.2f}" for name in ("prepare", "prepare CPU", "online", "online CPU")
            )
            table.add_row(measured if number == 0 else "", str(number), *shown)
    (console or Console()).print(table)
