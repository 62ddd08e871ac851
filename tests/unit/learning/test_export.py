"""Keras models become plans that compute the same, or are refused by the layer's name."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedsec.errors import UnsupportedModelError, UsageError
from fedsec.learning import models
from fedsec.learning.backend import keras
from fedsec.learning.export import export
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


def plain_logits(model: keras.Model) -> np.ndarray:
    plan, weights = export(model)
    return plaintext.predict(plan, weights, inputs(model))


SUPPORTED: dict[str, Callable[[], list[object]]] = {
    "conv": lambda: [L.Conv2D(3, 3), L.Flatten(), L.Dense(4)],
    "same padding": lambda: [L.Conv2D(3, 3, padding="same"), L.Flatten(), L.Dense(4)],
    "same padding, even kernel, strides": lambda: [
        L.Conv2D(3, (4, 2), strides=2, padding="same", activation="relu"), L.Flatten(), L.Dense(4)],
    "strides 3, same": lambda: [L.Conv2D(3, 2, strides=3, padding="same"), L.Flatten(), L.Dense(4)],
    "no bias": lambda: [L.Conv2D(3, 3, use_bias=False), L.Flatten(), L.Dense(4, use_bias=False)],
    "conv, pool": lambda: [L.Conv2D(3, 3), L.AveragePooling2D(2), L.ReLU(), L.Flatten(), L.Dense(4)],
    "conv, odd pool": lambda: [
        L.Conv2D(3, 3), L.AveragePooling2D((3, 2), strides=1), L.Activation("relu"), L.Flatten(), L.Dense(4)],
    "relu inside, pool": lambda: [
        L.Conv2D(3, 3, activation="relu"), L.AveragePooling2D(3), L.Flatten(), L.Dense(4)],
    "pool first": lambda: [L.AveragePooling2D(2), L.Conv2D(3, 3), L.Flatten(), L.Dense(4)],
    "dropout": lambda: [
        L.Dropout(0.5), L.Flatten(), L.Dense(6, activation="relu"), L.Dropout(0.2), L.Dense(4)],
    "linear activation": lambda: [L.Flatten(), L.Dense(4, activation="linear")],
    "two dense, nothing between": lambda: [L.Flatten(), L.Dense(5), L.Dense(4)],
    "ends with a convolution": lambda: [L.Conv2D(3, 3), L.Flatten()],
    "ends with relu": lambda: [L.Flatten(), L.Dense(4, activation="relu")],
}  # fmt: skip


@pytest.mark.parametrize("kind", SUPPORTED)
def test_the_plan_computes_what_keras_computes(kind: str) -> None:
    model = sequential(*SUPPORTED[kind]())

    np.testing.assert_allclose(plain_logits(model), model(inputs(model)).numpy(), atol=2e-5)


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


UNSUPPORTED: dict[str, tuple[Callable[[], list[object]], str]] = {
    "max pooling": (lambda: [L.MaxPooling2D(2, name="strange")], "strange.*MaxPooling2D.*supported"),
    "batch normalisation": (lambda: [L.BatchNormalization(name="strange")], "strange.*supported are"),
    "sigmoid": (lambda: [L.Dense(3, activation="sigmoid", name="strange")], "strange.*'sigmoid'.*Use relu"),
    "softmax inside": (lambda: [L.Dense(3, activation="softmax"), L.Dense(2)], "before the end"),
    "leaky relu": (lambda: [L.ReLU(negative_slope=0.1, name="strange")], "strange.*negative_slope"),
    "relu6": (lambda: [L.ReLU(max_value=6, name="strange")], "strange.*max_value"),
    "dilation": (lambda: [L.Conv2D(2, 3, dilation_rate=2, name="strange")], "strange.*dilation_rate"),
    "groups": (lambda: [L.Conv2D(2, 3, groups=2, name="strange")], "strange.*groups"),
    "uneven strides": (lambda: [L.Conv2D(2, 3, strides=(1, 2), name="strange")], "strange.*equal strides"),
    "same pool": (lambda: [L.AveragePooling2D(2, padding="same", name="strange")], "strange.*valid"),
    "dense on images": (lambda: [L.Dense(3, name="strange")], "strange.*Flatten missing"),
    "softmax over rows": (lambda: [L.Softmax(axis=1, name="strange")], "strange.*axis -1"),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_anything_else_is_refused_by_name_with_what_to_do(kind: str) -> None:
    layers, text = UNSUPPORTED[kind]

    with pytest.raises(UnsupportedModelError, match=text):
        export(sequential(*layers()))


def test_a_subclass_is_not_taken_for_its_parent() -> None:
    class Doubled(L.Dense):
        def call(self, x):
            return 2 * super().call(x)

    with pytest.raises(UnsupportedModelError, match="Doubled"):
        export(sequential(L.Flatten(), Doubled(3)))


def test_other_kinds_of_model_are_refused() -> None:
    tensor = keras.Input((4,))
    with pytest.raises(UnsupportedModelError, match=r"expected keras\.Sequential"):
        export(keras.Model(tensor, L.Dense(2)(tensor)))
    with pytest.raises(UnsupportedModelError, match="input shape"):
        export(keras.Sequential([L.Dense(2)]))
    with pytest.raises(UnsupportedModelError, match="input shape"):
        export(keras.Sequential([keras.Input((None, None, 1)), L.Conv2D(2, 3)]))


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
