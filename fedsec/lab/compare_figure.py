"""The picture of a comparison: what security changes, and that it changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from fedsec.lab.result import RoundReport

_DPI = 120


def draw_comparison(plain: Sequence[RoundReport], secure: Sequence[RoundReport], path: Path) -> None:
    """Draw test accuracy of both sides by round, and the secure side's difference below its stated bound.

    Args:
        plain: The rounds of Flower's own strategy.
        secure: The rounds of the secured one.
        path: The PNG file to write.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, rounds, style in (("plain", plain, "o-"), ("secure", secure, "x--")):
        accuracies = [(one.round, 100 * one.accuracy) for one in rounds if one.accuracy is not None]
        left.plot(*zip(*accuracies, strict=True), style, label=name)
    left.set(xlabel="round", ylabel="test accuracy, %", title="each runs freely from the same seed")
    opened = [one for one in secure if one.difference is not None]
    numbers = [one.round for one in opened]
    right.plot(numbers, [one.error_bound or 0.0 for one in opened], "k--", label="stated bound")
    right.plot(numbers, [one.difference or 0.0 for one in opened], "o-", label="largest of a parameter")
    right.set(xlabel="round", title="|opened average - plain mean|, same updates", ylim=(0, None))
    for axes in (left, right):
        axes.set_xticks([one.round for one in secure])
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=_DPI)
