"""The optimizers of a hospital's local training, by name."""

from __future__ import annotations

from fedsec.errors import UsageError
from fedsec.learning.backend import keras

NAMES = ("adam", "sgd")
"""All that ``by_name`` knows."""


def by_name(name: str, learning_rate: float) -> keras.optimizers.Optimizer:
    """Return a fresh optimizer.

    Args:
        name: ``adam``, or ``sgd`` without momentum: a hospital's state starts anew in every round, and the
            first step of an Adam without state has the same length in every parameter, gradient or noise.
        learning_rate: Its step size.

    Raises:
        UsageError: There is no optimizer of that name.
    """
    if name == "adam":
        return keras.optimizers.Adam(learning_rate)
    if name == "sgd":
        return keras.optimizers.SGD(learning_rate)
    raise UsageError(f"no optimizer is called {name!r}; known: {', '.join(NAMES)}")
