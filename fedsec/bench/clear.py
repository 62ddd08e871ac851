"""Keras on the same model, in the clear: a process of its own, because TensorFlow is large."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fedsec.bench.asker import pictures
from fedsec.bench.models import CNN, MLP, SHORT_CONV
from fedsec.bench.timing import rate, timed
from fedsec.bench.workers import answer_requests
from fedsec.errors import UsageError
from fedsec.lab.rundir import RunFolder
from fedsec.lab.share import plan_of
from fedsec.learning.models import short_conv
from fedsec.learning.saved import load_keras
from fedsec.nn import save_weights

SEED = 20260101
"""Of the random weights; times do not depend on them."""


def _mlp() -> Any:
    import keras  # noqa: PLC0415 - seconds to load, and only this process needs it

    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Flatten(),
            layers.Dense(800, activation="relu"),
            layers.Dense(450, activation="relu"),
            layers.Dense(10),
        ],
        name=MLP,
    )


def _cnn() -> Any:
    import keras  # noqa: PLC0415 - as above

    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.AveragePooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dense(600, activation="relu"),
            layers.Dense(10),
        ],
        name=CNN,
    )


_MODELS: dict[str, Callable[[], Any]] = {SHORT_CONV: lambda: short_conv(softmax=False), MLP: _mlp, CNN: _cnn}


class Clear:
    """One Keras model and the three ways to ask it."""

    def __init__(self) -> None:
        self._model: Any = None
        self._function: Any = None

    def make(self, name: str, runs: str) -> dict[str, Any]:
        """Make a model with random weights, and a folder from which it is served without Keras."""
        import keras  # noqa: PLC0415 - as above

        if name not in _MODELS:
            raise UsageError(f"expected a model of {', '.join(_MODELS)}, got {name!r}")
        keras.utils.set_random_seed(SEED)
        self._take(_MODELS[name]())
        return self._export(runs)

    def load(self, path: str, runs: str) -> dict[str, Any]:
        """Take the model of a Keras file or of a run; a file gets a folder from which it is served."""
        if Path(path).is_dir():
            folder = RunFolder.open(Path(path))
            self._take(load_keras(folder.model))
            return {"folder": str(folder.path), "parameters": int(self._model.count_params())}
        self._take(load_keras(Path(path)))
        return self._export(runs)

    def times(self, how: str, count: int, images: int = 1) -> list[float]:
        """Return the wall time of each of ``count`` predictions in seconds, from numpy to numpy."""
        return timed(self._call(how, images), count)

    def rate(self, how: str, count: int, images: int = 1) -> float:
        """Return the images a second of ``count`` predictions one after the other."""
        return rate(self._call(how, images), count, images)

    def _take(self, model: Any) -> None:
        import tensorflow as tf  # noqa: PLC0415 - as above

        self._model = model
        self._function = tf.function(lambda x: model(x, training=False))

    def _export(self, runs: str) -> dict[str, Any]:
        plan, weights = plan_of(self._model)
        folder = RunFolder.create(Path(runs), "bench")
        plan.save(folder.plan)
        save_weights(folder.weights, weights)
        return {"folder": str(folder.path), "parameters": int(self._model.count_params())}

    def _call(self, how: str, images: int) -> Callable[[], object]:
        import tensorflow as tf  # noqa: PLC0415 - as above

        if self._model is None:
            raise UsageError("expected a model that was made or loaded first")
        x = pictures((images, *self._model.input_shape[1:]), 0.0, 1.0).astype("float32")
        ways: dict[str, Callable[[], object]] = {
            "predict": lambda: self._model.predict(x, verbose=0),
            "call": lambda: np.asarray(self._model(x)),
            "function": lambda: np.asarray(self._function(tf.constant(x))),
        }
        return ways[how]


def main() -> None:
    """Answer until the benchmark closes our standard input."""
    clear = Clear()
    answer_requests({"make": clear.make, "load": clear.load, "times": clear.times, "rate": clear.rate})


if __name__ == "__main__":
    main()
