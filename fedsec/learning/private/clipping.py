"""The sum of clipped per-example gradients, in one pass, and its plain twin, one example after the other.

Source: Abadi et al. 2016, Deep learning with differential privacy, algorithm 1; Bu et al. 2023 for the pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fedsec.learning.backend import keras, tf
from fedsec.learning.private.bounds import margin, squares
from fedsec.learning.private.network import Network, Use

LossEach = Callable[[Any, Any], Any]
"""From (labels, answers) to the loss of each example, shape [N]."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What one pass takes.

    Attributes:
        x: Inputs, [N, ...].
        y: Labels, [N, ...].
        weights: 1 for an example that counts, 0 for one that fills the batch up; shape [N].
    """

    x: Any
    y: Any
    weights: Any


@dataclass(frozen=True, slots=True, eq=False)
class Clipped:
    """One batch's outcome.

    Attributes:
        gradients: For each trainable variable of the model, the sum of weight * clipped gradient.
        losses: Of each example, shape [N].
        answers: The model's, shape [N, ...].
    """

    gradients: list[Any]
    losses: Any
    answers: Any


def clipped_sum(network: Network, loss_each: LossEach, batch: Batch, clip: float) -> Clipped:
    """Return the sum of clipped gradients: one forward and one backward pass for the whole batch.

    No example adds more than the clip, whatever its values: its norm is an upper bound, see ``bounds``. What
    is not finite counts as nothing.

    Args:
        network: An examined model without ``uncovered``.
        loss_each: The loss.
        batch: Examples.
        clip: Bound on the L2 norm of one example's gradient over all variables together.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        answers, uses = network.watched(batch.x, tape)
        losses = loss_each(batch.y, answers)
        total = tf.reduce_sum(losses)
    behind = tape.gradient(total, [use.z for use in uses], unconnected_gradients="zero")
    norms, summed = _gradients(uses, [(use.x, b) for use, b in zip(uses, behind, strict=True)])

    def without_infinite() -> list[Any]:
        # A factor of 0 is not enough: an example's gradient may be infinite where its parts are not.
        sound = tf.math.is_finite(norms)
        clean = [(_only(sound, use.x), _only(sound, b)) for use, b in zip(uses, behind, strict=True)]
        clean_norms, clean_summed = _gradients(uses, clean)
        return clean_summed(clip_factors(clean_norms, batch.weights, clip))

    # Whatever is not finite makes its example's norm so; looking at the norms costs nothing.
    gradients = tf.cond(
        tf.reduce_all(tf.math.is_finite(norms)),
        lambda: summed(clip_factors(norms, batch.weights, clip)),
        without_infinite,
    )
    found = dict(zip((id(variable) for use in uses for variable in use.variables), gradients, strict=True))
    return Clipped([found[id(variable)] for variable in network.model.trainable_variables], losses, answers)


def _gradients(
    uses: Sequence[Use], pairs: Sequence[tuple[Any, Any]]
) -> tuple[Any, Callable[[Any], list[Any]]]:
    """Return every example's norm, and the weighted sums in the order of the uses' variables.

    Args:
        uses: The trained layers.
        pairs: For each, its input and the loss's gradient behind it.
    """
    parts = [use.rule.gradients(use.layer, x, b) for use, (x, b) in zip(uses, pairs, strict=True)]
    norms = tf.sqrt(tf.add_n([squared for squared, _ in parts]))
    return norms, lambda factors: [gradient for _, summed in parts for gradient in summed(factors)]


def clipped_one_by_one(network: Network, loss_each: LossEach, batch: Batch, clip: float) -> Clipped:
    """Return the same as :func:`clipped_sum` for any model, with a pass for each example."""
    model = network.model
    variables = model.trainable_variables

    def gradients_of(index: Any) -> tuple[list[Any], Any, Any]:
        one_x, one_y = (
            keras.tree.map_structure(lambda values: values[index : index + 1], part)
            for part in (batch.x, batch.y)
        )
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in variables])
            answer = model(one_x, training=True)
            loss = loss_each(one_y, answer)
            total = tf.reduce_sum(loss)
        gradients = tape.gradient(
            total, [variable.value for variable in variables], unconnected_gradients="zero"
        )
        return [finite(tf.convert_to_tensor(gradient)) for gradient in gradients], loss[0], answer[0]

    def step(index: Any, sums: Any, losses: Any, answers: Any) -> tuple[Any, ...]:
        gradients, loss, answer = gradients_of(index)
        norm = tf.sqrt(tf.add_n([squares(gradient[None])[0] for gradient in gradients]))
        factor = clip_factors(norm, batch.weights[index], clip)
        sums = [total + factor * gradient for total, gradient in zip(sums, gradients, strict=True)]
        return index + 1, sums, losses.write(index, loss), answers.write(index, answer)

    count = tf.shape(batch.weights)[0]
    zeros = [tf.zeros(variable.shape, variable.dtype) for variable in variables]
    losses = tf.TensorArray(batch.weights.dtype, count, element_shape=())
    answers = tf.TensorArray(batch.weights.dtype, count, element_shape=model.outputs[0].shape[1:])
    _, sums, losses, answers = tf.while_loop(
        lambda index, *_: index < count, step, (tf.constant(0), zeros, losses, answers)
    )
    return Clipped(sums, losses.stack(), answers.stack())


def _only(chosen: Any, values: Any) -> Any:
    """Return [N, ...] with zeros for the examples that are not chosen."""
    mask = tf.reshape(chosen, [-1] + [1] * (len(values.shape) - 1))
    return tf.where(mask, values, tf.zeros_like(values))


def finite(values: Any) -> Any:
    """Return values with 0 in the place of what is not finite.

    A record with a missing value, or one that overflows, must not make the whole model not-a-number, which
    also would tell for certain that it is there; 0 * NaN is NaN, so clipping alone does not help.
    """
    if not values.dtype.is_floating:
        return values
    return tf.where(tf.math.is_finite(values), values, tf.zeros_like(values))


def clip_factors(norms: Any, weights: Any, clip: float) -> Any:
    """Return weight * min(1, clip / norm); an example whose norm overflows counts as nothing.

    The clip is that of the mechanism less the margin that is kept for rounding. Bounds of norms are never 0.
    """
    kept = tf.constant(clip * (1 - margin(norms.dtype)), norms.dtype)
    factors = tf.minimum(tf.ones_like(norms), kept / norms)
    return finite(factors) * tf.cast(tf.math.is_finite(norms), norms.dtype) * weights
