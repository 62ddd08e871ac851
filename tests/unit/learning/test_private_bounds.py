"""No example adds more than the clip, whatever floating point makes of its norm."""

import numpy as np
import pytest

from fedsec.errors import UnsupportedModelError
from fedsec.learning.backend import keras, tf
from fedsec.learning.private import bounds, rules
from fedsec.learning.private.clipping import Batch, clip_factors, clipped_one_by_one, clipped_sum
from fedsec.learning.private.network import examined

L = keras.layers
CLIP = 1.0


def length(arrays) -> float:
    return float(np.sqrt(sum(np.sum(np.asarray(one, np.float64) ** 2) for one in arrays)))


def loss_each(y, answers):
    return keras.losses.sparse_categorical_crossentropy(y, answers, from_logits=True)


def added(squared, summed) -> float:
    """Return the length of what one example adds to the sum, once it is clipped."""
    found = summed(clip_factors(tf.sqrt(squared), tf.ones(1), CLIP))
    return length(found if isinstance(found, list) else [found])


@pytest.mark.parametrize("way", [clipped_sum, clipped_one_by_one])
def test_squares_that_are_flushed_to_zero_are_clipped(way) -> None:
    model = keras.Sequential(
        [
            keras.Input((100,)),
            L.Dense(16, activation="relu"),
            L.Dense(128, activation="relu"),
            L.Dense(10),
        ]
    )
    weights = [np.zeros_like(one) for one in model.get_weights()]
    # Features of 1.7e19, and gradients behind them whose squares are 0 in float32: of length 18 together.
    weights[0][:, 0], weights[3][:], weights[4][:, 0] = 1.7e17, 1e-30, 1.05e-19
    model.set_weights(weights)
    batch = Batch(tf.ones((1, 100)), tf.constant([0]), tf.ones(1))
    assert length(way(examined(model), loss_each, batch, CLIP).gradients) <= CLIP


@pytest.mark.parametrize(
    ("places", "rows", "columns"), [(1, 16, 128), (4, 288, 32), (16, 576, 64), (16, 25, 8)]
)
def test_products_of_huge_and_flushed_values_are_clipped(places: int, rows: int, columns: int) -> None:
    a = np.full((1, places, rows), 1.5e19 / np.sqrt(places * rows), np.float32)
    b = np.full((1, places, columns), 1.05e-19, np.float32)
    assert np.linalg.norm(a.astype(np.float64)) * np.linalg.norm(b.astype(np.float64)) > 2 * CLIP
    assert added(*rules.products(tf.constant(a), tf.constant(b))) <= CLIP
    # And the other way around.
    assert added(*rules.products(tf.constant(b), tf.constant(a))) <= CLIP


@pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
@pytest.mark.parametrize(("places", "rows", "columns"), [(4, 288, 32), (16, 576, 64), (49, 800, 64)])
def test_norms_that_cancel_are_clipped(places: int, rows: int, columns: int, size: float) -> None:
    assert places * rows * columns > places**2 * (rows + columns)  # by the Gram matrices
    random = np.random.default_rng(1)
    for part in 10.0 ** random.uniform(-6, -2, 10):
        a = np.repeat(random.normal(size=(1, 1, rows)), places, 1)
        b = random.normal(size=(1, places, columns))
        b -= b.mean(axis=1, keepdims=True)
        b = b / np.linalg.norm(b) + part * random.normal(size=(1, 1, columns)) / np.sqrt(columns * places)
        b *= size / np.linalg.norm(a)
        found = rules.products(tf.constant(a, tf.float32), tf.constant(b, tf.float32))
        assert added(*found) <= CLIP


def layers() -> dict:
    """Return layers of all rules, with the shapes of an input and of the gradient behind."""
    return {
        "dense": (L.Dense(40), (30,), (40,)),
        "dense, by the gradient": (L.Dense(3), (50, 4), (50, 3)),
        "dense, by Gram matrices": (L.Dense(40), (4, 30), (4, 40)),
        "convolution": (L.Conv2D(6, 3), (6, 6, 2), (4, 4, 6)),
        "convolution, by Gram matrices": (L.Conv2D(64, 3), (4, 4, 8), (2, 2, 64)),
        "groups": (L.Conv2D(8, 3, groups=2), (6, 6, 4), (4, 4, 8)),
        "depthwise": (L.DepthwiseConv2D(3), (6, 6, 4), (4, 4, 4)),
        "layer norm": (L.LayerNormalization(), (9, 5), (9, 5)),
        "group norm": (L.GroupNormalization(2), (9, 6), (9, 6)),
        "words": (L.Embedding(4, 6), (30,), (30, 6)),
    }


@pytest.mark.parametrize("name", layers())
def test_values_of_any_size_are_clipped(name: str) -> None:
    layer, input_shape, output_shape = layers()[name]
    layer.build((None, *input_shape))
    random, largest = np.random.default_rng(2), 0.0
    for _ in range(25):
        x = random.normal(size=(1, *input_shape)) * 10.0 ** random.uniform(-25, 19)
        words = random.integers(0, 4, x.shape)
        b = random.normal(size=(1, *output_shape)) * 10.0 ** random.uniform(-25, 19)
        if random.random() < 0.5:
            # Places cancel, but for what rounding leaves.
            x[:], words[:], b = x.flat[0], 1, b - b.mean(axis=tuple(range(1, b.ndim - 1)), keepdims=True)
        x = words if name == "words" else x.astype(np.float32)
        found = rules.RULES[type(layer)].gradients(layer, tf.constant(x), tf.constant(b, tf.float32))
        if np.isfinite(found[0][0]):
            largest = max(largest, added(*found))
    assert 0.9 < largest <= CLIP


@pytest.mark.parametrize(("places", "rows", "columns"), [(1, 300, 40), (16, 25, 8), (16, 576, 64)])
def test_bounds_of_usual_values_are_close(places: int, rows: int, columns: int) -> None:
    random = np.random.default_rng(3)
    a, b = random.normal(size=(4, places, rows)), random.normal(size=(4, places, columns)) * 1e-6
    found, _ = rules.products(tf.constant(a, tf.float32), tf.constant(b, tf.float32))
    expected = np.linalg.norm(np.einsum("ntd,ntp->ndp", a, b), axis=(1, 2))
    assert np.allclose(np.sqrt(found), expected, rtol=1e-3)


@pytest.mark.parametrize("size", [1e4, 1e6])
def test_a_word_whose_gradients_cancel_is_clipped(size: float) -> None:
    layer = L.Embedding(3, 6)
    layer.build((None, 30))
    random = np.random.default_rng(6)
    for part in 10.0 ** random.uniform(-6, -2, 10):
        b = random.normal(size=(1, 30, 6))
        b = size * (b - b.mean(axis=1, keepdims=True) + part * random.normal(size=(1, 1, 6)))
        words, b = tf.ones((1, 30), tf.int32), tf.constant(b, tf.float32)
        assert added(*rules.RULES[L.Embedding].gradients(layer, words, b)) <= CLIP


def test_words_that_come_once_have_a_close_bound() -> None:
    layer = L.Embedding(300, 6)
    layer.build((None, 200))
    b = np.random.default_rng(4).normal(size=(2, 200, 6))
    words = tf.constant(np.tile(np.arange(200), (2, 1)))
    found, _ = rules.RULES[L.Embedding].gradients(layer, words, tf.constant(b, tf.float32))
    assert np.allclose(np.sqrt(found), np.linalg.norm(b, axis=(1, 2)), rtol=1e-4)


@pytest.mark.parametrize("value", [1.0001, 0.5773, 1e-19, 1e-21])
def test_a_long_sum_of_squares_is_within_the_margin(value: float) -> None:
    values = np.full((1, 1 << 21), value, np.float32)
    exact = float(np.sum(values.astype(np.float64) ** 2))
    found = float(bounds.squares(tf.constant(values))[0])
    assert found >= exact * (1 - bounds.margin(tf.float32) / 2)


@pytest.mark.parametrize("epsilon", [0.0, 1e-3])
def test_zeros_that_are_normalised_do_not_spoil_the_others(epsilon: float) -> None:
    model = keras.Sequential([keras.Input((6,)), L.LayerNormalization(epsilon=epsilon), L.Dense(10)])
    x = np.random.default_rng(5).normal(size=(3, 6)).astype(np.float32)
    x[1] = 0
    x[2] = 1e38
    batch = Batch(tf.constant(x), tf.constant([0, 1, 2]), tf.ones(3))
    found = clipped_sum(examined(model), loss_each, batch, CLIP).gradients
    assert np.isfinite(length(found))


def test_half_precision_is_refused() -> None:
    model = keras.Sequential([keras.Input((6,)), L.Dense(10, dtype="float16")])
    with pytest.raises(UnsupportedModelError, match="float32"):
        examined(model)
