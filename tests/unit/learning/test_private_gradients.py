"""Clipped sums against a loop over single examples in plain TensorFlow and numpy."""

from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsec.errors import UnsupportedModelError
from fedsec.learning import models
from fedsec.learning.backend import keras, tf
from fedsec.learning.private import bounds, clipping, rules
from fedsec.learning.private.clipping import Batch, clipped_one_by_one, clipped_sum
from fedsec.learning.private.network import examined

L = keras.layers


@pytest.fixture(autouse=True)
def float32_again():
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


def in_precision(dtype: str) -> None:
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)


def loss_each(y, answers):
    return keras.losses.sparse_categorical_crossentropy(y, answers, from_logits=True)


def naive(model, batch: Batch, clip: float) -> list[np.ndarray]:
    """Clip and add one example's gradient after the other, to the clip less what is kept for rounding."""
    clip *= 1 - bounds.margin(batch.weights.dtype)
    total = [np.zeros(variable.shape) for variable in model.trainable_variables]
    for i, weight in enumerate(np.asarray(batch.weights)):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(loss_each(batch.y[i : i + 1], model(batch.x[i : i + 1], training=True)))
        variables = [variable.value for variable in model.trainable_variables]
        gradients = [
            tf.convert_to_tensor(gradient).numpy().astype(np.float64)
            for gradient in tape.gradient(loss, variables, unconnected_gradients="zero")
        ]
        norm = np.sqrt(sum(float(np.sum(gradient**2)) for gradient in gradients))
        total = [
            a + weight * min(1.0, clip / norm) * gradient
            for a, gradient in zip(total, gradients, strict=True)
        ]
    return total


def images(dtype: str, shape=(28, 28, 1), count: int = 5) -> Batch:
    random = np.random.default_rng(3)
    weights = np.ones(count)
    weights[2] = 0
    return Batch(
        tf.constant(random.normal(size=(count, *shape)), dtype),
        tf.constant(random.integers(0, 10, count)),
        tf.constant(weights, dtype),
    )


def randomised(model):
    """Give every variable a value of its own: Keras' zeros for biases would hide half of the mistakes."""
    random = np.random.default_rng(4)
    model.set_weights([random.normal(scale=0.4, size=weight.shape) for weight in model.get_weights()])
    return model


def difference(found, expected) -> float:
    return max(float(np.max(np.abs(np.asarray(a) - b))) for a, b in zip(found, expected, strict=True))


def check(model, batch: Batch, tolerance: float, clip: float = 0.7) -> None:
    network = examined(model)
    assert not network.uncovered
    expected = naive(model, batch, clip)
    assert max(np.abs(one).max() for one in expected) > 1e-3
    assert difference(clipped_sum(network, loss_each, batch, clip).gradients, expected) < tolerance


STACKS = {
    "short-conv": lambda: models.short_conv(softmax=False),
    "tf-privacy": models.tf_privacy,
    "mlp": lambda: keras.Sequential(
        [keras.Input((28, 28, 1)), L.Flatten(), L.Dense(9, activation="tanh"), L.Dense(10, use_bias=False)]
    ),
    "all kinds": lambda: keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            L.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
            L.GroupNormalization(4),
            L.Conv2D(12, 3, groups=4, dilation_rate=2, activation="tanh"),
            L.DepthwiseConv2D(3, depth_multiplier=2, padding="same"),
            L.LayerNormalization(),
            L.Reshape((-1, 24)),
            L.Dense(5, use_bias=False),
            L.LayerNormalization(axis=[1, 2]),
            L.Flatten(),
            L.Dense(10),
        ]
    ),
}


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_one_pass_gives_what_the_loop_gives(name: str, dtype: str, tolerance: float) -> None:
    in_precision(dtype)
    model = randomised(STACKS[name]())
    # In float32 the loop itself is off by the rounding of logits in the hundreds: initial values there.
    if dtype == "float32":
        keras.utils.set_random_seed(5)
        model = STACKS[name]()
    check(model, images(dtype), tolerance)


def test_a_graph_with_branches_and_a_model_inside() -> None:
    in_precision("float64")
    inner = keras.Sequential([keras.Input((14, 14, 4)), L.Conv2D(4, 3, padding="same"), L.ReLU()])
    x = keras.Input((28, 28, 1))
    y = L.AveragePooling2D(2)(L.Conv2D(4, 3, padding="same")(x))
    y = L.Add()([y, inner(y)])
    z = L.GlobalAveragePooling2D()(y)
    check(
        randomised(keras.Model(x, L.Dense(10)(L.Concatenate()([z, L.Flatten()(y)])))),
        images("float64"),
        1e-12,
    )


def test_words_that_come_twice() -> None:
    in_precision("float64")
    model = keras.Sequential(
        [
            keras.Input((7,), dtype="int32"),
            L.Embedding(5, 6),
            L.Dense(4, activation="relu"),
            L.Flatten(),
            L.Dense(10),
        ]
    )
    words = tf.constant(np.random.default_rng(1).integers(0, 5, (5, 7)), tf.int32)
    batch = images("float64")
    check(randomised(model), Batch(words, batch.y, batch.weights), 1e-12)


@st.composite
def stacks(draw) -> list:
    """Draw a convolutional network from what has a rule, as functions that make its layers."""
    makers, size = [], 10
    for _ in range(draw(st.integers(1, 3))):
        strides, padding = draw(st.sampled_from([1, 2])), draw(st.sampled_from(["valid", "same"]))
        options = {"strides": strides, "padding": padding, "use_bias": draw(st.booleans())}
        if strides == 1 and draw(st.booleans()):
            options["dilation_rate"] = 2
        if size < 5:
            break
        kernel = draw(st.integers(1, 3))
        if draw(st.booleans()):
            activation = draw(st.sampled_from(["relu", "tanh", None]))
            makers.append(partial(L.Conv2D, 4, kernel, activation=activation, **options))
            if draw(st.booleans()):
                makers.append(partial(L.AveragePooling2D, draw(st.sampled_from([1, 2]))))
                size //= 2
        else:
            multiplier = draw(st.integers(1, 2))
            makers.append(partial(L.DepthwiseConv2D, kernel, depth_multiplier=multiplier, **options))
        makers.append(draw(st.sampled_from([L.LayerNormalization, L.ReLU, L.Identity])))
        size = size // strides - 4
    return [*makers, draw(st.sampled_from([L.Flatten, L.GlobalAveragePooling2D])), partial(L.Dense, 10)]


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(stacks())
def test_random_stacks(makers: list) -> None:
    in_precision("float64")
    model = keras.Sequential([keras.Input((11, 10, 2)), *(make() for make in makers)])
    check(randomised(model), images("float64", (11, 10, 2), 3), 1e-12)


def test_convolution_and_pooling_become_one_and_stay_the_same_function() -> None:
    in_precision("float64")
    # 11 - 2 = 9 rows, pooled to 4: the last row is dropped.
    model = randomised(
        keras.Sequential(
            [
                keras.Input((11, 10, 2)),
                L.Conv2D(3, 3),
                L.AveragePooling2D((2, 3)),
                L.ReLU(),
                L.Flatten(),
                L.Dense(10),
            ]
        )
    )
    assert list(examined(model).pooled) == [id(model.layers[0])]
    check(model, images("float64", (11, 10, 2)), 1e-12)


def test_a_frozen_convolution_keeps_the_pooling_behind_it() -> None:
    in_precision("float64")
    frozen = L.Conv2D(3, 3, trainable=False)
    model = randomised(
        keras.Sequential([keras.Input((11, 10, 2)), frozen, L.AveragePooling2D(2), L.Flatten(), L.Dense(10)])
    )
    assert not examined(model).pooled
    check(model, images("float64", (11, 10, 2)), 1e-12)


def test_a_layer_without_a_rule_takes_the_loop() -> None:
    in_precision("float64")
    model = randomised(
        keras.Sequential([keras.Input((9, 9, 1)), L.SeparableConv2D(3, 3), L.Flatten(), L.Dense(10)])
    )
    network, batch = examined(model), images("float64", (9, 9, 1))
    assert "SeparableConv2D" in network.uncovered
    assert (
        difference(clipped_one_by_one(network, loss_each, batch, 0.7).gradients, naive(model, batch, 0.7))
        < 1e-12
    )


def test_a_layer_used_twice_takes_the_loop() -> None:
    shared, x = L.Dense(6), keras.Input((6,))
    assert "2 times" in examined(keras.Model(x, L.Dense(10)(shared(shared(x))))).uncovered


def test_frozen_layers_are_left_alone() -> None:
    in_precision("float64")
    model = randomised(STACKS["mlp"]())
    model.layers[1].trainable = False
    check(model, images("float64"), 1e-12)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (L.BatchNormalization, "GroupNormalization"),
        (lambda: L.Dense(4, kernel_regularizer="l2"), "weight_decay"),
        (lambda: L.Dense(4, activity_regularizer="l2"), "weight_decay"),
    ],
)
def test_what_joins_examples_is_refused(layer, text: str) -> None:
    with pytest.raises(UnsupportedModelError, match=text):
        examined(keras.Sequential([keras.Input((4,)), layer(), L.Dense(10)]))


@pytest.mark.parametrize("name", ["short-conv", "mlp"])
def test_an_example_that_overflows_counts_as_nothing(name: str) -> None:
    in_precision("float32")
    model, batch = STACKS[name](), images("float32")
    spoilt, weights = batch.x.numpy(), batch.weights.numpy()
    spoilt[0], weights[0] = 1e38, 0
    found = clipped_sum(examined(model), loss_each, Batch(spoilt, batch.y, batch.weights), 1.0).gradients
    assert all(np.isfinite(one).all() for one in found)
    without = Batch(batch.x, batch.y, tf.constant(weights))
    assert difference(found, naive(model, without, 1.0)) < 1e-5


# Teeth: the comparison above notices the usual mistakes.


def forgets_the_bias(layer, b, kernel):
    squared, summed = kernel
    biases = tf.reduce_sum(b, axis=1)
    return squared, lambda factors: [summed(factors), tf.linalg.matvec(biases, factors, transpose_a=True)]


def clips_the_batch(norms, weights, clip):
    whole = tf.sqrt(tf.reduce_sum(tf.square(norms)))
    return tf.minimum(1.0, clip / whole) * weights


@pytest.mark.parametrize(
    ("module", "name", "mistake"),
    [
        (rules, "_with_bias", forgets_the_bias),
        (clipping, "clip_factors", clips_the_batch),
        (clipping, "clip_factors", lambda norms, weights, clip: weights),
        (clipping, "clip_factors", lambda norms, weights, clip: tf.minimum(1.0, clip / norms)),
    ],
    ids=["bias not in the norm", "batch clipped", "nothing clipped", "fillers counted"],
)
def test_mistakes_are_noticed(monkeypatch, module, name: str, mistake) -> None:
    monkeypatch.setattr(module, name, mistake)
    with pytest.raises(AssertionError):
        check(STACKS["tf-privacy"](), images("float32"), 1e-5)
