"""What attackers took an image for, beside the image: the pictures of an audit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from fedsec.audit.inversion import Recovered
from fedsec.audit.model_inversion import correlations
from fedsec.audit.subject import Examples
from fedsec.errors import StateError

_DPI = 120
_Grid = list[list[npt.NDArray[np.floating]]]


def draw_inversion(truths: npt.NDArray[np.float32], found: Sequence[Sequence[Recovered]], path: Path) -> None:
    """Draw images and what each attack took them to be, an image a row, with the correlation of both.

    Args:
        truths: Shape [N, 28, 28, 1].
        found: For each image what came of the attacks.
        path: The PNG file to write.

    Raises:
        StateError: It cannot be written.
    """
    heads = ["the hospital's image", *(one.name for one in found[0])]
    figure = Figure(figsize=(1.9 * len(heads), 1.6 * len(truths) + 0.3), layout="constrained")
    grid = figure.subplots(len(truths), len(heads), squeeze=False)
    for row, truth, recovered in zip(grid, truths, found, strict=True):
        row[0].imshow(truth[..., 0], cmap="gray")
        for axes, one in zip(row[1:], recovered, strict=True):
            axes.imshow(one.image[..., 0], cmap="gray")
            axes.set_xlabel(f"correlation {one.correlation:.2f}", fontsize=8)
    for axes, head in zip(grid[0], heads, strict=True):
        axes.set_title(head, fontsize=8)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    _save(figure, path)


def draw_model_inversion(
    members: Examples,
    labels: Sequence[int],
    drawn: Sequence[tuple[str, npt.NDArray[np.float64]]],
    path: Path,
) -> None:
    """Draw a column for each class: the mean of its training images, then each attack's first picture.

    Below each picture is the training image of the class that is most like it.

    Args:
        members: All that was trained on in the first run of ``drawn``.
        labels: The classes, the same in all of ``drawn``.
        drawn: A title and the pictures of each class, shape [classes, 28, 28, 1], for each attack.
        path: The PNG file to write.

    Raises:
        StateError: It cannot be written.
    """
    own = [members.images[members.labels == label] for label in labels]
    titles, rows = ["mean of the\ntraining images"], [[images.mean(axis=0) for images in own]]
    for title, pictures in drawn:
        titles += [f"by {title}", "nearest\ntraining image"]
        nearest = [
            images[correlations(picture[np.newaxis], images).argmax()]
            for picture, images in zip(pictures, own, strict=True)
        ]
        rows += [list(pictures), nearest]
    _save(_drawn(rows, titles), path)


def _drawn(rows: _Grid, titles: Sequence[str]) -> Figure:
    figure = Figure(figsize=(0.9 * len(rows[0]) + 1.5, 0.95 * len(rows)), layout="constrained")
    for pictures, title, row in zip(
        rows, titles, figure.subplots(len(rows), len(rows[0]), squeeze=False), strict=True
    ):
        for axes, picture in zip(row, pictures, strict=False):
            axes.imshow(picture[..., 0], cmap="gray")
        for axes in row:
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(title, fontsize=7, rotation=0, ha="right", va="center")
    return figure


def _save(figure: Figure, path: Path) -> None:
    try:
        figure.savefig(path, dpi=_DPI)
    except OSError as error:
        raise StateError(f"cannot write into {path.parent}: {error.strerror}") from error
