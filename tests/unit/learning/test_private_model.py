"""``make_private``: ordinary compile and fit, each step as DP-SGD defines it, and every record accounted."""

from pathlib import Path

import numpy as np
import pytest

from fedsec.errors import UnsupportedModelError, UsageError
from fedsec.learning.backend import keras, tf
from fedsec.learning.private import batches as batches_module
from fedsec.learning.private import bounds
from fedsec.learning.private import model as model_module
from fedsec.learning.private.batches import PoissonBatches, filled
from fedsec.learning.private.guards import UnderWay
from fedsec.learning.private.model import make_private
from fedsec.privacy.accounting import SampledGaussian, epsilon_of

L = keras.layers
RANDOM = np.random.default_rng(2)
X = RANDOM.normal(size=(200, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def small(**settings):
    keras.utils.set_random_seed(7)
    model = keras.Sequential([keras.Input((6,)), L.Dense(5, activation="tanh"), L.Dense(2)])
    private = make_private(model, **({"noise_multiplier": 1.0, "l2_norm_clip": 0.5} | settings))
    private.compile(keras.optimizers.SGD(1.0), LOSS, metrics=["accuracy"])
    return private


def one_step(private, rows: list[int], expected: int, noise: float = 0.25) -> list[np.ndarray]:
    """Take one step on known records with known noise; return how far each variable moved."""
    before = [variable.numpy() for variable in private.trainable_variables]
    batches = PoissonBatches(X, Y, expected, 1)
    batches._sampler.draw = lambda: np.array(rows, dtype=np.intp)
    size = sum(one.size for one in before)
    private._noise.draw = lambda deviation: np.full(size, noise * deviation / 0.5)
    private._under_way = UnderWay(private._prepared(expected / len(X), 1, expected), 1)
    keras.Model.fit(private, batches, epochs=1, verbose=0)
    return [b - variable.numpy() for b, variable in zip(before, private.trainable_variables, strict=True)]


def expected_step(
    private, rows: list[int], expected: int, clip: float, noise: float = 0.25
) -> list[np.ndarray]:
    total = [np.zeros(variable.shape) for variable in private.trainable_variables]
    clip *= 1 - bounds.margin(tf.float32)
    for row in rows:
        with tf.GradientTape() as tape:
            loss = LOSS(Y[row : row + 1], private(X[row : row + 1]))
        gradients = [g.numpy() for g in tape.gradient(loss, [v.value for v in private.trainable_variables])]
        norm = np.sqrt(sum(float(np.sum(g**2)) for g in gradients))
        total = [t + g * min(1.0, clip / norm) for t, g in zip(total, gradients, strict=True)]
    return [(t + noise) / expected for t in total]


def close(found, expected) -> bool:
    return all(np.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "rows", [[3, 5, 9, 20], [], list(range(10, 17)), list(range(100))], ids=["few", "none", "odd", "overflow"]
)
def test_a_step_is_what_dp_sgd_defines(rows: list[int]) -> None:
    """Sum of clipped gradients, noise once, divided by the expected size; also of large samples."""
    private = small()
    expected = expected_step(private, rows, 8, 0.5)
    assert close(one_step(private, rows, 8), expected)


@pytest.mark.parametrize("mistake", ["noise divided twice", "realised size", "overflow dropped"])
def test_mistakes_are_noticed(monkeypatch, mistake: str) -> None:
    private, rows = small(), list(range(30))
    expected = expected_step(private, rows, 8, 0.5)
    if mistake == "noise divided twice":
        private._draw = lambda: np.full(47, 0.25 / 8, np.float32)
    elif mistake == "realised size":
        plain = private._sum
        private._sum = lambda x, y, w: [g * 8 / tf.reduce_sum(w) for g in plain(x, y, w)]
    else:
        plain_sum = private._sum
        private._sum = lambda x, y, w: plain_sum(x[:16], y[:16], w[:16])
    assert not close(one_step(private, rows, 8), expected)


def test_ordinary_fit_learns_and_says_what_it_cost() -> None:
    private = small(noise_multiplier=0.6, l2_norm_clip=1.0)
    history = private.fit(X, Y, batch_size=50, epochs=10, validation_split=0.1, verbose=0)
    assert history.history["val_accuracy"][-1] > 0.8
    assert set(history.history) == {"accuracy", "loss", "val_accuracy", "val_loss"}
    report = private.privacy()
    assert report.mechanisms == (SampledGaussian(0.6, 50 / 180, 10 * 4),)
    assert report.epsilon == epsilon_of(report.mechanisms, 1e-5)
    assert "Poisson" in str(report)


def test_a_stopped_training_costs_what_was_done() -> None:
    private = small()

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    private.fit(X, Y, batch_size=50, epochs=10, callbacks=[Stop()], verbose=0)
    assert [one.steps for one in private.privacy().mechanisms] == [4]


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop", "adamw", "lion", "adagrad"])
def test_any_optimizer_works(optimizer: str) -> None:
    private = small()
    private.compile(optimizer, LOSS)
    private.fit(X, Y, batch_size=40, epochs=1, verbose=0)
    assert all(np.isfinite(weight).all() for weight in private.get_weights())


def test_a_target_holds_over_all_fits() -> None:
    private = small(noise_multiplier=None, target_epsilon=2.0)
    private.fit(X, Y, batch_size=20, epochs=2, verbose=0)
    assert 1.9 < private.privacy().epsilon.value <= 2.0
    with pytest.raises(UsageError, match=r"used up|reaches"):
        private.fit(X, Y, batch_size=20, epochs=2, verbose=0)
    assert private.privacy().epsilon.value <= 2.0


def test_samples_have_few_sizes_and_trace_once() -> None:
    private = small()
    traced, plain = [], private.train_step
    private.train_step = lambda data: traced.append(1) or plain(data)
    private.fit(X, Y, batch_size=40, epochs=6, verbose=0)
    # Once for the shapes, once for the graph; not for each of thirty samples.
    assert len(traced) <= 2
    assert filled(0, 256) >= 1
    sizes = {filled(size, 256) for size in range(200, 320)}
    assert len(sizes) <= 5
    assert all(filled(size, 256) >= size for size in range(600))


def test_two_samples_differ_and_come_from_no_seed() -> None:
    keras.utils.set_random_seed(1)
    first = PoissonBatches(X, Y, 50, 1)[0][0]
    keras.utils.set_random_seed(1)
    assert not np.array_equal(first, PoissonBatches(X, Y, 50, 1)[0][0])


def test_a_pipeline_is_taken_without_amplification_or_refused() -> None:
    pipeline = tf.data.Dataset.from_tensor_slices((X, Y)).batch(50)
    private = small()
    private.fit(pipeline, epochs=3, verbose=0)
    report = private.privacy()
    assert report.mechanisms == (SampledGaussian(1.0, 1.0, 3),)
    assert "no amplification" in str(report)
    with pytest.raises(UsageError, match="Poisson"):
        small(noise_multiplier=None, target_epsilon=1.0).fit(pipeline, epochs=1, verbose=0)


def test_a_layer_without_a_rule_is_trained_with_a_note() -> None:
    model = keras.Sequential([keras.Input((6,)), L.Reshape((6, 1)), L.Conv1D(2, 3), L.Flatten(), L.Dense(2)])
    with pytest.warns(UserWarning, match="one example after the other"):
        private = make_private(model, noise_multiplier=0.5)
    private.compile("sgd", LOSS)
    private.fit(X[:20], Y[:20], batch_size=10, verbose=0)
    assert private.privacy().epsilon.value > 0


def test_the_layers_are_those_of_the_given_model(tmp_path) -> None:
    model = keras.Sequential([keras.Input((6,)), L.Dense(2)])
    private = make_private(model, noise_multiplier=0.5)
    private.compile("sgd", LOSS)
    private.fit(X, Y, batch_size=50, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), private.get_weights(), strict=True))
    private.save(tmp_path / "private.keras")
    loaded = keras.saving.load_model(tmp_path / "private.keras")
    assert np.allclose(loaded.predict(X, verbose=0), private.predict(X, verbose=0))
    with pytest.raises(UsageError, match="loaded from a file"):
        loaded.fit(X, Y, verbose=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"noise_multiplier": None},
        {"noise_multiplier": 1.0, "target_epsilon": 1.0},
        {"l2_norm_clip": 0.0},
        {"noise_multiplier": -1.0},
        {"delta": 1.0},
        {"noise_multiplier": None, "target_epsilon": float("inf")},
    ],
)
def test_settings_that_do_not_fit_are_refused(settings) -> None:
    with pytest.raises(UsageError):
        small(**settings)


@pytest.mark.parametrize(
    "call",
    [
        lambda private: private.fit(X, Y, class_weight={0: 2.0}),
        lambda private: private.fit(X, Y, sample_weight=np.ones(200)),
        lambda private: private.fit(X, Y[:10]),
        lambda private: private.fit(X, Y, batch_size=0),
        lambda private: private.fit(X, Y, validation_split=1.5),
        lambda private: private.compile("sgd", LOSS, jit_compile=True),
        lambda private: private.compile("sgd", [LOSS, LOSS]),
    ],
)
def test_what_has_no_meaning_is_refused(call) -> None:
    private = small()
    with pytest.raises(UsageError):
        call(private)
    assert not private.privacy().mechanisms


def test_models_that_cannot_be_private_are_refused() -> None:
    with pytest.raises(UsageError, match="built"):
        make_private(keras.Sequential([L.Dense(2)]), noise_multiplier=1.0)
    with pytest.raises(UnsupportedModelError, match="BatchNormalization"):
        make_private(
            keras.Sequential([keras.Input((6,)), L.BatchNormalization(), L.Dense(2)]), noise_multiplier=1.0
        )


def test_randomness_is_never_that_of_numpy_or_tensorflow() -> None:
    for module in (batches_module, model_module):
        source = Path(module.__file__).read_text(encoding="utf-8")
        assert "np.random" not in source
        assert "tf.random" not in source


# What would let records past the mechanism.


def test_every_step_counts_whatever_keras_puts_into_one_execution() -> None:
    private = small()
    private.compile(keras.optimizers.SGD(0.1), LOSS, steps_per_execution=4)
    private.fit(X, Y, batch_size=25, epochs=2, verbose=0)
    assert private.optimizer.iterations.numpy() == 16
    assert private.privacy().mechanisms == (SampledGaussian(1.0, 25 / 200, 16),)


def test_no_step_outside_a_fit() -> None:
    private = small()
    private.fit(X, Y, batch_size=50, verbose=0)
    with pytest.raises(UsageError, match="train_on_batch"):
        private.train_on_batch(X, Y, sample_weight=np.full(200, 1e4))
    with pytest.raises((UsageError, tf.errors.OpError), match="no fit is under way"):
        private.train_step((X, Y, np.ones(200, np.float32)))
    assert private.privacy().mechanisms == (SampledGaussian(1.0, 50 / 200, 4),)


def test_weights_count_a_record_once_or_not_at_all() -> None:
    private = small()
    private._expected = 8
    once, often = (
        private._sum(X[:8], Y[:8], tf.constant(weights, tf.float32)) for weights in ([1.0] * 8, [1e4] * 8)
    )
    assert all(np.array_equal(a, b) for a, b in zip(once, often, strict=True))


def centred(x):
    return x - keras.ops.mean(x, axis=0, keepdims=True)


def from_the_batch(y, answers):
    losses = keras.losses.sparse_categorical_crossentropy(y, answers, from_logits=True)
    return losses * tf.cast(tf.size(y), losses.dtype)


def for_all(y, answers):
    return tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, answers, from_logits=True))


@pytest.mark.parametrize("loss", [from_the_batch, for_all])
def test_a_loss_that_joins_records_is_refused(loss) -> None:
    private = small()
    private.compile("sgd", loss)
    with pytest.raises(UsageError):
        private.fit(X, Y, verbose=0)
    assert not private.privacy().mechanisms


def test_operations_that_join_records_are_refused() -> None:
    x = keras.Input((6,))
    private = make_private(keras.Model(x, L.Dense(2)(centred(x))), noise_multiplier=1.0)
    private.compile("sgd", LOSS)
    with pytest.raises(UnsupportedModelError, match="depend on the other records"):
        private.fit(X, Y, verbose=0)


@keras.saving.register_keras_serializable(package="tests")
class Remembering(L.Layer):
    """Keeps a mean of what it saw, as batch normalisation does under any other name."""

    def build(self, shape):
        self.seen = self.add_weight(shape=(shape[-1],), initializer="zeros", trainable=False)

    def call(self, x, training=None):
        if training:
            self.seen.assign(keras.ops.mean(x, axis=0))
        return x


def test_state_that_follows_the_records_is_put_back_and_refused() -> None:
    model = keras.Sequential([keras.Input((6,)), Remembering(), L.Dense(2)])
    private = make_private(model, noise_multiplier=50.0)
    private.compile("sgd", LOSS)
    with pytest.raises(UnsupportedModelError, match="without any noise"):
        private.fit(X, Y, verbose=0)
    assert not model.layers[0].seen.numpy().any()


class Hiding(L.Layer):
    """A layer of somebody's own with batch normalisation in it."""

    def __init__(self):
        super().__init__()
        self.inside = L.BatchNormalization()

    def call(self, x):
        return self.inside(x)


def test_batch_normalisation_is_found_inside_other_layers() -> None:
    with pytest.raises(UnsupportedModelError, match="BatchNormalization"):
        make_private(keras.Sequential([keras.Input((6,)), Hiding(), L.Dense(2)]), noise_multiplier=1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_missing_value_spoils_nothing(value: float) -> None:
    private, spoilt = small(), X.copy()
    spoilt[0, 0] = value
    private.fit(spoilt, Y, batch_size=50, epochs=2, verbose=0)
    assert all(np.isfinite(weight).all() for weight in private.get_weights())


def test_a_pipeline_that_repeats_is_refused() -> None:
    pipeline = tf.data.Dataset.from_tensor_slices((X, Y)).batch(50)
    with pytest.raises(UsageError, match="repeat"):
        small().fit(pipeline.repeat(), steps_per_epoch=4, verbose=0)
    private = small()
    private.fit(pipeline, epochs=2, steps_per_epoch=2, verbose=0)
    assert private.privacy().mechanisms == (SampledGaussian(1.0, 1.0, 1),)


def test_the_account_belongs_to_the_parameters() -> None:
    model = keras.Sequential([keras.Input((6,)), L.Dense(2)])
    first = make_private(model, noise_multiplier=1.0)
    first.compile("sgd", LOSS)
    first.fit(X, Y, batch_size=50, verbose=0)
    for again in (make_private(model, noise_multiplier=2.0), make_private(first, noise_multiplier=3.0)):
        assert again.privacy().mechanisms == first.privacy().mechanisms
        again.compile("sgd", LOSS)
        again.fit(X, Y, batch_size=50, verbose=0)
    assert sum(one.steps for one in first.privacy().mechanisms) == 12
