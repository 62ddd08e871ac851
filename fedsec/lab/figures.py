"""Pictures of a run, for people who would rather look than read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from fedsec.lab.result import RoundReport
from fedsec.ring import encode, fresh_stream
from fedsec.sharing import replicated

_FRACTION_BITS = 16
_DPI = 120


def draw_accuracy(rounds: Sequence[RoundReport], path: Path) -> None:
    """Draw test accuracy by round, and how many hospitals were in each sum.

    Args:
        rounds: One report a round.
        path: The PNG file to write.
    """
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    numbers = [entry.round for entry in rounds]
    measured = [(entry, 100 * entry.accuracy) for entry in rounds if entry.accuracy is not None]
    axes.plot([entry.round for entry, _ in measured], [percent for _, percent in measured], marker="o")
    for entry, percent in measured:
        label = f"{entry.included} of {entry.hospitals}"
        axes.annotate(label, (entry.round, percent), (0, -14), textcoords="offset points", ha="center")
    axes.margins(0.12, 0.2)
    axes.set(xticks=numbers, xlabel="round (hospitals in the sum)", ylabel="test accuracy, %")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=_DPI)


def draw_views(images: npt.NDArray[np.floating[Any]], path: Path) -> None:
    """Draw images as their owner sees them and as each party would get them: a fresh sharing of each.

    A party's share is drawn by the top byte of each ring element; both components look alike, so one is
    shown.

    Args:
        images: Shape [N, 28, 28, 1], values in [0, 1].
        path: The PNG file to write.
    """
    figure = Figure(figsize=(7, 1.7 * len(images) + 0.3), layout="constrained")
    grid = figure.subplots(len(images), 5, squeeze=False)
    titles = ("the user's image", "party 0 gets", "party 1 gets", "party 2 gets", "all three, joined")
    for row, image in zip(grid, images[..., 0], strict=True):
        words = encode(image, _FRACTION_BITS)
        shares = replicated.share(words, fresh_stream())
        joined = replicated.reconstruct(shares).astype(np.float64)
        pictures = [image, *(share.own >> share.own.dtype.type(56) for share in shares), joined]
        for axes, title, picture in zip(row, titles, pictures, strict=True):
            axes.imshow(picture, cmap="gray")
            axes.set_title(title, fontsize=9)
            axes.axis("off")
    figure.savefig(path, dpi=_DPI)
