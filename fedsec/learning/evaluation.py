"""How good given parameters are on given examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedsec.errors import InputError
from fedsec.learning.backend import keras, tf

Parameters = Sequence[npt.NDArray[np.floating]]

_BATCH = 1000
"""Images in one call: larger batches only use more memory."""


def evaluate(
    model: keras.Model,
    parameters: Parameters,
    images: npt.NDArray[np.float32],
    labels: npt.NDArray[np.integer],
) -> tuple[float, float]:
    """Return the mean cross-entropy and the share of right answers.

    Args:
        model: A classifier; its variables are set to ``parameters``.
        parameters: As ``model.get_weights`` gives them.
        images: Shape [N, *input shape], N at least 1.
        labels: Shape [N], classes as integers.

    Raises:
        InputError: If images, labels or parameters do not fit the model.
    """
    losses, right = each_example(model, parameters, images, labels)
    return float(np.mean(losses)), float(np.mean(right))


def each_example(
    model: keras.Model,
    parameters: Parameters,
    images: npt.NDArray[np.float32],
    labels: npt.NDArray[np.integer],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return the cross-entropy of each example and whether its answer is right, both of shape [N].

    Arguments and errors are those of :func:`evaluate`.
    """
    check_examples(images, labels)
    set_parameters(model, parameters)
    answers = predict(model, images)
    losses = keras.losses.sparse_categorical_crossentropy(
        labels, answers, from_logits=not gives_probabilities(model)
    )
    return np.asarray(losses), answers.argmax(axis=-1) == labels


def check_examples(images: npt.NDArray[np.float32], labels: npt.NDArray[np.integer]) -> None:
    """Check that there are examples, each with a label.

    Raises:
        InputError: If there are none, or labels and images differ in number.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise InputError(
            f"{len(images)} images and {len(labels)} labels: expected the same number, at least one"
        )


def predict(model: keras.Model, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the model's answers, shape [N, classes]; like ``model.predict`` without its fixed cost."""
    starts = range(0, len(images), _BATCH)
    return np.concatenate(
        [model(tf.constant(images[s : s + _BATCH], tf.float32), training=False).numpy() for s in starts]
    )


def set_parameters(model: keras.Model, parameters: Parameters) -> None:
    """Write parameters into the model.

    Raises:
        InputError: If their number or shapes are not the model's, which is then left unchanged.
    """
    wanted = [tuple(variable.shape) for variable in model.weights]
    given = [tuple(array.shape) for array in parameters]
    if wanted != given:
        raise InputError(
            f"the model's parameters have shapes {wanted}, got {given}: another model's parameters"
        )
    model.set_weights(list(parameters))


def gives_probabilities(model: keras.Model) -> bool:
    """Say whether the last layer is a softmax, so that answers are probabilities and not logits."""
    last = model.layers[-1]
    if isinstance(last, keras.layers.Softmax):
        return True
    return getattr(last, "activation", None) is keras.activations.softmax
