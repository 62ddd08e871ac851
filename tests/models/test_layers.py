"""Every kind of layer, Keras against the plan: on real numbers, and by the three parties in both modes."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from private_prediction import answers

from fedsec.learning.export import export
from fedsec.learning.export.building import entries
from fedsec.learning.export.examples import NAMES, example
from fedsec.nn import Plan, Weights, plaintext
from fedsec.nn.accuracy import error_bound
from fedsec.nn.engine import MODES, Mode

FLOAT32 = 2e-5
"""What Keras, which computes in float32, may be off by on values of this size."""

IMAGES = 3


@cache
def planned(name: str) -> tuple[Plan, Weights, np.ndarray, np.ndarray]:
    """A model's plan and parameters, and inputs with Keras' answers."""
    model = example(name)
    plan, weights = export(model)
    images = np.random.default_rng(8).uniform(0, 1, (IMAGES, *plan.input_shape))
    # Corners of the input range, where bounds are tight.
    images[0] = np.random.default_rng(9).integers(0, 2, plan.input_shape)
    expected = _without_final_softmax(model)(images, training=False).numpy()
    return plan, weights, images, expected


def _without_final_softmax(model: Any) -> Any:
    if type(model.layers[-1]).__name__ != "Softmax":
        return model
    import keras  # noqa: PLC0415 - already loaded

    return keras.Model(model.inputs, model.layers[-1].input)


@pytest.mark.parametrize("name", NAMES)
def test_on_real_numbers_the_plan_is_keras(name: str) -> None:
    plan, weights, images, expected = planned(name)

    found = plaintext.predict(plan, weights, images)

    # On real numbers nothing is rounded; only smooth functions are straight pieces.
    smooth = any(type(step).__name__ == "PiecewiseLinear" for step in plan.layers)
    atol = error_bound(plan, weights) if smooth else 0.0
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=atol + FLOAT32)
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_on_shares_it_is_keras_within_the_stated_bound(name: str, mode: Mode) -> None:
    plan, weights, images, expected = planned(name)

    found = answers(plan, weights, images, mode)

    np.testing.assert_allclose(found, expected, rtol=0, atol=error_bound(plan, weights) + FLOAT32)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"ReLU, all settings"}))
def test_the_stated_bound_is_of_use(name: str) -> None:
    """Small, even where several layers follow each other; a relu that jumps at its threshold has no such."""
    plan, weights, _, _ = planned(name)

    assert error_bound(plan, weights) < 0.2


def test_every_kind_of_layer_has_an_example() -> None:
    assert {entry.example for entry in entries()} <= set(NAMES)
