"""The table of ``fedsec bench aggregate``: each figure beside what is asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from fedsec.bench.report import Results, Row, print_rows, text_of

_ALLOWED_BYTES = 2000
_FINEST = 2.0**-20
_MEGABYTE = (1 << 20) / 1e6


@dataclass(frozen=True, slots=True)
class Line:
    """A line through measured times, by least squares of the relative differences.

    Attributes:
        start_s: Its time at nothing.
        slope_s: Seconds an additional hospital, or parameter.
        off: The largest difference of a measured time from the line, as a part of that time.
    """

    start_s: float
    slope_s: float
    off: float

    @classmethod
    def through(cls, sizes: Sequence[float], seconds: Sequence[float]) -> Line:
        """Fit the line."""
        x, y = np.asarray(sizes, float), np.asarray(seconds, float)
        # Divided by the time: otherwise the largest round alone would decide.
        columns = np.stack([1 / y, x / y], axis=1)
        (start, slope), *_ = np.linalg.lstsq(columns, np.ones_like(y), rcond=None)
        off = np.abs(start + slope * x - y) / y
        return cls(float(start), float(slope), float(off.max()))


def rows_of(results: Results) -> list[Row]:
    """Return the figures of a measurement, in the table's order."""
    sizes = results["sizes"]
    return [
        *(_bytes(size) for size in sizes),
        *(row for size in sizes for row in _cpu(size)),
        *(row for size in sizes for row in _wall(size)),
        _opening(results["opening"]),
        *_memory(sizes),
        *_growth(results["growth"]),
        *_error(results),
    ]


def _bytes(size: Results) -> Row:
    more = size["sent_bytes"]["secure"] - size["sent_bytes"]["flower"]
    return Row(f"bytes up a hospital beyond plain, {_name(size)}", more, "B", _ALLOWED_BYTES, _ALLOWED_BYTES)


def _cpu(size: Results) -> list[Row]:
    if size["parameters"] != 1_000_000:
        return []
    cpu, ends = size["hospital_cpu_ms"], size["other_end_cpu_ms"]
    return [
        Row("CPU of a hospital beyond plain (a), 1M", cpu["secure"] - cpu["flower"], "ms", 15, 6),
        Row("CPU of a hospital beyond plain (b), 1M", cpu["secure"] - cpu["wired"], "ms"),
        Row("CPU of all aggregators a hospital, 1M", ends["secure"], "ms"),
    ]


_WALL: dict[tuple[int, int], tuple[float, float]] = {
    (100, 1_000_000): (1.6, 1.2),
    (1000, 100_000): (2.0, 1.3),
}
_MOST_OF_FLOWER = 3.0


def _wall(size: Results) -> list[Row]:
    must, aim = _WALL.get((size["hospitals"], size["parameters"]), (None, None))
    most = _MOST_OF_FLOWER if must else None
    wall = {name: timing["median"] for name, timing in size["wall"].items()}
    name = _name(size)
    return [
        Row(f"round, {name}: Flower, no wire (a)", wall["flower"] / 1e3, "s"),
        Row(f"round, {name}: Flower over TLS (b)", wall["wired"] / 1e3, "s"),
        Row(f"round, {name}: secure", wall["secure"] / 1e3, "s"),
        Row(f"round, {name}: secure by (b)", wall["secure"] / wall["wired"], "x", must, aim),
        Row(f"round, {name}: secure by (a)", wall["secure"] / wall["flower"], "x", most, most),
    ]


def _opening(opening: Results) -> Row:
    both = opening["hospital_ms"] + opening["aggregator_ms"]
    return Row("opening a connection, both ends, CPU", both, "ms", 3, 2.2)


def _memory(sizes: Sequence[Results]) -> list[Row]:
    return [
        Row(
            f"peak memory of an aggregator, after {_name(size)}",
            max(memory["peak"] for memory in size["memory_mib"].values()) * _MEGABYTE,
            "MB",
            200,
            100,
        )
        for size in sizes
    ]


def _growth(growth: Results) -> list[Row]:
    found = []
    for what, unit, place in (("hospitals", "ms", 0), ("parameters", "ns", 1)):
        sizes = [size[place] for size in growth[what]["sizes"]]
        line = Line.through(sizes, growth[what]["seconds"])
        scale = {"ms": 1e3, "ns": 1e9}[unit]
        span = f"{min(sizes)} to {max(sizes)} {what}"
        found += [
            Row(f"growth, {span}: one more costs", line.slope_s * scale, unit),
            Row(f"growth, {span}: furthest from a line", 100 * line.off, "%"),
        ]
    return found


def _error(results: Results) -> list[Row]:
    worst = max(size["error"]["secure"] for size in results["sizes"]) / (2 * results["clip"])
    planner = results["planner"]
    return [
        Row("error of the mean by 2^-20 of the clip range", worst / _FINEST, "x", 1, 1),
        Row("the same, as the planner states it before", planner["bound"] / _FINEST, "x", 1, 1),
        Row("plans beyond that are neither refused nor 64 bits", planner["coarse"], "", 0, 0),
    ]


def _name(size: Results) -> str:
    count = size["parameters"]
    short = f"{count // 1_000_000}M" if count % 1_000_000 == 0 else f"{count // 1000}k"
    return f"{size['hospitals']} x {short}"


def print_aggregate(results: Results, console: Console | None = None) -> None:
    """Print the table, and where processor time goes."""
    console = console or Console()
    print_rows("Secure aggregation beside plain FedAvg", rows_of(results), console)
    table = Table(title="Processor time a hospital and round, ms", title_justify="left")
    for heading in ("round", "way", "in this process", "at the other end", "bytes sent"):
        table.add_column(heading, justify="left" if heading in {"round", "way"} else "right")
    for size in results["sizes"]:
        for way, cpu in size["hospital_cpu_ms"].items():
            other = size["other_end_cpu_ms"].get(way)
            sent = f"{size['sent_bytes'][way]:,.0f}"
            table.add_row(_name(size), way, text_of(cpu), text_of(other), sent)
    console.print(table)
