"""Local training is what Keras' own ``compile`` and ``fit`` compute, step by step."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from fedsec.errors import InputError, UsageError
from fedsec.learning import data, models, quiet
from fedsec.learning.backend import keras
from fedsec.learning.evaluation import evaluate, predict
from fedsec.learning.training import LocalTrainer

# 13 batches of 32 and one of 14: the last step of an epoch is a short one.
EXAMPLES = 430


@pytest.fixture(scope="module")
def examples() -> tuple[np.ndarray, np.ndarray]:
    mnist = data.load_mnist()
    return data.pixels(mnist.train_images[:EXAMPLES]), mnist.train_labels[:EXAMPLES]


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize(("epochs", "optimizer"), [(1, "adam"), (2, "adam"), (2, "sgd")])
def test_fit_equals_keras_fit(
    examples: tuple[np.ndarray, np.ndarray], softmax: bool, epochs: int, optimizer: str
) -> None:
    images, labels = examples
    keras.utils.set_random_seed(3)
    model = models.short_conv((4, 6), softmax=softmax)
    start = model.get_weights()

    trainer = LocalTrainer(model, learning_rate=2e-3, epochs=epochs, optimizer=optimizer)
    parameters, metrics = trainer.fit(start, images, labels, seed=9)

    model.set_weights(start)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not softmax)
    kind = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}[optimizer]
    model.compile(kind(2e-3), loss, metrics=["accuracy"])
    order = np.random.default_rng(9)
    for _ in range(epochs):
        epoch = order.permutation(EXAMPLES)
        history = model.fit(images[epoch], labels[epoch], batch_size=32, shuffle=False, verbose=0).history
    for ours, theirs in zip(parameters, model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    assert metrics["loss"] == pytest.approx(history["loss"][-1], rel=1e-4)
    assert metrics["accuracy"] == pytest.approx(history["accuracy"][-1], abs=1e-6)


def test_nothing_is_carried_from_one_hospital_to_the_next(examples: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = examples
    model = models.short_conv((4,))
    start = [array.copy() for array in model.get_weights()]
    trainer = LocalTrainer(model)

    first, _ = trainer.fit(start, images, labels, seed=1)
    trainer.fit(first, images[:100], labels[:100], seed=2)
    again, _ = trainer.fit(start, images, labels, seed=1)
    other, _ = trainer.fit(start, images, labels, seed=2)

    for one, two in zip(first, again, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)
    assert any(np.abs(one - two).max() > 1e-4 for one, two in zip(first, other, strict=True))


def test_inputs_that_do_not_fit_are_refused(examples: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = examples
    model = models.short_conv((4,))
    trainer, start = LocalTrainer(model), model.get_weights()

    with pytest.raises(InputError, match="430 images and 429 labels"):
        trainer.fit(start, images, labels[:-1], seed=0)
    with pytest.raises(InputError, match="0 images"):
        trainer.fit(start, images[:0], labels[:0], seed=0)
    with pytest.raises(InputError, match="another model's parameters"):
        trainer.fit(start[:-1], images, labels, seed=0)
    with pytest.raises(InputError, match="0 images"):
        evaluate(model, start, images[:0], labels[:0])


@pytest.mark.parametrize("softmax", [True, False])
def test_evaluate_equals_keras_evaluate(examples: tuple[np.ndarray, np.ndarray], softmax: bool) -> None:
    images, labels = examples
    model = models.short_conv((4,), softmax=softmax)

    loss, accuracy = evaluate(model, model.get_weights(), images, labels)

    loss_function = keras.losses.SparseCategoricalCrossentropy(from_logits=not softmax)
    model.compile(loss=loss_function, metrics=["accuracy"])
    expected_loss, expected_accuracy = model.evaluate(images, labels, verbose=0)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert accuracy == pytest.approx(expected_accuracy, abs=1e-6)
    np.testing.assert_allclose(predict(model, images), model.predict(images, verbose=0), atol=1e-5)


def test_the_tutorial_network_has_22158_parameters() -> None:
    # (9*1+1)*10 + (9*10+1)*32 + (9*32+1)*64 + (64+1)*10, the last feature map being 1x1x64.
    expected = 100 + 2912 + 18496 + 650
    assert models.by_name("short-conv").count_params() == expected
    assert models.short_conv((16, 32, 64)).count_params() == 160 + 4640 + 18496 + 650


def test_a_seed_fixes_the_first_parameters() -> None:
    one, two = (models.by_name("short-conv", seed=5).get_weights() for _ in range(2))

    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(UsageError, match="known: gabor, lenet-5, mlp, short-conv"):
        models.by_name("long-conv")


def test_loading_keras_writes_nothing_to_stderr() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TF_")}
    done = subprocess.run(
        [sys.executable, "-c", "import fedsec.learning.backend"],
        capture_output=True, text=True, timeout=120, check=True, env=environment,
    )  # fmt: skip
    assert done.stderr == ""


def test_only_known_notices_are_held_back(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet.without_notices():
        os.write(2, b"I0000 00:00:1 chatter\nE0000 a real problem\n")

    assert capfd.readouterr().err == "E0000 a real problem\n"


def test_a_signal_while_tensorflow_starts_waits_until_it_has() -> None:
    """A handler that raises inside native start-up code would end the process by abort."""
    code = (
        "import os, signal\n"
        "from fedsec.learning import quiet\n"
        "class Stop(BaseException): pass\n"
        "def stop(number, frame): raise Stop\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "inside = False\n"
        "try:\n"
        "    with quiet.without_signals():\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        inside = True\n"
        "except Stop:\n"
        "    print('stopped after', inside)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "stopped after True\n"


def test_an_unknown_optimizer_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="no optimizer is called 'adagrad'; known: adam, sgd"):
        LocalTrainer(models.short_conv((4,)), optimizer="adagrad")
