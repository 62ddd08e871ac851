"""Who holds which example: splits of one public data set over hospitals, reproducible from a seed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedsec.errors import InputError

Indices = npt.NDArray[np.int64]


def equal(labels: npt.NDArray[np.integer], hospitals: int, seed: int) -> list[Indices]:
    """Share the examples out at random, the same number each (the first few may get one more).

    Args:
        labels: Shape [N]; only its length matters here.
        hospitals: How many parts to make, at most N.
        seed: Decides the split, together with N and ``hospitals``.

    Returns:
        For each hospital the indices of its examples; together every index exactly once.

    Raises:
        InputError: If there are fewer examples than hospitals.
    """
    _check(labels, hospitals)
    order = np.random.default_rng(seed).permutation(len(labels))
    return [part.astype(np.int64) for part in np.array_split(order, hospitals)]


def dirichlet(labels: npt.NDArray[np.integer], hospitals: int, alpha: float, seed: int) -> list[Indices]:
    """Share each label's examples out in proportions drawn from a Dirichlet distribution.

    Every hospital gets at least one example: whoever would stay without takes one from the largest.

    Args:
        labels: Shape [N], the label of each example.
        hospitals: How many parts to make, at most N.
        alpha: Concentration: near 0 a label lives at one hospital, large values come near ``equal``.
        seed: Decides the split, together with the other arguments.

    Returns:
        For each hospital the indices of its examples in random order; together every index exactly once.

    Raises:
        InputError: If there are fewer examples than hospitals, or ``alpha`` is not above 0.

    Source: Hsu, Qi & Brown 2019 (arXiv 1909.06335), as commonly used label by label.
    """
    _check(labels, hospitals)
    if not alpha > 0:
        raise InputError(f"alpha of the Dirichlet split must be above 0, got {alpha}")
    generator = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in range(hospitals)]
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        proportions = generator.dirichlet(np.full(hospitals, alpha))
        cuts = np.rint(np.cumsum(proportions)[:-1] * len(members)).astype(np.int64)
        for part, chunk in zip(parts, np.split(members, cuts), strict=True):
            part.extend(chunk.tolist())
    _fill_empty(parts)
    return [generator.permutation(np.asarray(part, dtype=np.int64)) for part in parts]


def _fill_empty(parts: list[list[int]]) -> None:
    for part in parts:
        if not part:
            part.append(max(parts, key=len).pop())


def _check(labels: npt.NDArray[np.integer], hospitals: int) -> None:
    if labels.ndim != 1 or not 1 <= hospitals <= len(labels):
        raise InputError(
            f"{hospitals} hospitals cannot share {list(labels.shape)} labels: expected a list of labels"
            " and at least one example each"
        )
