"""The networks by name are those of their sources."""

from __future__ import annotations

import typing

import numpy as np
import pytest

from fedsec.errors import ScenarioError
from fedsec.learning import models
from fedsec.learning.backend import keras
from fedsec.scenario import Scenario
from fedsec.scenario.scenario import ModelName

PARAMETERS = {
    # Fixed: 16 filters of 7x7 and a threshold each, and 16x16 that centre. Trained: 6x6x16 values to 10.
    "gabor": 16 * 50 + 256 + 5_770,
    "short-conv": 100 + 2_912 + 18_496 + 650,
    "short-conv-16": 160 + 4_640 + 18_496 + 650,
    # (8*8*1+1)*16, (4*4*16+1)*32, 4x4x32 values to 32 units, 32 to 10: 26,010 as in TF Privacy's tutorial.
    "tf-privacy": 1_040 + 8_224 + 16_416 + 330,
    # (25+1)*6, (25*6+1)*16, then 400 - 120 - 84 - 10.
    "lenet-5": 156 + 2_416 + 48_120 + 10_164 + 850,
    "mlp": 785 * 128 + 129 * 128 + 1_290,
    # Kernels; 4 numbers a filter of the normalisations, three of 16 and three of 32; dense.
    "small-resnet": 144 + 2 * 2_304 + 4_608 + 9_216 + 512 + 4 * (3 * 16 + 3 * 32) + 330,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_network_has_the_parameters_of_its_source(name: str) -> None:
    assert models.by_name(name).count_params() == PARAMETERS[name]


@pytest.mark.parametrize("name", models.NAMES)
def test_every_network_takes_digits_and_tells_ten_classes(name: str) -> None:
    model = models.by_name(name, seed=7)

    assert (model.input_shape, model.output_shape) == ((None, 28, 28, 1), (None, 10))
    answers = model(np.full((2, 28, 28, 1), 0.5, dtype=np.float32)).numpy()
    probabilities = np.allclose(answers.sum(axis=1), 1) and answers.min() >= 0
    last = getattr(model.layers[-1], "activation", None)
    assert probabilities == (last is keras.activations.softmax)
    assert name.endswith("-logits") <= (not probabilities)


def test_a_scenario_can_name_every_network_and_no_other() -> None:
    assert typing.get_args(ModelName) == models.NAMES
    for name in models.NAMES:
        assert Scenario().override(f"training.model={name}").training.model == name
    with pytest.raises(ScenarioError, match=r"training\.model: expected 'gabor' or .* or 'tf-privacy'"):
        Scenario().override("training.model=resnet")


def test_the_filters_of_gabor_tell_lines_and_edges_of_four_directions_apart() -> None:
    model = models.by_name("gabor", seed=1)
    strokes, centred = model.layers[0], model.layers[3]
    assert [len(layer.trainable_variables) for layer in (strokes, centred, model.layers[-1])] == [0, 0, 2]

    kernel, threshold = (np.array(values) for values in strokes.get_weights())
    # An even picture is no stroke, and no picture in [0, 1] gives more than the gain.
    np.testing.assert_allclose(kernel.sum(axis=(0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(np.maximum(kernel, 0).sum(axis=(0, 1)), 12, rtol=1e-6)
    np.testing.assert_allclose(threshold, -0.2 * 12, rtol=1e-6)

    line = np.zeros((7, 7))
    line[:, 2:5] = 1
    rising = np.tril(np.triu(np.ones((7, 7)), -1), 1)[::-1]
    for picture, filters in ((line, 0), (rising, 4), (line.T, 8), (rising[::-1], 12)):
        answers = np.tensordot(picture, kernel[:, :, 0], 2)
        # Of the four filters of a direction the first is the light line on dark ground.
        assert int(answers.argmax()) == filters

    # All directions alike leave nothing behind.
    same = centred(np.full((1, 6, 6, 16), 0.7, dtype=np.float32)).numpy()
    np.testing.assert_allclose(same, 0, atol=1e-6)
