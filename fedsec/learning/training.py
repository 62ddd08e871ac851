"""One hospital's local training: what ``model.compile`` and ``model.fit`` do, without their overhead.

``fit`` costs about as much in Python as in arithmetic on a network this small. Here one graph runs all
steps of an epoch, and the same graph, network and optimizer serve every hospital and every round.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fedsec.learning import optimizers
from fedsec.learning.backend import keras, tf
from fedsec.learning.evaluation import Parameters, check_examples, gives_probabilities, set_parameters


class LocalTrainer:
    """Trains one Keras model from given parameters, again and again.

    Not thread-safe: the model's variables are the working memory.

    Args:
        model: A built classifier; its last layer gives probabilities or logits.
        learning_rate: Of the optimizer.
        batch_size: Examples in one step; the last step of an epoch takes what is left.
        epochs: Passes over the data in one ``fit``.
        optimizer: Its name in ``fedsec.learning.optimizers``.
    """

    def __init__(
        self,
        model: keras.Model,
        learning_rate: float = 5e-3,
        batch_size: int = 32,
        epochs: int = 1,
        *,
        optimizer: str = "adam",
    ) -> None:
        self.model = model
        self.batch_size = batch_size
        self.epochs = epochs
        self._optimizer = optimizers.by_name(optimizer, learning_rate)
        self._optimizer.build(model.trainable_variables)
        # Moments start anew in every fit: kept, they would carry one hospital's gradients to the next.
        self._fresh = [variable.numpy() for variable in self._optimizer.variables]
        self._loss = keras.losses.SparseCategoricalCrossentropy(
            from_logits=not gives_probabilities(model), reduction="sum"
        )
        # Without AutoGraph, which cannot read this method on Python 3.13: the loop is spelt out.
        self._epoch = tf.function(self._run_epoch, autograph=False, reduce_retracing=True)

    def fit(
        self,
        parameters: Parameters,
        images: npt.NDArray[np.float32],
        labels: npt.NDArray[np.integer],
        seed: int,
    ) -> tuple[list[npt.NDArray[np.float32]], dict[str, float]]:
        """Train from ``parameters`` and return what comes out.

        Args:
            parameters: As ``model.get_weights`` gives them; not changed.
            images: Shape [N, *input shape], N at least 1.
            labels: Shape [N], classes as integers.
            seed: Fixes the order of the examples.

        Returns:
            The new parameters, and ``loss`` and ``accuracy`` of the last epoch as ``fit`` reports them
            (measured before each step on its own batch).

        Raises:
            InputError: If images, labels or parameters do not fit the model.
        """
        check_examples(images, labels)
        set_parameters(self.model, parameters)
        for variable, value in zip(self._optimizer.variables, self._fresh, strict=True):
            variable.assign(value)
        order = np.random.default_rng(seed)
        all_images, all_labels = tf.constant(images, tf.float32), tf.constant(labels, tf.int64)
        loss = correct = np.nan
        for _ in range(self.epochs):
            shuffled = tf.constant(order.permutation(len(images)).astype(np.int32))
            loss, correct = self._epoch(all_images, all_labels, shuffled)
        metrics = {"loss": float(loss) / len(images), "accuracy": float(correct) / len(images)}
        return self.model.get_weights(), metrics

    def _run_epoch(self, images: Any, labels: Any, order: Any) -> tuple[Any, Any]:
        """Take one step a batch; returns the summed loss and the number of right answers."""

        def more(start: Any, _loss: Any, _correct: Any) -> Any:
            return start < tf.shape(order)[0]

        def one_step(start: Any, loss: Any, correct: Any) -> tuple[Any, Any, Any]:
            batch = order[start : start + self.batch_size]
            step_loss, step_correct = self._step(tf.gather(images, batch), tf.gather(labels, batch))
            return start + self.batch_size, loss + step_loss, correct + step_correct

        nothing = (tf.constant(0), tf.constant(0.0), tf.constant(0, tf.int64))
        _, loss, correct = tf.while_loop(more, one_step, nothing)
        return loss, correct

    def _step(self, images: Any, labels: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            answers = self.model(images, training=True)
            summed = self._loss(labels, answers)
            mean = summed / tf.cast(tf.shape(labels)[0], summed.dtype)
        gradients = tape.gradient(mean, self.model.trainable_variables)
        self._optimizer.apply(gradients, self.model.trainable_variables)
        right = tf.equal(tf.argmax(answers, axis=-1), labels)
        return summed, tf.reduce_sum(tf.cast(right, tf.int64))
