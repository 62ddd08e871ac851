"""Planned networks compute what the network computes, and their bounds hold."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.errors import UnsupportedModelError
from fedsec.mpc import simulate
from fedsec.nn import Plan, intervals, plaintext, plan_network, windows
from fedsec.nn import layers as layers_on_shares
from fedsec.nn.network import AveragePoolLayer, ConvLayer, DenseLayer, FlattenLayer, Network, ReluLayer
from fedsec.nn.plan import Conv2D, Dense, Relu
from fedsec.nn.weights import decode_output, encode_input, share_weights
from fedsec.ring import fresh_stream
from fedsec.sharing import replicated


def naive_conv(x: np.ndarray, layer: ConvLayer) -> np.ndarray:
    """Convolution by its definition, four loops."""
    (top, bottom), (left, right) = layer.padding
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    height, width, _, filters = layer.kernel.shape
    rows, columns = ((x.shape[i + 1] - (height, width)[i]) // layer.strides[i] + 1 for i in (0, 1))
    z = np.zeros((len(x), rows, columns, filters))
    for i in range(rows):
        for j in range(columns):
            patch = x[:, i * layer.strides[0] :, j * layer.strides[1] :][:, :height, :width]
            z[:, i, j] = np.einsum("nhwc,hwcf->nf", patch, layer.kernel) + layer.bias
    return z


def naive_pool(x: np.ndarray, layer: AveragePoolLayer) -> np.ndarray:
    rows, columns = ((x.shape[i + 1] - layer.pool[i]) // layer.strides[i] + 1 for i in (0, 1))
    z = np.zeros((len(x), rows, columns, x.shape[3]))
    for i in range(rows):
        for j in range(columns):
            top, left = i * layer.strides[0], j * layer.strides[1]
            z[:, i, j] = x[:, top : top + layer.pool[0], left : left + layer.pool[1]].mean(axis=(1, 2))
    return z


def naive(network: Network, x: np.ndarray) -> np.ndarray:
    for layer in network.layers:
        if isinstance(layer, ConvLayer):
            x = naive_conv(x, layer)
        elif isinstance(layer, AveragePoolLayer):
            x = naive_pool(x, layer)
        elif isinstance(layer, ReluLayer):
            x = np.maximum(x, 0)
        elif isinstance(layer, FlattenLayer):
            x = x.reshape(len(x), -1)
        else:
            x = x @ layer.kernel + layer.bias
    return x


def conv_and_pool(
    seed: int, *, stride: int = 1, pool: tuple[int, int] = (2, 2), pool_strides: tuple[int, int] = (2, 2),
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0)), relu_between: bool = False,
) -> Network:  # fmt: skip
    generator = np.random.default_rng(seed)
    layers = [
        ConvLayer(
            "conv", generator.normal(size=(3, 2, 2, 3)), generator.normal(size=3), (stride, stride), padding
        ),
        *([ReluLayer("early")] if relu_between else []),
        AveragePoolLayer("pool", pool, pool_strides),
        ReluLayer("relu"),
        FlattenLayer("flat"),
    ]
    shape = naive(Network("n", (11, 12, 2), tuple(layers)), np.zeros((1, 11, 12, 2))).shape[1]
    layers.append(DenseLayer("dense", generator.normal(size=(shape, 4)), generator.normal(size=4)))
    return Network("n", (11, 12, 2), tuple(layers), -1.0, 2.0)


def images(network: Network, count: int = 3, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(
        network.input_low, network.input_high, (count, *network.input_shape)
    )


@pytest.mark.parametrize("relu_between", [False, True], ids=["fused", "apart"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pool", [(2, 2), (3, 3), (2, 3), (1, 1)])
@pytest.mark.parametrize("pool_strides", [(2, 2), (1, 1)])
@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((1, 1), (0, 1))], ids=["valid", "padded"])
def test_the_plan_computes_the_network(relu_between, stride, pool, pool_strides, padding) -> None:
    network = conv_and_pool(
        7, stride=stride, pool=pool, pool_strides=pool_strides, padding=padding, relu_between=relu_between
    )
    plan, weights = plan_network(network)
    x = images(network)

    np.testing.assert_allclose(plaintext.predict(plan, weights, x), naive(network, x), rtol=1e-12, atol=1e-12)


def test_a_pool_after_a_convolution_is_one_step_at_a_longer_stride() -> None:
    plan, _ = plan_network(conv_and_pool(1))
    step = plan.layers[0]

    assert isinstance(step, Conv2D)
    assert (step.box, step.strides, step.box_step) == ((2, 2), (2, 2), (1, 1))


def test_open_divisions_of_several_pools_end_in_the_next_kernel() -> None:
    layers = (
        AveragePoolLayer("a", (3, 3), (1, 2)), ReluLayer("r"), AveragePoolLayer("b", (2, 1), (1, 1)),
        FlattenLayer("f"), DenseLayer("d", np.random.default_rng(2).normal(size=(12, 2)), np.zeros(2)),
    )  # fmt: skip
    network = Network("pools", (6, 10, 1), layers, -1.0, 1.0)
    plan, weights = plan_network(network)
    x = images(network)

    np.testing.assert_allclose(plaintext.predict(plan, weights, x), naive(network, x), atol=1e-12)
    # 3 * 3 * 2 = 18 takes five bits.
    assert plan.layers[-1].weight_fraction_bits == 16 + 5


def observed(plan: Plan, weights: list[np.ndarray], x: np.ndarray) -> list[tuple[object, float]]:
    """The largest value that each linear step gives on some inputs."""
    values = plaintext.trace(plan, weights, x)[1:]
    return [(step, float(np.abs(value).max())) for step, value in zip(plan.layers, values, strict=True)]


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), stride=st.integers(1, 2), relu_between=st.booleans())
def test_threat_11_no_allowed_input_exceeds_a_bound(seed: int, stride: int, relu_between: bool) -> None:
    network = conv_and_pool(seed, stride=stride, relu_between=relu_between)
    plan, weights = plan_network(network)
    # Corners of the input range reach further than random points inside.
    corners = np.where(images(network, 200, seed) > 0.5, network.input_high, network.input_low)

    previous = 0.0
    for step, largest in observed(plan, weights, corners):
        if isinstance(step, Conv2D | Dense):
            assert largest < step.bound
        if isinstance(step, Relu):
            assert previous < 2.0 ** (step.window_bits - 1 - plan.fraction_bits)
        previous = largest


def test_threat_11_the_bound_is_reached_by_the_worst_input() -> None:
    """The bound is no wild overestimate: the worst input of one layer comes within its power of two."""
    kernel = np.random.default_rng(3).normal(size=(9, 1))
    network = Network("one", (9,), (DenseLayer("d", kernel, np.array([0.5])),), -1.0, 1.0)
    plan, weights = plan_network(network)

    worst = float(plaintext.predict(plan, weights, np.sign(kernel).T)[0, 0])
    assert worst == pytest.approx(np.abs(kernel).sum() + 0.5)
    assert plan.layers[0].bound / 2 <= worst < plan.layers[0].bound


def exact(values: np.ndarray) -> np.ndarray:
    return np.array([Fraction(value) for value in values.ravel()], dtype=object).reshape(values.shape)


def exact_bounds(interval: intervals.Interval, kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bound of x @ kernel in rational numbers."""
    low, high = exact(interval.low), exact(interval.high)
    zero = Fraction(0)
    positive, negative = np.maximum(exact(kernel), zero), np.minimum(exact(kernel), zero)
    return low @ positive + high @ negative, high @ positive + low @ negative


@pytest.mark.parametrize("scale", [0, 26, 44])
@pytest.mark.parametrize("spread", [0.0, 1e-6, 1.0])
def test_threat_11_a_bound_holds_where_large_terms_cancel(scale: int, spread: float) -> None:
    """Float64's error in a sum is relative to the terms: where they cancel it exceeds the result."""
    generator = np.random.default_rng(scale)
    for _ in range(5):
        half = np.ldexp(generator.uniform(-1, 1, (128, 2)), scale)
        kernel = generator.permutation(np.concatenate([half, -half]))
        low = generator.uniform(0.5, 1.0, (1, 256)) if spread else np.ones((1, 256))
        interval = intervals.Interval(low, low + spread)

        found = interval.linear(kernel, np.abs(kernel), np.zeros(2), np.matmul)

        lowest, highest = exact_bounds(interval, kernel)
        assert np.all(exact(found.low) <= lowest)
        assert np.all(exact(found.high) >= highest)
        # No wild overestimate either: about 256 roundings of the terms' sizes.
        allowed = Fraction(2.0**-43) * (np.maximum(abs(low), abs(low + spread)) @ np.abs(kernel))
        assert np.all(lowest - exact(found.low) <= allowed)


def test_threat_11_a_bound_holds_where_a_joint_kernel_cancels() -> None:
    # Of three values that a box joins, the large ones cancel, and float64 loses the 1 between them.
    kernel = np.array([2.0**60, 1.0, -(2.0**60)]).reshape(3, 1, 1, 1)
    only_the_middle = np.array([0.0, 0.0, 1.0, 0.0, 0.0]).reshape(1, 5, 1, 1)
    joint, sizes = (intervals.with_box(values, (3, 1), (1, 1)) for values in (kernel, np.abs(kernel)))

    found = intervals.Interval(only_the_middle, only_the_middle).linear(
        joint, sizes, np.zeros(1), windows.conv2d
    )

    assert found.low.item() <= 1.0 <= found.high.item()
    assert joint[2].item() == 0.0


@pytest.mark.parametrize("pool_strides", [(2, 2), (1, 1)])
def test_threat_11_the_planner_allows_for_rounding_in_every_linear_step(
    pool_strides: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With roundings as large as the terms, every bound is many times as large."""
    networks = [conv_and_pool(3, pool_strides=pool_strides, relu_between=apart) for apart in (False, True)]
    for network in networks:
        network.layers[0].bias[:] = 0.0  # so that the kernel alone must make the difference
    honest = [plan_network(network, fraction_bits=8)[0] for network in networks]
    monkeypatch.setattr(intervals, "_TWO_ROUNDINGS", 1.0)

    for network, plan in zip(networks, honest, strict=True):
        coarse, _ = plan_network(network, fraction_bits=8)
        bounds_of = [[s.bound for s in p.layers if isinstance(s, Conv2D | Dense)] for p in (plan, coarse)]
        assert all(large >= 4 * small for small, large in zip(*bounds_of, strict=True))


def test_threat_11_a_bound_of_sums_holds_where_they_cancel() -> None:
    values = np.array([2.0**60, 1.0, -(2.0**60)]).reshape(1, 3, 1, 1)

    found = intervals.Interval(values, values).summed(lambda x: windows.sum_pool(x, (3, 1), (1, 1)), 3)

    assert found.low.item() <= 1.0 <= found.high.item()


@pytest.mark.parametrize(
    ("kernel", "bias", "input_high"),
    [(1.0, 0.0, 1 - 2.0**-18), (1 - 2.0**-18, 0.0, 1.0), (0.0, 1 - 2.0**-34, 1.0)],
    ids=["input", "kernel", "bias"],
)
def test_threat_11_bounds_are_those_of_the_rounded_values(
    kernel: float, bias: float, input_high: float
) -> None:
    """Each of these is just below 1 and 1 in the ring, which a window for values below 1 does not hold."""
    layers = (DenseLayer("d", np.array([[kernel]]), np.array([bias])), ReluLayer("r"))
    layers += (DenseLayer("e", np.ones((1, 1)), np.zeros(1)),)
    plan, _ = plan_network(Network("edge", (1,), layers, 0.0, input_high))

    assert plan.layers[0].bound == 2.0
    assert [step.window_bits for step in plan.layers if isinstance(step, Relu)] == [1 + 16 + 1]


def test_threat_11_a_truncation_takes_up_to_two_units() -> None:
    """A value just above -1 unit becomes -2 units; 2^20 + 2 times that, below -2^21, needs 23 bits."""
    unit = 2.0**-16
    layers = (
        DenseLayer("d", np.zeros((1, 1)), np.array([-(1 - unit) * unit])),
        DenseLayer("e", np.array([[2.0**20 + 2]]), np.zeros(1)),
        ReluLayer("r"),
        DenseLayer("f", np.ones((1, 1)), np.zeros(1)),
    )
    plan, weights = plan_network(Network("units", (1,), layers))
    (window,) = (step.window_bits for step in plan.layers if isinstance(step, Relu))
    assert 2 ** (window - 1) > 2 * (2**20 + 2)

    # And so it happens: with 22 bits the sign of nearly every answer would be wrong.
    x = replicated.share(encode_input(plan, np.ones((100, 1))), fresh_stream(), plan.fraction_bits)
    shares = share_weights(plan, weights, fresh_stream())
    done = simulate(lambda party: layers_on_shares.predict(party, plan, shares[party.id], x[party.id]))

    assert np.all(decode_output(plan, replicated.reconstruct(done.results)) == 0.0)


@pytest.mark.parametrize(("size", "bound"), [(0.99, 1.0), (1.0, 2.0), (1.01, 2.0), (0.2, 0.25)])
def test_a_bound_is_the_next_power_of_two_above(size: float, bound: float) -> None:
    interval = intervals.Interval(np.array([[-size]]), np.array([[0.0]]))

    assert 2.0**interval.exponent == bound


def test_a_joint_kernel_is_the_box_and_then_the_kernel() -> None:
    generator = np.random.default_rng(5)
    x, kernel = generator.normal(size=(2, 12, 13, 2)), generator.normal(size=(3, 2, 2, 3))

    apart = windows.conv2d(windows.box_sum(x, (2, 3), (2, 2)), kernel)
    joint = windows.conv2d(x, intervals.with_box(kernel, (2, 3), (2, 2)))

    np.testing.assert_allclose(apart, joint, atol=1e-12)


def test_windows_hold_in_a_ring_too() -> None:
    x = np.random.default_rng(6).integers(0, 2**64, (1, 5, 6, 2), dtype=np.uint64)

    total = windows.sum_pool(x, (2, 3), (2, 1))

    assert total.dtype == np.uint64
    expected = sum(int(value) for value in x[0, 2:4, 1:4, 1].reshape(-1)) % 2**64
    assert int(total[0, 1, 1, 1]) == expected


# What the planner refuses.


def test_parameters_that_are_not_finite_are_refused() -> None:
    layers = (DenseLayer("nan", np.array([[np.nan]]), np.zeros(1)),)
    with pytest.raises(UnsupportedModelError, match="'nan' has parameters that are not finite"):
        plan_network(Network("n", (1,), layers))


@pytest.mark.parametrize(
    ("shape", "layers", "text"),
    [
        ((4, 4, 1), (DenseLayer("d", np.zeros((16, 2)), np.zeros(2)),), "is a Flatten missing"),
        ((4,), (ConvLayer("c", np.zeros((3, 3, 1, 1)), np.zeros(1)),), "a layer for images"),
        ((4, 4, 1), (ConvLayer("c", np.zeros((5, 5, 1, 1)), np.zeros(1)),), "a kernel of shape"),
        ((4, 4, 2), (ConvLayer("c", np.zeros((3, 3, 1, 1)), np.zeros(1)),), "a kernel of shape"),
        ((4, 4, 1), (AveragePoolLayer("p", (5, 5), (1, 1)),), "a pool of"),
        ((4,), (DenseLayer("d", np.zeros((5, 2)), np.zeros(2)),), "a matrix of shape"),
    ],
)  # fmt: skip
def test_layers_that_do_not_fit_are_refused_by_name(shape, layers, text: str) -> None:
    with pytest.raises(UnsupportedModelError, match=text):
        plan_network(Network("misfit", shape, layers))


def test_a_network_of_zeros_has_a_plan() -> None:
    layers = (
        DenseLayer("d", np.zeros((2, 2)), np.zeros(2)),
        ReluLayer("r"),
        DenseLayer("e", np.zeros((2, 2)), np.zeros(2)),
    )
    plan, weights = plan_network(Network("zero", (2,), layers))

    assert plaintext.predict(plan, weights, np.ones((1, 2))).tolist() == [[0.0, 0.0]]
