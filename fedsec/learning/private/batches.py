"""The batches of a private ``fit``: a fresh Poisson sample a step, filled up to few different sizes."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsec.errors import UsageError
from fedsec.learning.backend import keras, tf
from fedsec.privacy.sampling import PoissonSampler

Batch = tuple[Any, Any, Any]
"""Inputs, labels, and 1 for each example that counts and 0 for each that fills up."""


def filled(size: int, expected: int) -> int:
    """Return the size to which a sample is filled up: a multiple of an eighth of the expected one.

    Each size that the library under TensorFlow has not seen costs it new kernels; a Poisson sample has a
    hundred different sizes, filled up it has a few, for a twentieth more work.
    """
    grain = max(1, expected // 8)
    return max(1, -(-size // grain)) * grain


class PoissonBatches(keras.utils.PyDataset):  # type: ignore[misc]
    """Keras' view of the samples: one item a step.

    Args:
        x: Inputs, [N, ...] or a tree of them.
        y: Labels, [N, ...] or a tree of them.
        expected: Expected size of a sample, which with N gives the sampling rate.
        steps: Steps in an epoch.
    """

    def __init__(self, x: Any, y: Any, expected: int, steps: int) -> None:
        super().__init__()
        self._x, self._y = x, y
        self._expected, self._steps = expected, steps
        records = records_of(x, y)
        self._sampler = PoissonSampler(records, min(1.0, expected / records))

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, index: int) -> Batch:
        """Draw the next sample; the index says nothing, no sample is ever drawn twice."""
        chosen = self._sampler.draw()
        missing = filled(len(chosen), self._expected) - len(chosen)
        # Any record can fill up: its weight is 0.
        rows = np.concatenate([chosen, np.zeros(missing, dtype=chosen.dtype)])
        x, y = (keras.tree.map_structure(lambda values: values[rows], part) for part in (self._x, self._y))
        weights = np.zeros(len(rows), dtype=keras.config.floatx())
        weights[: len(chosen)] = 1
        return x, y, weights


def records_of(x: Any, y: Any) -> int:
    """Return how many records there are.

    Raises:
        UsageError: If inputs and labels have different numbers of them, or there are none.
    """
    sizes = {len(values) for values in keras.tree.flatten((x, y))}
    if len(sizes) != 1 or 0 in sizes:
        raise UsageError(f"expected inputs and labels of one length, at least 1, got {sorted(sizes)}")
    return sizes.pop()


def first_batch(dataset: tf.data.Dataset) -> tuple[Any, Any]:
    """Return a pipeline's first batch of inputs and labels.

    Raises:
        UsageError: If its batches are not pairs of inputs and labels, or the pipeline is empty.
    """
    first = next(iter(dataset.take(1)), None)
    if not isinstance(first, tuple) or len(first) != 2:
        raise UsageError(
            "expected a tf.data pipeline of batches (inputs, labels): sample weights have no meaning here"
        )
    return first


def weighted(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Return a pipeline's batches with a weight of 1 for each example."""

    def with_ones(x: Any, y: Any) -> Batch:
        return x, y, tf.ones(tf.shape(keras.tree.flatten(y)[0])[:1], keras.config.floatx())

    return dataset.map(with_ones)
