"""Per-example gradients of one layer, from what went into it and the loss's gradient behind it.

For every kind of layer two functions: the linear part of what the layer computes, and, from its input and the
gradient at its output, the squared norm of each example's gradient (an upper bound, see ``bounds``) together
with a way to the weighted sum of all of them. The second backward pass and the per-example gradient that a
norm alone does not need are saved.

Sources: Goodfellow 2015, Efficient per-example gradient computations (the product of norms); Rochette et al.
2019 (convolutions); Bu et al. 2023, Differentially private optimization on large model at small cost (the
choice between the Gram matrix and the gradient itself, and the single pass).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fedsec.learning.backend import keras, tf
from fedsec.learning.private import bounds
from fedsec.learning.private.patches import patches

WeightedSum = Callable[[Any], list[Any]]
"""From a factor an example, shape [N], to the sum of factor * gradient for each of the layer's variables."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How the gradients of one kind of layer are had.

    Attributes:
        forward: From (layer, input) to the value before the activation.
        gradients: From (layer, input, the loss's gradient at that value) to the squared norm of each
            example's gradient, shape [N], and the weighted sum.
    """

    forward: Callable[[Any, Any], Any]
    gradients: Callable[[Any, Any, Any], tuple[Any, WeightedSum]]


def products(a: Any, b: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Return norms and weighted sum of the matrices G_n = A_n^T B_n.

    Args:
        a: Shape [N, T, D].
        b: Shape [N, T, P].

    Returns:
        The squared Frobenius norm of each G_n, shape [N], and a function from factors c, shape [N], to
        sum c_n G_n, shape [D, P].
    """
    places, rows, columns = a.shape[1], a.shape[2], b.shape[2]

    def summed(factors: Any) -> Any:
        flat = tf.reshape(a, [-1, rows])
        return tf.matmul(flat, tf.reshape(b * factors[:, None, None], [-1, columns]), transpose_a=True)

    if places == 1:
        return bounds.of_outer(a, b), summed
    if places * rows * columns <= places**2 * (rows + columns):
        # Of the two orders of the product the one with the longer rows is a quarter faster.
        each = tf.reshape(tf.matmul(b, a, transpose_a=True), [-1, columns * rows])
        # The same numbers are measured and added: whatever cancelled in them, the norm is theirs.
        return bounds.squares(each), lambda factors: tf.transpose(
            tf.reshape(tf.linalg.matvec(each, factors, transpose_a=True), [columns, rows])
        )
    # |A^T B|^2 = <A A^T, B B^T>: T x T matrices where D x P ones would be larger.
    grams = tf.matmul(a, a, transpose_b=True), tf.matmul(b, b, transpose_b=True)
    return bounds.of_gram(*grams, (rows, columns)), summed


def _with_bias(layer: Any, b: Any, kernel: tuple[Any, Callable[[Any], Any]]) -> tuple[Any, WeightedSum]:
    """Add the bias to the norm and the sum: its gradient is the sum of ``b``, [N, T, P], over the places."""
    squared, summed = kernel
    if not layer.use_bias:
        return squared, lambda factors: [summed(factors)]
    biases = tf.reduce_sum(b, axis=1)
    return squared + bounds.squares(biases), lambda factors: [
        summed(factors),
        tf.linalg.matvec(biases, factors, transpose_a=True),
    ]


def _places(values: Any) -> Any:
    """Return [N, ..., C] as [N, T, C]; all sizes but the first are known."""
    count = 1
    for size in values.shape[1:-1]:
        count *= size
    return tf.reshape(values, [-1, count, values.shape[-1]])


def _biased(layer: Any, z: Any) -> Any:
    return z + layer.bias if layer.use_bias else z


# Dense.


def _dense(layer: Any, x: Any) -> Any:
    return _biased(layer, tf.tensordot(x, tf.convert_to_tensor(layer.kernel), 1))


def _dense_gradients(layer: Any, x: Any, b: Any) -> tuple[Any, WeightedSum]:
    a, b = _places(x), _places(b)
    return _with_bias(layer, b, products(a, b))


# Conv2D.


@dataclass(frozen=True, slots=True, eq=False)
class ConvolutionView:
    """A Conv2D's variables and settings, with other strides than its own."""

    kernel: Any
    bias: Any
    use_bias: bool
    kernel_size: tuple[int, int]
    strides: tuple[int, int]
    padding: str
    dilation_rate: tuple[int, int]
    groups: int

    @classmethod
    def of(cls, layer: Any, strides: tuple[int, int]) -> ConvolutionView:
        """Return a view of ``layer`` with ``strides``."""
        return cls(
            layer.kernel,
            layer.bias,
            layer.use_bias,
            layer.kernel_size,
            strides,
            layer.padding,
            layer.dilation_rate,
            layer.groups,
        )


def _conv(layer: Any, x: Any) -> Any:
    return _biased(
        layer,
        keras.ops.conv(x, layer.kernel, layer.strides, layer.padding, "channels_last", layer.dilation_rate),
    )


def _conv_gradients(layer: Any, x: Any, b: Any) -> tuple[Any, WeightedSum]:
    seen = patches(x, layer.kernel_size, layer.strides, layer.dilation_rate, layer.padding)
    return _with_bias(layer, _places(b), _convolved(layer, seen, b))


def _convolved(layer: Any, seen: Any, b: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Return the kernel's norms and weighted sum from patches [N, H, W, k*k*C] and the gradient behind."""
    shape, groups = tuple(layer.kernel.shape), layer.groups
    if groups == 1:
        squared, summed = products(_places(seen), _places(b))
        return squared, lambda factors: tf.reshape(summed(factors), shape)
    parts = [products(a, each) for a, each in _by_group(_places(seen), _places(b), shape, groups)]
    return tf.add_n([squared for squared, _ in parts]), lambda factors: tf.concat(
        [tf.reshape(summed(factors), (*shape[:3], shape[3] // groups)) for _, summed in parts], axis=-1
    )


def _by_group(seen: Any, b: Any, shape: Sequence[int], groups: int) -> list[tuple[Any, Any]]:
    """Split patches and gradients by group: group g sees the channels and makes the filters numbered g."""
    places, inputs = seen.shape[1], shape[2]
    window = tf.reshape(seen, [-1, places, shape[0] * shape[1], groups, inputs])
    rows = shape[0] * shape[1] * inputs
    filters = tf.split(b, groups, axis=-1)
    return [(tf.reshape(window[:, :, :, g], [-1, places, rows]), filters[g]) for g in range(groups)]


# DepthwiseConv2D.


def _depthwise(layer: Any, x: Any) -> Any:
    return _biased(
        layer,
        keras.ops.depthwise_conv(
            x, layer.kernel, layer.strides, layer.padding, "channels_last", layer.dilation_rate
        ),
    )


def _depthwise_gradients(layer: Any, x: Any, b: Any) -> tuple[Any, WeightedSum]:
    strides = (layer.strides,) * 2 if isinstance(layer.strides, int) else tuple(layer.strides)
    seen = _places(patches(x, layer.kernel_size, strides, layer.dilation_rate, layer.padding))
    height, width, channels, multiplier = layer.kernel.shape
    flat = _places(b)
    a = tf.reshape(seen, [-1, seen.shape[1], height * width, channels])
    split = tf.reshape(flat, [-1, flat.shape[1], channels, multiplier])
    each = tf.einsum("ntkc,ntcm->nkcm", a, split)
    return _with_bias(
        layer,
        flat,
        (
            bounds.squares(each),
            lambda factors: tf.reshape(tf.tensordot(factors, each, 1), [height, width, channels, multiplier]),
        ),
    )


# Embedding.


def _embedding_gradients(layer: Any, x: Any, b: Any) -> tuple[Any, WeightedSum]:
    words, count = tf.cast(x, tf.int32), layer.input_dim
    words = tf.reshape(words, [-1, max(1, _product(x.shape[1:]))])
    b = tf.reshape(b, [-1, words.shape[1], b.shape[-1]])
    # A row that is looked up twice gets the sum of both gradients.
    same = tf.cast(words[:, :, None] == words[:, None, :], b.dtype)
    squared = bounds.of_rows(same, tf.matmul(b, b, transpose_b=True), b.shape[-1])

    def summed(factors: Any) -> list[Any]:
        rows = tf.reshape(b * factors[:, None, None], [-1, b.shape[-1]])
        return [tf.math.unsorted_segment_sum(rows, tf.reshape(words, [-1]), count)]

    return squared, summed


# Normalisation without batch statistics.


def _layer_norm_gradients(layer: Any, x: Any, b: Any) -> tuple[Any, WeightedSum]:
    axes = sorted(axis % len(x.shape) for axis in layer.axis)
    mean, variance = tf.nn.moments(x, axes, keepdims=True)
    return _scaled(layer, (x - mean) * tf.math.rsqrt(variance + layer.epsilon), b, axes)


def _group_norm_gradients(layer: Any, x: Any, b: Any) -> tuple[Any, WeightedSum]:
    channels = x.shape[-1]
    parts = tf.reshape(x, [-1, *x.shape[1:-1], layer.groups, channels // layer.groups])
    axes = [axis for axis in range(1, len(parts.shape)) if axis != len(parts.shape) - 2]
    mean, variance = tf.nn.moments(parts, axes, keepdims=True)
    normalised = (parts - mean) * tf.math.rsqrt(variance + layer.epsilon)
    return _scaled(layer, tf.reshape(normalised, [-1, *x.shape[1:]]), b, [len(x.shape) - 1])


def _scaled(layer: Any, normalised: Any, b: Any, axes: list[int]) -> tuple[Any, WeightedSum]:
    """Return the gradients of gamma and beta, which have the sizes of ``axes``."""
    others = [axis for axis in range(1, len(b.shape)) if axis not in axes]
    # With an epsilon of 0, zeros are normalised to what is no number.
    each = [tf.reduce_sum(tf.math.multiply_no_nan(normalised, b), axis=others)] if layer.scale else []
    each += [tf.reduce_sum(b, axis=others)] if layer.center else []
    squared = tf.add_n([bounds.squares(one) for one in each])
    return squared, lambda factors: [tf.tensordot(factors, one, 1) for one in each]


def _as_keras(layer: Any, x: Any) -> Any:
    return layer.call(x)


def _product(sizes: Sequence[int]) -> int:
    count = 1
    for size in sizes:
        count *= size
    return count


RULES: dict[type, Rule] = {
    keras.layers.Dense: Rule(_dense, _dense_gradients),
    keras.layers.Conv2D: Rule(_conv, _conv_gradients),
    keras.layers.DepthwiseConv2D: Rule(_depthwise, _depthwise_gradients),
    keras.layers.Embedding: Rule(_as_keras, _embedding_gradients),
    keras.layers.LayerNormalization: Rule(_as_keras, _layer_norm_gradients),
    keras.layers.GroupNormalization: Rule(_as_keras, _group_norm_gradients),
}
"""By the exact class of a layer: a subclass may compute anything."""
