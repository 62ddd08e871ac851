"""A study as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from fedsec.audit.report import print_audit, shown_rate
from fedsec.privacy.accounting import rounded_up

_DPI = 120


def print_study(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a study.

    Args:
        summary: As ``study.json`` holds it.
        console: Where to; standard output by default.
    """
    console = console or Console()
    table = Table(
        title=f"Study {summary['scenario']}",
        title_justify="left",
        caption="epsilon: the largest of a hospital. In brackets 95 % intervals, for the choice of test"
        " images; another training of the same kind differs by more",
        caption_justify="left",
    )
    for head in (summary["key"] or "run", "test accuracy", "epsilon", "folder"):
        table.add_column(head)
    for row in summary["runs"]:
        table.add_row(
            "-" if row["value"] is None else str(row["value"]),
            "-" if row["accuracy"] is None else shown_rate(row["accuracy"]),
            _epsilon(row),
            f"runs/{Path(row['run']).name}",
        )
    console.print(table)
    if summary["audit"] is not None:
        print_audit(summary["audit"], console)
    console.print(
        f"{summary['seconds']:.0f} s; everything is in {summary['study']}", highlight=False, soft_wrap=True
    )


def _epsilon(row: Mapping[str, Any]) -> str:
    if row["epsilon"] is None:
        return "no noise"
    return rounded_up(row["epsilon"]) + (", whole hospital" if row["level"] == "hospital" else "")


def draw_study(summary: Mapping[str, Any], path: Path) -> None:
    """Draw test accuracy over the values of the key, with 95 % intervals.

    Args:
        summary: As ``study.json`` holds it.
        path: The PNG file to write.
    """
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    rows = [row for row in summary["runs"] if row["accuracy"] is not None]
    # One place a value: epsilons are mostly chosen to double, and other keys need not be numbers.
    places = range(len(rows))
    percent = [{name: 100 * rate for name, rate in row["accuracy"].items()} for row in rows]
    axes.errorbar(
        places,
        [rate["value"] for rate in percent],
        yerr=[[r["value"] - r["low"] for r in percent], [r["high"] - r["value"] for r in percent]],
        fmt="o-",
        capsize=3,
    )
    for place, rate in zip(places, percent, strict=True):
        axes.annotate(f"{rate['value']:.1f}", (place, rate["value"]), (6, -12), textcoords="offset points")
    axes.set_xticks(places, [_tick(summary["key"], row["value"]) for row in rows])
    axes.margins(0.12, 0.2)
    axes.set(xlabel=summary["key"], ylabel="test accuracy, %", title=summary["scenario"])
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=_DPI)


def _tick(key: str, value: object) -> str:
    return "no noise" if key == "privacy.target_epsilon" and not value else str(value)
