"""A model that nobody has is planned from public data alone, and its parameters are found in the state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsec.errors import UnsupportedModelError, UsageError
from fedsec.learning import models
from fedsec.learning.backend import keras
from fedsec.learning.export.examples import NAMES, example
from fedsec.learning.export.sealed import Reach, SealedPlan, plan_sealed
from fedsec.nn import Weights, plaintext

L = keras.layers
BITS = 22

REFUSED = {
    *(name for name in NAMES if name.startswith(("BatchNormalization", "SeparableConv", "Normalization"))),
    "Rescaling, each channel",
    "residual",
}
"""What folds or divides parameters, or has public constants one by one."""


def sealed(model: Any, clip: float = 0.5, rounds: int = 3) -> SealedPlan:
    reach = Reach(clips=[clip] * len(model.get_weights()), rounds=rounds, fraction_bits=BITS)
    return plan_sealed(model, reach)


def gathered(planned: SealedPlan, model: Any) -> Weights:
    """What the sources mean, on real numbers, of the model's parameters one after the other."""
    state = np.concatenate([array.astype(np.float64).reshape(-1) for array in model.get_weights()])
    weights = []
    for source, spec in zip(planned.sources, planned.plan.weight_specs, strict=True):
        size = int(np.prod(spec.shape))
        words = np.zeros(size) if source.start is None else state[source.start : source.start + size]
        real = words * source.factor * 2.0 ** (BITS - source.shift - spec.fraction_bits)
        weights.append(real.reshape(spec.shape))
    return weights


def trained(model: Any, seed: int = 3) -> Any:
    """Another model of the same kind, as far from it as three rounds with a clip of 0.5 can go."""
    generator = np.random.default_rng(seed)
    other = keras.models.clone_model(model)
    other.set_weights([array + generator.uniform(-1.4, 1.4, array.shape) for array in model.get_weights()])
    return other


@pytest.mark.parametrize("name", sorted(set(NAMES) - REFUSED))
def test_every_layer_computes_what_keras_computes_with_the_parameters_of_the_state(name: str) -> None:
    model = example(name)
    if not model.get_weights():
        with pytest.raises(UnsupportedModelError, match="has no parameters"):
            sealed(model)
        return
    planned = sealed(model)
    after = trained(model)
    images = np.random.default_rng(8).uniform(0, 1, (3, *planned.plan.input_shape))

    found = plaintext.predict(planned.plan, gathered(planned, after), images)

    if type(after.layers[-1]).__name__ == "Softmax":
        after = keras.Model(after.inputs[0], after.layers[-1].input)
    expected = after(images, training=False).numpy()
    smooth = any(type(step).__name__ == "PiecewiseLinear" for step in planned.plan.layers)
    size = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=(0.1 if smooth else 2e-5) * size)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_folds_parameters_is_refused_by_the_layers_name(name: str) -> None:
    model = example(name)
    before = model.get_weights()
    names = {layer.name for layer in model.layers}

    with pytest.raises(UnsupportedModelError, match="nobody") as refused:
        sealed(model)

    assert any(f"'{layer}'" in str(refused.value) for layer in names)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_plan_depends_on_nothing_but_what_is_public() -> None:
    """The plan of the initial model, before any training, is the plan of the trained one."""
    model = models.by_name("short-conv", seed=1)
    before = model.get_weights()
    planned = sealed(model, clip=2.0, rounds=10)

    # Keras names the layers of a second model conv2d_3, conv2d_4, ...: everyone can make the same plan anew.
    assert planned == sealed(models.by_name("short-conv", seed=1), clip=2.0, rounds=10)
    assert [source.start for source in planned.sources] == [0, 90, 100, 2980, 3012, 21444, 21508, 22148]
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_every_network_without_batch_normalisation_fits_ten_rounds_with_the_clip_of_scenarios() -> None:
    for name in sorted(set(models.NAMES) - {"small-resnet"}):
        planned = sealed(models.by_name(name, seed=1), clip=2.0, rounds=10)
        assert min(value.fraction_bits for value in planned.plan.values) >= 6, name


def test_too_many_rounds_are_refused_with_layer_bound_and_advice() -> None:
    with pytest.raises(UnsupportedModelError, match=r"layer 'dense.*' can reach \d.*fewer rounds"):
        sealed(models.by_name("short-conv", seed=1), clip=2.0, rounds=100)


def test_constants_that_look_like_numbered_parameters_are_no_parameters() -> None:
    """1, 2, 3: the numbers of the first three parameters, and their numbers counted from the end."""
    for numbers in ([1.0, 2.0, 3.0], [12.0, 11.0, 10.0], [-1.0, -2.0, -3.0]):
        model = keras.Sequential(
            [keras.Input((4, 4, 3)), L.Rescaling(numbers, offset=[0.0] * 3), L.Flatten(), L.Dense(2)]
        )
        with pytest.raises(UnsupportedModelError, match=r"layer 'rescaling.*one by one and in their order"):
            sealed(model)


def test_clips_of_another_model_are_refused() -> None:
    model = models.by_name("mlp", seed=1)
    with pytest.raises(UsageError, match="6 arrays, got 2 clips"):
        plan_sealed(model, Reach(clips=[1.0, 1.0], rounds=1, fraction_bits=BITS))
