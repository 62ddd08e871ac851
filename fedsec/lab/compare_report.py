"""The tables of a comparison: rounds, bytes, seconds and memory, plain beside secured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from fedsec.lab.report import size


def print_comparison(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a comparison.

    Args:
        summary: As ``summary.json`` holds it.
        console: Where to; standard output by default.
    """
    console = console or Console()
    for table in (_rounds(summary), _cost(summary), _traffic(summary)):
        console.print(table)
    verdict = "every" if summary["within_bound"] else "NOT every"
    console.print(f"{verdict} opened average is within the stated bound of the plain mean", highlight=False)
    console.print(
        f"{summary['seconds']:.0f} s; everything is in {summary['run']}", highlight=False, soft_wrap=True
    )


def _rounds(summary: Mapping[str, Any]) -> Table:
    table = _table(
        "Rounds",
        ("round", "plain", "secure", "in the sum", "difference", "stated bound", "seconds"),
        caption="plain, secure: test accuracy, each side running freely from the same seed. difference:"
        " largest |opened average - plain mean of the same updates| of one parameter",
    )
    for plain, secure in zip(summary["plain"]["rounds"], summary["secure"]["rounds"], strict=True):
        table.add_row(
            str(plain["round"]),
            f"{plain['accuracy']:.2%}",
            f"{secure['accuracy']:.2%}",
            f"{plain['included']} / {secure['included']}",
            _scientific(secure["difference"]),
            _scientific(secure["error_bound"]),
            f"{plain['seconds']:.1f} / {secure['seconds']:.1f}",
        )
    return table


def _cost(summary: Mapping[str, Any]) -> Table:
    plain, secure = summary["plain"], summary["secure"]
    table = _table("Cost", ("", "plain", "secure"), caption="memory: the most that was ever resident")
    table.add_row("s, all rounds", f"{plain['seconds']:.1f}", f"{secure['seconds']:.1f}")
    table.add_row(
        "s of it in the hospitals' apps", f"{plain['client_seconds']:.1f}", f"{secure['client_seconds']:.1f}"
    )
    table.add_row(
        "bytes up, a hospital and round", f"{plain['upload_bytes']:,.0f}", f"{secure['upload_bytes']:,.0f}"
    )
    for name, count in secure["memory"].items():
        table.add_row(f"memory, {name}", _memory(plain["memory"].get(name)), _memory(count))
    table.add_row(
        "memory before the first round", *(_memory(one["memory_before"]) for one in (plain, secure))
    )
    return table


def _traffic(summary: Mapping[str, Any]) -> Table:
    plain, secure = summary["plain"]["traffic"], summary["secure"]["traffic"]
    table = _table(
        "Bytes of the whole training",
        ("who", "plain sent", "received", "secure sent", "received"),
        caption="contents of Flower's messages, which here stay in one process, and payload at the meters of"
        " the channels to the parties",
    )
    for who, bytes_ in secure.items():
        cells = [_cells(plain.get(who)), _cells(bytes_)]
        table.add_row(who, *(cell for pair in cells for cell in pair))
    return table


def _cells(counted: Mapping[str, int] | None) -> tuple[str, str]:
    if counted is None:
        return "-", "-"
    return size(counted["sent_bytes"]), size(counted["received_bytes"])


def _table(title: str, columns: tuple[str, ...], caption: str) -> Table:
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column(columns[0])
    for name in columns[1:]:
        table.add_column(name, justify="right")
    return table


def _memory(count: int | None) -> str:
    return "-" if count is None else size(count)


def _scientific(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"
