"""An audit as pictures: what attacks reach, and for whom the model works less well."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsec.privacy.accounting import rounded_up

_COLUMNS, _DPI = 3, 120


def draw_audit(found: Mapping[str, Any], path: Path) -> None:
    """Draw the numbers of every part, with 95 % intervals.

    Args:
        found: As ``audit.json`` holds it.
        path: The PNG file to write.
    """
    shown = _panels(found)
    if not shown:
        return
    columns = min(_COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(5 * columns, 3.4 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, draw in zip(grid, shown, strict=False):
        draw(axes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    for axes in grid[len(shown) :]:
        axes.axis("off")
    figure.savefig(path, dpi=_DPI)


def _panels(found: Mapping[str, Any]) -> list[Callable[[Axes], None]]:
    runs = found["runs"]
    of_runs: Mapping[str, Sequence[Callable[..., None]]] = {
        "membership": [partial(_attack, part="membership", title="membership inference by loss")],
        "lira": [partial(_attack, part="lira", title="with shadow models")],
        "fairness": [
            partial(_groups, kind="classes", title="accuracy by digit"),
            partial(_groups, kind="hospitals", title="accuracy by hospital"),
        ],
        "model_inversion": [_answers],
    }
    shown: list[Callable[[Axes], None]] = [
        partial(draw, runs=runs)
        for part, draws in of_runs.items()
        if any(part in run and "refused" not in run[part] for run in runs)
        for draw in draws
    ]
    of_all: Mapping[str, Callable[..., None]] = {
        "inversion": _updates,
        "canaries": _exposure,
        "mechanism": _mechanism,
    }
    shown += [
        partial(draw, found=found[part])
        for part, draw in of_all.items()
        if part in found and "refused" not in found[part]
    ]
    return shown


def run_title(run: Mapping[str, Any]) -> str:
    """Return what tells two runs apart: the name of the scenario, and its epsilon."""
    return f"{run['scenario']}, {run_privacy(run)}"


def run_privacy(run: Mapping[str, Any]) -> str:
    """Return a run's epsilon in words, and whether it is that of records or of whole hospitals."""
    if run["epsilon"] is None:
        return "no noise"
    whole = " of a whole hospital" if run["level"] == "hospital" else ""
    return f"epsilon {rounded_up(run['epsilon'], 2)}{whole}"


def _attack(axes: Axes, runs: Sequence[Mapping[str, Any]], part: str, title: str) -> None:
    places = ("area", "at_one_percent", "at_one_permille")
    for number, run in enumerate(runs):
        _with_intervals(axes, [run[part][place] for place in places], number, len(runs), run)
    guessed = (0.5, 0.01, 0.001)
    for place, rate in enumerate(guessed):
        axes.plot([place - 0.4, place + 0.4], [rate, rate], "k--", label="guessing" if not place else None)
    axes.set_xticks(range(3), ("area under\nthe curve", "true positives\nat 1 % false", "at 0.1 % false"))
    axes.set(title=title, yscale="log", ylim=(5e-4, 1))


def _groups(axes: Axes, runs: Sequence[Mapping[str, Any]], kind: str, title: str) -> None:
    for number, run in enumerate(runs):
        rates = [group["accuracy"] for group in run["fairness"][kind]]
        scaled = [{name: 100 * value for name, value in rate.items()} for rate in rates]
        _with_intervals(axes, scaled, number, len(runs), run)
    names = [group["name"].removeprefix("hospital-") for group in runs[0]["fairness"][kind]]
    axes.set_xticks(range(len(names)), names)
    axes.set(title=title, ylabel="%")


def _answers(axes: Axes, runs: Sequence[Mapping[str, Any]]) -> None:
    for number, run in enumerate(runs):
        found = run["model_inversion"]
        if "refused" in found:
            continue
        places = [found["probabilities"]["before"], *(one["mean"] for one in found.values())]
        _with_intervals(axes, places, number, len(runs), run)
    axes.set_xticks(range(3), ("without\nasking", "by\nprobabilities", "by labels"))
    axes.set(title="model inversion", ylabel="correlation with the class's mean", ylim=(0, 1))


def _updates(axes: Axes, found: Mapping[str, Any]) -> None:
    rates = [view["correlation"] for view in found["views"]]
    places = range(len(rates))
    values = [rate["value"] for rate in rates]
    axes.errorbar(places, values, yerr=_errors(rates), fmt="o", capsize=3, label="median")
    axes.axhline(0.0, color="k", linestyle="--", label="guessing")
    axes.set_xticks(places, [view["name"].replace(", ", ",\n") for view in found["views"]], fontsize=8)
    axes.set(title=f"{found['images']} images from their updates", ylabel="correlation with the image")


def _exposure(axes: Axes, found: Mapping[str, Any]) -> None:
    for place, side in enumerate(("plain", "private")):
        one = found[side]
        errors = [[one["median"] - one["low"]], [one["high"] - one["median"]]]
        axes.errorbar([place], [one["median"]], yerr=errors, fmt="o", capsize=3)
    axes.axhline(1.0, color="k", linestyle="--", label="nothing memorised")
    axes.axhline(math.log2(found["planting"]["references"] + 1), color="k", linestyle=":", label="highest")
    axes.set_xticks((0, 1), ("no noise", f"DP-SGD, epsilon {found['planting']['epsilon']:g}"))
    axes.set(title="canaries", ylabel="median exposure, bits", xlim=(-0.5, 1.5))


def _mechanism(axes: Axes, found: Mapping[str, Any]) -> None:
    bounds = [found["plain"]["epsilon"], found["found"]["epsilon"]]
    axes.errorbar((0, 1), bounds, yerr=0.3, lolims=True, fmt="o", label="at least, by guesses")
    axes.plot([0.6, 1.4], [found["claimed"]] * 2, "k--", label="claimed")
    axes.set_xticks((0, 1), ("without DP-SGD", f"noise {found['noise_multiplier']:g}"))
    axes.set(title="DP-SGD against its own claim", ylabel="epsilon", xlim=(-0.5, 1.5))


def _errors(rates: Sequence[Mapping[str, float]]) -> list[list[float]]:
    # An interval of a normal approximation may end a hair on the wrong side of the value.
    low = [max(0.0, rate["value"] - rate["low"]) for rate in rates]
    return [low, [max(0.0, rate["high"] - rate["value"]) for rate in rates]]


def _with_intervals(
    axes: Axes, rates: Sequence[Mapping[str, float]], number: int, runs: int, run: Mapping[str, Any]
) -> None:
    shift = 0.2 * (number - (runs - 1) / 2)
    axes.errorbar(
        [place + shift for place in range(len(rates))],
        [rate["value"] for rate in rates],
        yerr=_errors(rates),
        fmt="o",
        markersize=4,
        capsize=2,
        label=run_title(run),
    )
