"""Whole networks trained on MNIST: private answers against Keras', and against the bound that is stated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from private_prediction import answers

from fedsec.learning import data
from fedsec.learning.export import export
from fedsec.learning.export.table import STATED_ERRORS
from fedsec.nn.accuracy import error_bound
from fedsec.nn.engine import MODES, Mode

FLOAT32 = 1e-4
"""What Keras' own float32 may be off by in a logit."""

MODELS = tuple(STATED_ERRORS)
QUICK = tuple(name for name in MODELS if not name.startswith(("short-conv-", "gabor")))
"""Those with a layer that none of the others has."""

BATCH = {"lenet-5": 20, "small-resnet": 50}
"""Images at a time, where it is not 100: straight pieces take memory for each of their knots."""

LABEL_DIFFERENCES = dict.fromkeys((name for name in MODELS if name.startswith("short-conv")), 2)
"""The most in 10,000 images."""


def compare(mnist: data.Mnist, trained: Any, name: str, mode: Mode, count: int) -> None:
    images = data.pixels(mnist.test_images[:count])
    expected = trained.expected(images)
    plan, weights = export(trained.model)
    bound = error_bound(plan, weights) + FLOAT32

    logits = answers(plan, weights, images, mode, batch=BATCH.get(name, 100))

    error = float(np.abs(logits - expected).max())
    differs = logits.argmax(axis=1) != expected.argmax(axis=1)
    ordered = np.sort(expected, axis=1)
    gaps = ordered[:, -1] - ordered[:, -2]
    accuracy = float(np.mean(expected.argmax(axis=1) == mnist.test_labels[:count]))
    print(
        f"{name}, {mode}, {count} images: {int(differs.sum())} label differences, largest logit error"
        f" {error:.5f}, proven bound {bound:.4f}, Keras' accuracy {accuracy:.4f}"
    )
    assert accuracy > 0.7
    # The proven bound is above what is stated of these networks, but holds for any input.
    assert error <= STATED_ERRORS[name] <= bound
    assert not (differs & (gaps >= 2 * STATED_ERRORS[name])).any()
    assert differs.sum() <= LABEL_DIFFERENCES.get(name, count)


@pytest.mark.parametrize(("mode", "count"), [("dealt", 50), ("plain", 10)])
@pytest.mark.parametrize("name", QUICK)
def test_a_whole_network_answers_as_keras_does(
    mnist: data.Mnist, trained_by_name: Callable[[str], Any], name: str, mode: Mode, count: int
) -> None:
    compare(mnist, trained_by_name(name), name, mode, count)


@pytest.mark.parametrize("mode", MODES)
def test_what_else_can_be_revealed_is_keras_too(
    mnist: data.Mnist, trained_by_name: Callable[[str], Any], mode: Mode
) -> None:
    trained = trained_by_name("short-conv")
    images = data.pixels(mnist.test_images[:20])
    expected = trained.expected(images)
    plan, weights = export(trained.model)

    label, top3, probabilities = (
        answers(plan, weights, images, mode, reveal=reveal) for reveal in ("label", "top3", "probabilities")
    )

    ranked = -np.sort(-expected, axis=1)
    chosen = np.take_along_axis(expected, top3.astype(int), axis=1)
    np.testing.assert_allclose(chosen, ranked[:, :3], atol=2 * STATED_ERRORS["short-conv"])
    np.testing.assert_array_equal(label[:, 0], top3[:, 0])
    assert all(len(set(row)) == 3 for row in top3.tolist())
    np.testing.assert_allclose(probabilities, trained.model(images).numpy(), atol=0.02)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", MODELS)
def test_10000_images_dealt(mnist: data.Mnist, trained_by_name: Callable[[str], Any], name: str) -> None:
    compare(mnist, trained_by_name(name), name, "dealt", 10_000)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("short-conv", 10_000),
        ("short-conv-logits", 10_000),
        ("short-conv-16", 10_000),
        ("short-conv-16-logits", 10_000),
        ("tf-privacy", 1_000),
        ("lenet-5", 500),
        ("mlp", 2_000),
        ("gabor", 1_000),
        ("small-resnet", 1_000),
    ],
)
def test_many_images_plain(
    mnist: data.Mnist, trained_by_name: Callable[[str], Any], name: str, count: int
) -> None:
    compare(mnist, trained_by_name(name), name, "plain", count)
