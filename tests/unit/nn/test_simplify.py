"""Folding leaves fewer layers that compute the same."""

from __future__ import annotations

import numpy as np
import pytest

from fedsec.nn import plaintext, plan_network
from fedsec.nn.network import (
    AddLayer,
    AffineLayer,
    AveragePoolLayer,
    ConvLayer,
    DenseLayer,
    FlattenLayer,
    Network,
    NetworkLayer,
    PadLayer,
    ReluLayer,
    RescaleLayer,
)
from fedsec.nn.simplify import simplify

AROUND = ((1, 1), (1, 1))
R = np.random.default_rng(0)


def conv(channels: int, filters: int, padding=((0, 0), (0, 0)), groups: int = 1, **more: object) -> ConvLayer:
    return ConvLayer(
        "conv", R.normal(size=(2, 2, channels // groups, filters)), R.normal(size=filters), (1, 1), padding,
        groups=groups, **more,
    )  # fmt: skip


def affine(channels: int, **more: object) -> AffineLayer:
    return AffineLayer("affine", R.normal(size=channels), R.normal(size=channels), **more)


def shapes_kept(*layers: NetworkLayer, shape: tuple[int, ...] = (6, 6, 4)) -> list[str]:
    """Names of the kinds that are left, after checking that values are those of the layers one by one."""
    network = Network("n", shape, layers, -1.0, 1.0)
    simple = simplify(network)
    x = R.uniform(-1, 1, (3, *shape))
    np.testing.assert_allclose(
        plaintext.predict(*plan_network(simple), x), one_by_one(network, x), rtol=1e-6, atol=1e-6
    )
    return [type(layer).__name__.removesuffix("Layer") for layer in simple.layers]


def one_by_one(network: Network, x: np.ndarray) -> np.ndarray:
    values = [x]
    for number, layer in enumerate(network.layers):
        taken = [values[value] for value in network.inputs_of(number)]
        if isinstance(layer, AddLayer):
            values.append(sum(taken))
        elif isinstance(layer, AffineLayer):
            values.append(taken[0] * layer.scale + layer.shift)
        elif isinstance(layer, RescaleLayer):
            values.append(taken[0] * layer.scale + layer.offset)
        elif isinstance(layer, FlattenLayer):
            values.append(taken[0].reshape(len(x), -1))
        elif isinstance(layer, PadLayer):
            values.append(np.pad(taken[0], ((0, 0), *layer.padding, (0, 0))))
        else:
            alone = Network("one", taken[0].shape[1:], (_without_inputs(layer),), -1e3, 1e3)
            values.append(plaintext.predict(*plan_network(alone, fraction_bits=8), taken[0]))
    return values[-1]


def _without_inputs(layer: NetworkLayer) -> NetworkLayer:
    return type(layer)(
        **{name: getattr(layer, name) for name in layer.__dataclass_fields__ if name != "inputs"}
    )


@pytest.mark.parametrize(
    ("layers", "left"),
    [
        ((conv(4, 3), affine(3)), ["Conv"]),
        ((conv(4, 3, AROUND), affine(3)), ["Conv"]),
        ((conv(4, 3), affine(3), RescaleLayer("s", 0.5, 1.0), affine(3)), ["Conv"]),
        ((conv(4, 3), AveragePoolLayer("p", (2, 2), (1, 1)), affine(3)), ["Conv", "AveragePool"]),
        ((conv(4, 3), AveragePoolLayer("p", (2, 2), (2, 2), AROUND), affine(3)), ["Conv", "AveragePool"]),
        ((affine(4), conv(4, 3)), ["Conv"]),
        ((affine(4), conv(4, 4, groups=2)), ["Conv"]),
        ((affine(4), conv(4, 3, AROUND)), ["Affine", "Conv"]),
        ((RescaleLayer("s", 2.0), conv(4, 3, AROUND)), ["Conv"]),
        ((RescaleLayer("s", 2.0, 1.0), conv(4, 3, AROUND)), ["Rescale", "Conv"]),
        ((RescaleLayer("s", 2.0, 1.0), FlattenLayer("f"),
          DenseLayer("d", R.normal(size=(144, 2)), np.ones(2))), ["Flatten", "Dense"]),
        ((affine(4), FlattenLayer("f"), DenseLayer("d", R.normal(size=(144, 2)), np.ones(2))),
         ["Affine", "Flatten", "Dense"]),
        ((PadLayer("p", ((1, 0), (2, 1))), conv(4, 3)), ["Conv"]),
        ((PadLayer("p", ((1, 0), (2, 1))), conv(4, 3, AROUND)), ["Conv"]),
        ((affine(4), PadLayer("p", AROUND), conv(4, 3)), ["Affine", "Conv"]),
        ((conv(4, 3), ReluLayer("r"), affine(3), PadLayer("p", AROUND)), ["Conv", "Relu", "Affine", "Pad"]),
        ((conv(4, 4), affine(4), conv(4, 2), affine(2)), ["Conv", "Conv"]),
    ],
)  # fmt: skip
def test_what_can_be_folded_is(layers: tuple[NetworkLayer, ...], left: list[str]) -> None:
    assert shapes_kept(*layers) == left


def test_what_is_used_twice_stays() -> None:
    layers = (conv(4, 4), affine(4, inputs=(1,)), affine(4, inputs=(1,)), AddLayer("add", inputs=(2, 3)))

    assert shapes_kept(*layers) == ["Conv", "Affine", "Affine", "Add"]


def test_branches_that_interleave_are_folded_each_into_its_own() -> None:
    """Keras orders layers by their distance from the end: main, shortcut, main, shortcut."""
    layers = (
        conv(4, 4), conv(4, 4, inputs=(0,)), affine(4, inputs=(1,)), affine(4, inputs=(2,)),
        AddLayer("add", inputs=(3, 4)),
    )  # fmt: skip

    assert shapes_kept(*layers) == ["Conv", "Conv", "Add"]


def test_the_answer_is_a_use_of_its_own() -> None:
    """The last value is what is answered, and also goes into nothing else: folding keeps it last."""
    layers = (DenseLayer("d", R.normal(size=(4, 4)), np.zeros(4)), affine(4))

    assert shapes_kept(*layers, shape=(4,)) == ["Dense"]
