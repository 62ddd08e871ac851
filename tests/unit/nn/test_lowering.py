"""Every kind of layer: the plan computes the network, and so do the parties, within the stated error."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from fedsec.mpc import simulate
from fedsec.nn import Plan, plaintext, plan_network
from fedsec.nn.accuracy import error_bound
from fedsec.nn.engine import make_engine
from fedsec.nn.network import (
    FUNCTIONS,
    AddLayer,
    AffineLayer,
    AveragePoolLayer,
    ConcatenateLayer,
    ConvLayer,
    DenseLayer,
    FlattenLayer,
    FunctionLayer,
    MaxPoolLayer,
    MultiplyLayer,
    Network,
    NetworkLayer,
    PadLayer,
    ReluLayer,
    RescaleLayer,
    ReshapeLayer,
    SubtractLayer,
)
from fedsec.nn.weights import decode_output, encode_input, share_weights
from fedsec.ring import fresh_stream
from fedsec.sharing import replicated

AROUND = ((1, 1), (1, 1))

# The network by its definition: loops, no code of fedsec.


def windows_of(x: np.ndarray, size, strides, padding, *, dilation=(1, 1), fill: float = 0.0) -> np.ndarray:
    """Every window as [N, rows, columns, height, width, C]."""
    x = np.pad(x, ((0, 0), *padding, (0, 0)), constant_values=fill)
    reach = [dilation[a] * (size[a] - 1) + 1 for a in (0, 1)]
    rows, columns = ((x.shape[a + 1] - reach[a]) // strides[a] + 1 for a in (0, 1))
    found = [
        [
            x[:, i * strides[0] :, j * strides[1] :][:, : reach[0] : dilation[0], : reach[1] : dilation[1]]
            for j in range(columns)
        ]
        for i in range(rows)
    ]
    return np.moveaxis(np.array(found), 2, 0)


def convolved(layer: ConvLayer, x: np.ndarray) -> np.ndarray:
    found = windows_of(x, layer.kernel.shape[:2], layer.strides, layer.padding, dilation=layer.dilation)
    channels, filters = layer.kernel.shape[2], layer.kernel.shape[3] // layer.groups
    groups = [
        np.einsum(
            "nijuvc,uvcf->nijf",
            found[..., g * channels : (g + 1) * channels],
            layer.kernel[..., g * filters : (g + 1) * filters],
        )
        for g in range(layer.groups)
    ]
    return np.concatenate(groups, axis=-1) + layer.bias


def averaged(layer: AveragePoolLayer, x: np.ndarray) -> np.ndarray:
    counted = windows_of(np.ones_like(x), layer.pool, layer.strides, layer.padding).sum(axis=(3, 4))
    return windows_of(x, layer.pool, layer.strides, layer.padding).sum(axis=(3, 4)) / counted


def rectified(layer: ReluLayer, x: np.ndarray) -> np.ndarray:
    y = np.where(x >= layer.threshold, x, layer.negative_slope * (x - layer.threshold))
    return y if layer.max_value is None else np.minimum(y, layer.max_value)


def function(kind: str, x: np.ndarray) -> np.ndarray:
    sigmoid = 1 / (1 + np.exp(-x))
    erf = np.vectorize(math.erf)
    return {
        "sigmoid": lambda: sigmoid,
        "tanh": lambda: np.tanh(x),
        "gelu": lambda: x * (1 + erf(x / np.sqrt(2))) / 2,
        "gelu_tanh": lambda: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
        "silu": lambda: x * sigmoid,
        "elu": lambda: np.where(x > 0, x, np.exp(x) - 1),
        "softplus": lambda: np.log1p(np.exp(x)),
    }[kind]()


BY_KIND: dict[type, Callable[..., np.ndarray]] = {
    ConvLayer: convolved,
    DenseLayer: lambda layer, x: x @ layer.kernel + layer.bias,
    AffineLayer: lambda layer, x: x * layer.scale + layer.shift,
    RescaleLayer: lambda layer, x: x * layer.scale + layer.offset,
    AveragePoolLayer: averaged,
    MaxPoolLayer: lambda layer, x: windows_of(x, layer.pool, layer.strides, layer.padding, fill=-np.inf).max(
        axis=(3, 4)
    ),
    ReluLayer: rectified,
    FunctionLayer: lambda layer, x: function(layer.kind, x),
    FlattenLayer: lambda _, x: x.reshape(len(x), -1),
    ReshapeLayer: lambda layer, x: x.reshape(len(x), *layer.shape),
    PadLayer: lambda layer, x: np.pad(x, ((0, 0), *layer.padding, (0, 0))),
    AddLayer: lambda _, *xs: sum(xs),
    SubtractLayer: lambda _, x, y: x - y,
    MultiplyLayer: lambda _, *xs: math.prod(xs[1:], start=xs[0]),
    ConcatenateLayer: lambda layer, *xs: np.concatenate(
        xs, axis=layer.axis if layer.axis < 0 else layer.axis + 1
    ),
}


def naive(network: Network, x: np.ndarray) -> np.ndarray:
    values = [x]
    for number, layer in enumerate(network.layers):
        taken = [values[value] for value in network.inputs_of(number)]
        values.append(BY_KIND[type(layer)](layer, *taken))
    return values[-1]


# Networks, one for each thing that can be special.

R = np.random.default_rng(0)


def conv(size: tuple[int, int, int, int], *, groups: int = 1, **more: object) -> ConvLayer:
    height, width, channels, filters = size
    kernel = R.normal(size=(height, width, channels // groups, filters))
    scaled = kernel / np.sqrt(height * width * channels / groups)
    return ConvLayer("conv", scaled, R.normal(size=filters) / 10, groups=groups, **more)


def dense(inputs: int, outputs: int, *taken: int) -> DenseLayer:
    kernel = R.normal(size=(inputs, outputs)) / np.sqrt(inputs)
    return DenseLayer("dense", kernel, R.normal(size=outputs) / 10, inputs=taken)


def affine(channels: int) -> AffineLayer:
    return AffineLayer("affine", R.uniform(0.5, 2.0, channels), R.normal(size=channels))


def network(shape: tuple[int, ...], *layers: NetworkLayer, low: float = -1.0, high: float = 1.0) -> Network:
    return Network("net", shape, layers, low, high)


RELU, FLAT = ReluLayer("relu"), FlattenLayer("flat")


def of_function(layer: NetworkLayer) -> Network:
    return network((10,), dense(10, 12), layer, dense(12, 4), low=-3.0, high=3.0)


EXACT = {
    "dense": network((20,), dense(20, 16), RELU, dense(16, 5)),
    "dense after dense": network((6,), dense(6, 5), dense(5, 4), dense(4, 3)),
    "dense on the last axis": network((4, 6), dense(6, 5), RELU, dense(5, 3), FLAT, dense(12, 3)),
    "ends with relu": network((6,), dense(6, 5), RELU),
    "conv, strides, dilation": network(
        (9, 10, 2), conv((3, 2, 2, 4), strides=(1, 2), dilation=(2, 3)), RELU, FLAT, dense(80, 3)
    ),
    "groups and depthwise": network(
        (8, 8, 4), conv((3, 3, 4, 8), groups=2, strides=(2, 1)), RELU, conv((3, 3, 8, 8), groups=8), FLAT,
        dense(32, 3),
    ),
    "padded conv, pool": network(
        (7, 8, 2), conv((3, 3, 2, 3), padding=AROUND), AveragePoolLayer("pool", (3, 2), (2, 1)), RELU, FLAT,
        dense(63, 3),
    ),
    "dilated conv, pool": network(
        (9, 9, 1), conv((3, 3, 1, 2), strides=(2, 1), dilation=(1, 2)),
        AveragePoolLayer("pool", (2, 2), (1, 2)), FLAT, dense(12, 3),
    ),
    "affine after conv and pool": network(
        (8, 8, 3), conv((3, 3, 3, 4)), affine(4), AveragePoolLayer("pool", (2, 2), (2, 2)), affine(4), RELU,
        affine(4), conv((3, 3, 4, 2), padding=AROUND), affine(2), FLAT, dense(18, 3),
    ),
    "affine before padding-free conv": network((5, 5, 4), affine(4), conv((2, 2, 4, 4), groups=2), RELU, FLAT,
                                               dense(64, 2)),
    "affine alone": network((8, 8, 3), affine(3), RELU, FLAT, dense(192, 3)),
    "affine of a list": network((8,), affine(8), RELU, dense(8, 3)),
    "max pooling": network(
        (9, 9, 2), conv((3, 3, 2, 3)), RELU, MaxPoolLayer("max", (2, 2), (1, 1)), conv((2, 2, 3, 3)),
        MaxPoolLayer("same", (3, 3), (2, 2), AROUND), RELU, FLAT, dense(27, 4),
    ),
    "max pooling, then relu": network(
        (8, 8, 2), MaxPoolLayer("max", (2, 3), (2, 1), ((0, 1), (1, 1))), RELU, conv((2, 2, 2, 3)), FLAT,
        dense(63, 3),
    ),
    "padding": network(
        (5, 5, 2), PadLayer("pad", ((1, 2), (0, 1))), conv((3, 3, 2, 3)), RELU, PadLayer("pad", AROUND),
        MaxPoolLayer("max", (2, 2), (2, 2)), FLAT, dense(36, 3),
    ),
    "residual": network(
        (8, 8, 1), conv((3, 3, 1, 4), padding=AROUND), RELU, conv((3, 3, 4, 4), padding=AROUND), affine(4),
        RELU, conv((3, 3, 4, 4), padding=AROUND), affine(4), AddLayer("add", inputs=(2, 7)), RELU,
        AveragePoolLayer("mean", (8, 8), (8, 8)), FLAT, dense(4, 3),
    ),
    "difference of products": network(
        (8,), dense(8, 6), dense(8, 6, 0), SubtractLayer("minus", inputs=(1, 2)), RELU, dense(6, 3)
    ),
    "relu twice of one value": network(
        (6,), dense(6, 5), RELU, ReluLayer("again", inputs=(2,)), dense(5, 4, 2), RELU, dense(5, 4, 3),
        AddLayer("add", inputs=(5, 6)),
    ),
    "concatenated along height": network(
        (4, 4, 2), conv((1, 1, 2, 2)), RELU, ConcatenateLayer("join", 0, inputs=(0, 2, 0)),
        AveragePoolLayer("mean", (4, 2), (4, 2)), FLAT, dense(12, 3),
    ),
    "product of three": network(
        (5,), dense(5, 3), RELU, MultiplyLayer("times", inputs=(1, 2, 1)), dense(3, 2),
    ),
}  # fmt: skip
"""Of these the plan, on real numbers, is the network."""

CLOSE = {
    **{kind: of_function(FunctionLayer("function", kind)) for kind in FUNCTIONS if kind != "softmax"},
    "relu6": of_function(ReluLayer("relu6", max_value=1.5)),
    "leaky relu": of_function(ReluLayer("leaky", negative_slope=0.3)),
    "leaky, clipped": of_function(ReluLayer("both", max_value=1.0, negative_slope=0.1)),
    "ends with tanh": network((6,), dense(6, 5), FunctionLayer("tanh", "tanh")),
    "tanh of the mean": network(
        (6, 6, 1), conv((1, 1, 1, 2)), RELU, AveragePoolLayer("mean", (3, 3), (3, 3)),
        FunctionLayer("tanh", "tanh"), FLAT, dense(8, 3),
    ),
    "mean at the end": network(
        (7, 7, 2), conv((3, 3, 2, 3)), RELU, AveragePoolLayer("mean", (5, 5), (5, 5)), FLAT
    ),
    "mean with margins": network(
        (7, 7, 2), AveragePoolLayer("same", (3, 3), (2, 2), AROUND), conv((2, 2, 2, 3)), RELU,
        AveragePoolLayer("same", (2, 2), (2, 2), ((0, 1), (0, 1))),
    ),
    "rescaled": network((6, 6, 1), RescaleLayer("scale", 1 / 127.5, -1.0), conv((3, 3, 1, 2)), RELU, FLAT,
                        dense(32, 3), low=0.0, high=255.0),
    "rescaled, flat": network((6, 6, 1), RescaleLayer("scale", 1 / 255), FLAT, dense(36, 3), low=0.0,
                              high=255.0),
    "rescaled, padded": network(
        (6, 6, 1), RescaleLayer("scale", 1 / 127.5, -1.0), conv((3, 3, 1, 2), padding=AROUND), RELU, FLAT,
        dense(72, 3), low=0.0, high=255.0,
    ),
    "branches": network(
        (12,), dense(12, 8), RELU, dense(12, 8, 0), FunctionLayer("gate", "sigmoid"),
        MultiplyLayer("times", inputs=(2, 4)), SubtractLayer("minus", inputs=(5, 2)),
        ConcatenateLayer("join", inputs=(6, 3, 2)), dense(24, 3),
    ),
    "squeeze and excite": network(
        (6, 6, 3), conv((3, 3, 3, 4)), RELU, AveragePoolLayer("mean", (4, 4), (4, 4)), FLAT, dense(4, 2),
        RELU, dense(2, 4), FunctionLayer("gate", "sigmoid"), ReshapeLayer("image", (1, 1, 4)),
        MultiplyLayer("times", inputs=(2, 9)), FLAT, dense(64, 3),
    ),
}  # fmt: skip
"""Of these the plan has numbers that stand for others: pieces for functions, factors for divisions."""

ALL = {**EXACT, **CLOSE}


def images(net: Network, count: int = 24) -> np.ndarray:
    """Half of them corners of the range."""
    drawn = np.random.default_rng(1).uniform(net.input_low, net.input_high, (count, *net.input_shape))
    corners = np.where(drawn > (net.input_low + net.input_high) / 2, net.input_high, net.input_low)
    return np.where(np.arange(count).reshape(-1, *(1,) * len(net.input_shape)) % 2, drawn, corners)


@pytest.mark.parametrize("name", EXACT)
def test_the_plan_is_the_network_on_real_numbers(name: str) -> None:
    plan, weights = plan_network(ALL[name])
    x = images(ALL[name])

    np.testing.assert_allclose(
        plaintext.predict(plan, weights, x), naive(ALL[name], x), rtol=1e-9, atol=1e-11
    )
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("name", CLOSE)
def test_what_stands_for_the_network_is_near_it(name: str) -> None:
    plan, weights = plan_network(ALL[name])
    x = images(ALL[name])

    error = np.abs(plaintext.predict(plan, weights, x) - naive(ALL[name], x)).max()

    assert error <= error_bound(plan, weights)
    # Pieces are off by 2^-9 at most; sums of some of them stay near that.
    assert error < 0.01
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("mode", ["plain", "dealt"])
@pytest.mark.parametrize("name", ALL)
def test_the_parties_compute_the_network_within_the_stated_error(name: str, mode: str) -> None:
    net = ALL[name]
    plan, weights = plan_network(net)
    x = images(net)
    shares = share_weights(plan, weights, fresh_stream())
    inputs = replicated.share(encode_input(plan, x), fresh_stream(), plan.fraction_bits)

    done = simulate(
        lambda party: make_engine(mode, party, plan, shares[party.id]).predict(inputs[party.id], "logits")
    )

    answers = decode_output(plan, sum(done.results[1:], start=done.results[0]))
    error = np.abs(answers - naive(net, x)).max()
    print(f"{name}: error {error:.5f}, bound {error_bound(plan, weights):.5f}")
    assert error <= error_bound(plan, weights)
    # The bound is one of worst cases; what is seen is far below.
    assert error < 0.01


def test_relu_with_a_threshold_jumps_where_it_should() -> None:
    layers = (
        DenseLayer("d", np.eye(3), np.zeros(3)),
        ReluLayer("r", threshold=0.5, negative_slope=0.25, max_value=0.875),
    )
    net = network((3,), *layers)
    plan, weights = plan_network(net)
    x = np.array([[-1.0, 0.0, 0.25], [0.4999, 0.5, 0.501], [0.75, 0.875, 1.0]])

    np.testing.assert_allclose(plaintext.predict(plan, weights, x), naive(net, x), atol=1e-4)
    inputs = replicated.share(encode_input(plan, x), fresh_stream(), plan.fraction_bits)
    shares = share_weights(plan, weights, fresh_stream())
    done = simulate(
        lambda party: make_engine("plain", party, plan, shares[party.id]).predict(inputs[party.id], "logits")
    )
    answers = decode_output(plan, sum(done.results[1:], start=done.results[0]))
    # At the very threshold, one unit decides.
    away = np.abs(x - 0.5) > 1e-3
    np.testing.assert_allclose(answers[away], naive(net, x)[away], atol=1e-3)
