"""An audit as pictures: what attacks reach, and for whom the model works less well."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsec.audit.inversion import Image, Recovered
from fedsec.privacy.accounting import rounded_up

_DPI = 120


def draw_audit(found: Mapping[str, Any], path: Path) -> None:
    """Draw both membership inferences, accuracy by class and exposure, with 95 % intervals.

    Args:
        found: As ``audit.json`` holds it.
        path: The PNG file to write.
    """
    of_a_run: Mapping[str, Callable[..., None]] = {
        "membership": partial(_attack, part="membership", title="membership inference by loss"),
        "lira": partial(_attack, part="lira", title="with shadow models"),
        "fairness": _classes,
    }
    shown: list[Callable[[Axes], None]] = [
        partial(draw, runs=found["runs"]) for part, draw in of_a_run.items() if part in found["runs"][0]
    ]
    if "plain" in found.get("canaries", {}):
        shown.append(partial(_exposure, found=found["canaries"]))
    if not shown:
        return
    figure = Figure(figsize=(5 * len(shown), 3.4), layout="constrained")
    for axes, draw in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        draw(axes)
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=_DPI)


def draw_inversion(truth: Image, recovered: Sequence[Recovered], path: Path) -> None:
    """Draw an image and what each attack took it to be, with the correlation of both.

    Args:
        truth: Shape [28, 28, 1].
        recovered: What came of the attacks.
        path: The PNG file to write.
    """
    figure = Figure(figsize=(2.2 * (1 + len(recovered)), 2.6), layout="constrained")
    titles = ["the hospital's image", *(f"{r.name}\ncorrelation {r.correlation:.2f}" for r in recovered)]
    pictures = [truth, *(one.image for one in recovered)]
    for axes, title, picture in zip(figure.subplots(1, len(titles)), titles, pictures, strict=True):
        axes.imshow(picture[..., 0], cmap="gray")
        axes.set_title(title, fontsize=9)
        axes.axis("off")
    figure.savefig(path, dpi=_DPI)


def run_title(run: Mapping[str, Any]) -> str:
    """Return what tells two runs apart: the name of the scenario, and its epsilon."""
    privacy = "no noise" if run["epsilon"] is None else f"epsilon {rounded_up(run['epsilon'], 2)}"
    return f"{run['scenario']}, {privacy}"


def _attack(axes: Axes, runs: Sequence[Mapping[str, Any]], part: str, title: str) -> None:
    places = ("area", "at_one_percent", "at_one_permille")
    for number, run in enumerate(runs):
        _with_intervals(axes, [run[part][place] for place in places], number, len(runs), run)
    guessed = (0.5, 0.01, 0.001)
    for place, rate in enumerate(guessed):
        axes.plot([place - 0.4, place + 0.4], [rate, rate], "k--", label="guessing" if not place else None)
    axes.set_xticks(range(3), ("area under\nthe curve", "true positives\nat 1 % false", "at 0.1 % false"))
    axes.set(title=title, yscale="log", ylim=(5e-4, 1))


def _classes(axes: Axes, runs: Sequence[Mapping[str, Any]]) -> None:
    for number, run in enumerate(runs):
        rates = [group["accuracy"] for group in run["fairness"]["classes"]]
        scaled = [{name: 100 * value for name, value in rate.items()} for rate in rates]
        _with_intervals(axes, scaled, number, len(runs), run)
    names = [group["name"] for group in runs[0]["fairness"]["classes"]]
    axes.set_xticks(range(len(names)), names)
    axes.set(title="accuracy by class", xlabel="digit", ylabel="%")


def _exposure(axes: Axes, found: Mapping[str, Any]) -> None:
    for place, side in enumerate(("plain", "private")):
        one = found[side]
        errors = [[one["median"] - one["low"]], [one["high"] - one["median"]]]
        axes.errorbar([place], [one["median"]], yerr=errors, fmt="o", capsize=3)
    axes.axhline(1.0, color="k", linestyle="--", label="nothing memorised")
    axes.axhline(math.log2(found["planting"]["references"] + 1), color="k", linestyle=":", label="highest")
    axes.set_xticks((0, 1), ("no noise", f"DP-SGD, epsilon {found['planting']['epsilon']:g}"))
    axes.set(title="canaries", ylabel="median exposure, bits", xlim=(-0.5, 1.5))


def _with_intervals(
    axes: Axes, rates: Sequence[Mapping[str, float]], number: int, runs: int, run: Mapping[str, Any]
) -> None:
    shift = 0.2 * (number - (runs - 1) / 2)
    # An interval of a normal approximation may end a hair on the wrong side of the value.
    low = [max(0.0, rate["value"] - rate["low"]) for rate in rates]
    high = [max(0.0, rate["high"] - rate["value"]) for rate in rates]
    axes.errorbar(
        [place + shift for place in range(len(rates))],
        [rate["value"] for rate in rates],
        yerr=[low, high],
        fmt="o",
        markersize=4,
        capsize=2,
        label=run_title(run),
    )
