"""The tables of an audit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from fedsec.audit.figures import run_title

_Runs = Sequence[Mapping[str, Any]]


def print_audit(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Print an audit.

    Args:
        found: As ``audit.json`` holds it.
        console: Where to; standard output by default.
    """
    console = console or Console()
    runs = found["runs"]
    tables: Mapping[str, Callable[[_Runs], Table]] = {"membership": _membership, "fairness": _fairness}
    for part, table in tables.items():
        if part in runs[0]:
            console.print(table(runs))
    console.print(
        f"{found['seconds']:.0f} s; audit.json and pictures are in {runs[0]['run']}",
        highlight=False,
        soft_wrap=True,
    )


def _membership(runs: _Runs) -> Table:
    first = runs[0]["membership"]
    table = _table(
        "Membership inference by loss",
        runs,
        caption=f"{first['members']:,} members, {first['others']:,} others ({first['others_are']});"
        " guessing: 0.5, 1 %, 0.1 %; in brackets 95 % intervals",
    )
    found = [run["membership"] for run in runs]
    table.add_row("area under the curve", *(_rate(one["area"], "{:.3f}") for one in found))
    table.add_row("true positives at 1 % false", *(_rate(one["at_one_percent"]) for one in found))
    table.add_row("true positives at 0.1 % false", *(_rate(one["at_one_permille"]) for one in found))
    return table


def _fairness(runs: _Runs) -> Table:
    both = len(runs) > 1
    table = _table(
        "Accuracy by group",
        runs,
        caption="on MNIST's 10,000 test images; a hospital's: weighted so that digits are as frequent as in"
        " its own records. In brackets 95 % intervals",
    )
    if both:
        table.add_column("difference", justify="right")
    found = [run["fairness"] for run in runs]
    _group(table, "all", [one["accuracy"] for one in found])
    for kind in ("classes", "hospitals"):
        table.add_section()
        named = [{group["name"]: group["accuracy"] for group in one[kind]} for one in found]
        for name in named[0]:
            title = f"digit {name}" if kind == "classes" else name
            _group(table, title, [groups.get(name) for groups in named])
    table.add_section()
    table.add_row("worst class", *(f"digit {one['worst_class']}" for one in found))
    table.add_row("worst hospital", *(one["worst_hospital"] for one in found))
    return table


def _group(table: Table, title: str, rates: Sequence[Mapping[str, float] | None]) -> None:
    cells = ["-" if rate is None else _rate(rate) for rate in rates]
    if len(rates) > 1:
        first, second = rates
        cells.append(f"{100 * (second['value'] - first['value']):+.2f}" if first and second else "-")
    table.add_row(title, *cells)


def _rate(rate: Mapping[str, float], form: str = "{:.2%}") -> str:
    low, high = form.format(rate["low"]), form.format(rate["high"])
    return f"{form.format(rate['value'])} ({low} to {high})"


def _table(title: str, runs: _Runs, caption: str) -> Table:
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column("")
    for run in runs:
        table.add_column(run_title(run), justify="right")
    return table
