"""One model in one process, trained plainly or privately by Keras' ``fit``: a pass when it is told."""

from __future__ import annotations

import resource
import time
from typing import Any

import numpy as np

from fedsec.bench.asker import pictures
from fedsec.bench.workers import answer_requests

CLIP, NOISE = 1.0, 1.3
"""Of the private training; times do not depend on them."""
_SEED = 20260101
_KIBIBYTE = 1024


class Training:
    """A model with random parameters, and images of the size of MNIST's."""

    def __init__(self) -> None:
        self._model: Any = None
        self._images: Any = None
        self._labels: Any = None
        self._batch = 0

    def make(self, model: str, private: bool, examples: int, batch: int) -> dict[str, Any]:
        """Make the model and train it for a moment, so that all is compiled."""
        from fedsec.learning.backend import keras  # noqa: PLC0415 - seconds to load, in this process only
        from fedsec.learning.evaluation import gives_probabilities  # noqa: PLC0415
        from fedsec.learning.models import by_name  # noqa: PLC0415
        from fedsec.learning.private.model import make_private  # noqa: PLC0415

        # Times do not depend on what is on the images.
        self._images = pictures((examples, 28, 28, 1), 0.0, 1.0).astype(np.float32)
        self._labels = np.arange(examples) % 10
        self._batch = batch
        plain = by_name(model, seed=_SEED)
        self._model = make_private(plain, l2_norm_clip=CLIP, noise_multiplier=NOISE) if private else plain
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not gives_probabilities(plain))
        self._model.compile(keras.optimizers.SGD(0.05), loss, metrics=["accuracy"])
        self.epoch()
        return {"parameters": int(plain.count_params())}

    def epoch(self) -> dict[str, float]:
        """Train for one pass; return its wall and CPU time in seconds."""
        wall, cpu = time.perf_counter(), time.process_time()
        self._model.fit(self._images, self._labels, batch_size=self._batch, epochs=1, verbose=0)
        return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}

    def memory(self) -> float:
        """Return the largest resident memory so far, in MiB."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _KIBIBYTE


if __name__ == "__main__":
    training = Training()
    answer_requests({"make": training.make, "epoch": training.epoch, "memory": training.memory})
