"""What Keras answers in the clear, for comparison with private predictions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedsec.lab.images import Images
from fedsec.learning.backend import keras
from fedsec.learning.evaluation import gives_probabilities, predict


def keras_logits(model: keras.Sequential, images: Images) -> npt.NDArray[np.float64]:
    """Return a model's logits, shape [N, classes]: its answers before a final softmax, if it has one.

    Args:
        model: A built Sequential model; not changed.
        images: Shape [N, *input shape].
    """
    if gives_probabilities(model):
        model = _without_softmax(model)
    return predict(model, images).astype(np.float64)


def _without_softmax(model: keras.Sequential) -> keras.Sequential:
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    if isinstance(twin.layers[-1], keras.layers.Softmax):
        return keras.Sequential([keras.Input(twin.input_shape[1:]), *twin.layers[:-1]])
    twin.layers[-1].activation = keras.activations.linear
    return twin
