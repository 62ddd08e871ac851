"""Keras models become plans that compute the same, or are refused by the layer's name."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsec.errors import UnsupportedModelError, UsageError
from fedsec.learning import models
from fedsec.learning.backend import keras
from fedsec.learning.export import export, network_of
from fedsec.learning.saved import load_keras
from fedsec.nn import plaintext

L = keras.layers


def sequential(*layers: object, shape: tuple[int, ...] = (10, 9, 2)) -> keras.Sequential:
    model = keras.Sequential([keras.Input(shape), *layers])
    generator = np.random.default_rng(4)
    # Keras starts biases at zero, where a lost bias would not be seen.
    model.set_weights([generator.normal(0, 0.4, array.shape) for array in model.get_weights()])
    return model


def inputs(model: keras.Model, count: int = 5) -> np.ndarray:
    return np.random.default_rng(8).uniform(0, 1, (count, *model.input_shape[1:]))


def plain_logits(model: keras.Sequential) -> np.ndarray:
    plan, weights = export(model)
    return plaintext.predict(plan, weights, inputs(model))


@pytest.mark.parametrize(
    "ending",
    [lambda: [L.Dense(4, activation="softmax")], lambda: [L.Dense(4), L.Softmax()],
     lambda: [L.Dense(4), L.Activation("softmax")]],
    ids=["argument", "Softmax", "Activation"],
)  # fmt: skip
def test_a_final_softmax_is_left_out_and_the_answer_is_still_right(
    ending: Callable[[], list[object]],
) -> None:
    model = sequential(L.Flatten(), *ending())

    logits = plain_logits(model)
    probabilities = model(inputs(model)).numpy()
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(
        exponentials / exponentials.sum(axis=1, keepdims=True), probabilities, atol=2e-6
    )
    assert not np.allclose(logits, probabilities)


# What stays outside.

UNSUPPORTED: dict[str, tuple[Callable[[], list[object]], str]] = {
    "unknown layer": (
        lambda: [L.LayerNormalization(name="strange")],
        "strange.*LayerNormalization.*use BatchNormalization.*supported are Dense, Conv1D, Conv2D"),
    "recurrent": (lambda: [L.Reshape((5, 36)), L.LSTM(3, name="strange")], "strange.*LSTM.*use Conv1D"),
    "unknown, no advice": (
        lambda: [L.Permute((2, 1, 3), name="strange")], "strange.*Permute.*replace the layer"),
    "activation": (lambda: [L.Dense(3, activation="mish", name="strange")], "strange.*'mish'.*Use relu"),
    "own activation": (lambda: [L.Dense(3, activation=lambda x: x * x, name="strange")], "strange.*lambda"),
    "channels first": (
        lambda: [L.AveragePooling2D(2, data_format="channels_first", name="strange")],
        "strange.*channels_last"),
    "softmax over rows": (lambda: [L.Softmax(axis=1, name="strange")], "strange.*axis -1"),
    "softmax inside": (
        lambda: [L.Dense(3, activation="softmax", name="strange"), L.Dense(2)], "strange.*as the last layer"),
    "batch-norm over rows": (lambda: [L.BatchNormalization(axis=1, name="strange")], "strange.*axis -1"),
    "relu that is zero": (lambda: [L.ReLU(max_value=0.0, name="strange")], "strange.*max_value above 0"),
    "slopes by place": (lambda: [L.PReLU(name="strange")], "strange.*one slope a channel"),
    "normalization backwards": (
        lambda: [L.Normalization(mean=0.0, variance=1.0, invert=True, name="strange")], "strange.*invert"),
    "four axes": (lambda: [L.Reshape((2, 5, 9, 2), name="strange"), L.Flatten()], "strange.*4 axes.*reshape"),
    "nothing": (lambda: [L.Dropout(0.5)], "computes nothing"),
    "nothing but a softmax": (lambda: [L.Softmax()], "nothing that is worth sharing"),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_anything_else_is_refused_by_name_with_what_to_do(kind: str) -> None:
    layers, text = UNSUPPORTED[kind]

    with pytest.raises(UnsupportedModelError, match=text):
        export(sequential(*layers()))


def graph(build: Callable[[Any], Any], shape: tuple[int, ...] = (6, 5, 2)) -> Any:
    image = keras.Input(shape)
    return keras.Model(image, build(image))


REFUSED_GRAPHS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "sum of two shapes": (
        lambda x: L.Add(name="strange")([x, L.Conv2D(1, 3, padding="same")(x)]),
        r"strange.*one shape, got \[\[6, 5, 2\], \[6, 5, 1\]\]"),
    "quotient": (lambda x: L.Conv2D(2, 1)(x) / x, "true_divide.*number below the line"),
    "number over a tensor": (lambda x: 1.0 / x, "true_divide.*number below the line"),
    "array of constants": (lambda x: x * np.ones((6, 5, 2), dtype="float32"), "multiply.*no single number"),
    "operation": (keras.ops.sin, "sin.*is a Sin.*replace the layer"),
    "two outputs": (lambda x: [L.Conv2D(1, 1)(x), L.Conv2D(2, 1)(x)], "2 outputs, expected one"),
    "inside another model": (
        keras.Sequential([keras.Input((6, 5, 2)), L.UnitNormalization(name="strange")], name="inner"),
        "'inner/strange'.*UnitNormalization"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED_GRAPHS)
def test_graphs_are_refused_by_the_name_of_their_layer(kind: str) -> None:
    build, text = REFUSED_GRAPHS[kind]

    with pytest.raises(UnsupportedModelError, match=text):
        export(graph(build))


def test_two_inputs_are_refused() -> None:
    one, two = keras.Input((3,)), keras.Input((3,))

    with pytest.raises(UnsupportedModelError, match="2 inputs, expected one: join them"):
        export(keras.Model([one, two], L.Add()([one, two])))


def test_a_model_within_that_takes_tensors_by_name_is_refused() -> None:
    """Keras takes them by name where the model has a list in another order: ours would be swapped."""
    one, two = keras.Input((3,), name="one"), keras.Input((3,), name="two")
    inner = keras.Model([two, one], L.Subtract()([one, two]), name="inner")

    with pytest.raises(UnsupportedModelError, match="'inner' is called on tensors by name"):
        export(graph(lambda x: inner({"one": L.Dense(3)(x), "two": L.Dense(3)(x)}), (3,)))

    listed = network_of(graph(lambda x: inner([L.Dense(3, name="two")(x), L.Dense(3, name="one")(x)]), (3,)))
    names = [listed.layers[value - 1].name for value in listed.layers[-1].inputs]
    assert names == ["one", "two"]


def test_a_quantized_layer_is_refused() -> None:
    model = sequential(L.Flatten(), L.Dense(3, name="strange"))
    model.quantize("int8")

    with pytest.raises(UnsupportedModelError, match=r"strange.*float parameters.*before quantize"):
        export(model)


def test_a_subclass_is_not_taken_for_its_parent() -> None:
    class Doubled(L.Dense):
        def call(self, x):
            return 2 * super().call(x)

    class Twice(keras.Sequential):
        def call(self, x, **settings):
            return 2 * super().call(x, **settings)

    with pytest.raises(UnsupportedModelError, match="Doubled"):
        export(sequential(L.Flatten(), Doubled(3)))
    with pytest.raises(UnsupportedModelError, match=r"Twice.*own code"):
        export(Twice([keras.Input((3,)), L.Dense(2)]))


def test_a_subclass_that_only_trains_otherwise_is_its_parent() -> None:
    class Trained(keras.Model):
        def train_step(self, data):
            raise NotImplementedError

    image = keras.Input((4,))
    model = Trained(image, L.Dense(2)(image))

    assert export(model)[0].output_shape == (2,)


def test_models_without_a_known_shape_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="input shape"):
        export(keras.Sequential([L.Dense(2)]))
    with pytest.raises(UnsupportedModelError, match="input shape"):
        export(keras.Sequential([keras.Input((None, None, 1)), L.Conv2D(2, 3)]))
    with pytest.raises(UnsupportedModelError, match="4 axes, expected 1 to 3"):
        export(keras.Sequential([keras.Input((2, 2, 2, 2)), L.Flatten(), L.Dense(2)]))


# What a graph becomes.


def test_every_step_has_its_layers_name_and_a_second_call_its_own() -> None:
    twice = L.Dense(4, name="twice")
    inner = keras.Sequential([keras.Input((4,)), twice, L.ReLU(name="knee")], name="inner")

    network = network_of(graph(lambda x: inner(inner(twice(x))), (4,)))

    assert [layer.name for layer in network.layers] == [
        "twice", "inner/twice", "inner/knee", "inner/twice (2)", "inner/knee (2)",
    ]  # fmt: skip


def test_long_names_keep_their_end() -> None:
    inner = keras.Sequential(
        [keras.Input((4,)), L.Dense(4, activation="hard_sigmoid", name="z" * 80)], name="i" * 80
    )

    network = network_of(graph(lambda x: inner(inner(x)), (4,)))

    names = [layer.name for layer in network.layers]
    assert len(set(names)) == len(names) == 8
    assert max(map(len, names)) <= 128
    assert all("z" * 80 in name for name in names)


def test_a_separable_convolution_is_one_convolution() -> None:
    layers = network_of(sequential(L.SeparableConv2D(5, 3, depth_multiplier=2))).layers

    assert [type(layer).__name__ for layer in layers] == ["ConvLayer"]
    assert layers[0].kernel.shape == (3, 3, 2, 5)  # type: ignore[union-attr]  # the convolution


def test_layers_that_do_nothing_leave_no_trace() -> None:
    noisy = sequential(L.Flatten(), L.Dropout(0.5), L.Dense(4), L.GaussianNoise(1.0), L.Identity())
    plain = sequential(L.Flatten(), L.Dense(4))

    one, two = network_of(noisy), network_of(plain)
    assert [type(layer) for layer in one.layers] == [type(layer) for layer in two.layers]


def test_an_input_range_of_grey_values_goes_with_a_rescaling() -> None:
    network = network_of(sequential(L.Rescaling(1 / 255), L.Flatten(), L.Dense(2)), input_range=(0, 255))

    assert (network.input_low, network.input_high) == (0.0, 255.0)


# Saved models.


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.filterwarnings("ignore:.*saving your model as an HDF5 file.*")
def test_a_model_saved_by_plain_keras_is_read(suffix: str, tmp_path: Path) -> None:
    model = models.short_conv((4, 6))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.save(tmp_path / f"model{suffix}")

    again = load_keras(tmp_path / f"model{suffix}")

    images = inputs(model)
    np.testing.assert_allclose(again(images).numpy(), model(images).numpy(), atol=1e-6)
    assert export(again)[0].digest() == export(model)[0].digest()


def test_a_functional_model_with_arithmetic_is_read(tmp_path: Path) -> None:
    inner = keras.Sequential([keras.Input((6, 5, 2)), L.Conv2D(2, 3, padding="same"), L.ReLU()])
    activations = keras.activations

    def build(x: Any) -> Any:
        y = inner(x) + (x / 2.0 - 1) * 3.0
        y = activations.gelu(activations.relu(y, max_value=3.0)) - activations.tanh(x)
        y = activations.leaky_relu(keras.ops.relu6(-y))
        return L.Dense(3)(L.Flatten()(L.RandomFlip()(y)))

    model = graph(build)
    model.save(tmp_path / "model.keras")

    again = load_keras(tmp_path / "model.keras")

    images = inputs(model)
    # Layers for training only are on by default in a bare call.
    expected = model(images, training=False).numpy()
    np.testing.assert_allclose(again(images, training=False).numpy(), expected, atol=1e-6)
    assert [layer.name for layer in network_of(again).layers] == [
        layer.name for layer in network_of(model).layers
    ]


def tampered(path: Path, change: Callable[[dict], None]) -> Path:
    """A saved model whose configuration says something else."""
    keras.Sequential([keras.Input((3,)), L.Dense(2, activation="relu")]).save(path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(content["config.json"])
    change(config)
    content["config.json"] = json.dumps(config).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    path.write_bytes(buffer.getvalue())
    return path


EVIL = [
    {"module": "builtins", "class_name": "eval", "config": {}},
    {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"},
    {"module": "keras.utils", "class_name": "get_file", "config": {}},
    {"module": "keras.layers", "class_name": "Lambda", "config": {}},
    {"class_name": "__lambda__", "config": {"value": ""}},
    {"module": "keras.src.ops.numpy", "class_name": "Einsum", "config": {}},
    {"module": "keras.src.models.functional", "class_name": "functional_like_constructor", "config": {}},
]


@pytest.mark.parametrize("evil", EVIL, ids=lambda evil: evil["class_name"])
def test_threat_38_a_saved_model_cannot_name_code_to_run(
    evil: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(config: dict) -> None:
        config["config"]["layers"][-1]["config"]["activation"] = evil

    path = tampered(tmp_path / "model.keras", change)
    monkeypatch.setattr(
        keras.models, "load_model", lambda *_, **__: pytest.fail("refused before Keras sees it")
    )

    with pytest.raises(UnsupportedModelError, match="code from a file is never run"):
        load_keras(path)


@pytest.mark.filterwarnings("ignore:.*saving your model as an HDF5 file.*")
def test_threat_38_a_lambda_in_an_h5_file_is_refused(tmp_path: Path) -> None:
    keras.Sequential([keras.Input((3,)), L.Lambda(lambda x: x)]).save(tmp_path / "model.h5")

    with pytest.raises(UnsupportedModelError, match="Lambda"):
        load_keras(tmp_path / "model.h5")


def test_own_losses_do_no_harm(tmp_path: Path) -> None:
    def change(config: dict) -> None:
        config["compile_config"] = {"loss": {"module": "mine", "class_name": "MyLoss", "config": {}}}

    load_keras(tampered(tmp_path / "model.keras", change))


def test_what_is_no_saved_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run folder and no model file"):
        load_keras(tmp_path / "missing.keras")
    (tmp_path / "model.txt").write_text("nothing of the kind")
    with pytest.raises(UsageError, match=r"model\.save"):
        load_keras(tmp_path / "model.txt")
    for name in ("broken.keras", "broken.h5"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(UsageError, match="cannot be loaded"):
            load_keras(tmp_path / name)
