import numpy as np
import pytest

from fedsec.lab.clear import keras_logits
from fedsec.learning.backend import keras


@pytest.mark.parametrize("ending", ["softmax activation", "Softmax layer", "logits"])
def test_logits_are_the_answers_before_a_final_softmax(ending: str) -> None:
    keras.utils.set_random_seed(1)
    dense = keras.layers.Dense(3, activation="softmax" if ending == "softmax activation" else None)
    last = [keras.layers.Softmax()] if ending == "Softmax layer" else []
    model = keras.Sequential([keras.Input((4,)), dense, *last])
    images = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    kernel, bias = (np.asarray(variable) for variable in dense.weights)
    before = np.asarray(model(images))

    np.testing.assert_allclose(keras_logits(model, images), images @ kernel + bias, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(model(images)), before)
