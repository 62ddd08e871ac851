"""No allowed input takes a value out of its window, bound or ring, whichever way truncation rounds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.errors import UnsupportedModelError
from fedsec.nn import Plan, plaintext, plan_network, windows
from fedsec.nn.formats import Formats
from fedsec.nn.network import (
    AddLayer,
    AffineLayer,
    AveragePoolLayer,
    ConvLayer,
    DenseLayer,
    FlattenLayer,
    FunctionLayer,
    MaxPoolLayer,
    MultiplyLayer,
    Network,
    NetworkLayer,
    ReluLayer,
    ReshapeLayer,
)
from fedsec.nn.plan import Conv2D, Dense, Linear, MaxPool2D, PiecewiseLinear, Relu, Scale, Truncate
from fedsec.nn.rings import groups_of, small_rings
from fedsec.nn.weights import encode_input, encode_weights
from fedsec.ring import signed

AROUND = ((1, 1), (1, 1))


def fits(words: np.ndarray, bits: int, what: str) -> None:
    """Whether integers are in [-2^(bits-1), 2^(bits-1))."""
    assert words.min() >= -(1 << (bits - 1)), what
    assert words.max() < 1 << (bits - 1), what


class Integers:
    """A plan in exact integers; truncation takes one unit more where ``lose`` says so."""

    def __init__(
        self, plan: Plan, weights: list[np.ndarray], lose: Callable[[tuple[int, ...]], np.ndarray]
    ) -> None:
        self.plan = plan
        self.parameters = [signed(words).astype(object) for words in encode_weights(plan, weights)]
        self.lose = lose

    def run(self, x: np.ndarray) -> None:
        parameters = iter(self.parameters)
        values = [signed(encode_input(self.plan, x)).astype(object)]
        for number, step in enumerate(self.plan.layers):
            inputs = [values[value] for value in step.inputs]
            given, result = self.plan.inputs_of(number), self.plan.values[number + 1]
            if isinstance(step, Linear):
                value = self.linear(step, inputs[0], next(parameters)) + next(parameters)
            elif isinstance(step, Truncate | Relu):
                value = self.cut(step, inputs[0])
            elif isinstance(step, PiecewiseLinear):
                value = self.piecewise(step, inputs[0])
            elif isinstance(step, Scale):
                value = inputs[0] * windows.spread(np.array(step.factors, dtype=object), step.input_shape)
            else:
                if isinstance(step, MaxPool2D):
                    self.window_of(step, inputs[0])
                # What only adds and compares does the same to integers as to real numbers.
                value = plaintext._apply(step, inputs, given, iter(()))
            # A value is below its bound, and in its ring.
            limit = int(result.bound * 2**result.fraction_bits)
            assert max(abs(value.min()), abs(value.max())) <= limit <= 1 << (result.ring_bits - 1), step.name
            values.append(value)

    def linear(self, step: Conv2D | Dense, x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        return plaintext._linear(step, x, kernel)

    def cut(self, step: Truncate | Relu, z: np.ndarray) -> np.ndarray:
        d, w = step.bits, step.window_bits
        if isinstance(step, Relu):
            g = step.ignore_bits
            # Found by trying all masks: in this range the sign is right for each of them.
            assert z.min() >= -(1 << (w - 1 + d)) + (1 << (d + g)) - 1, step.name
            assert z.max() <= (1 << (w - 1 + d)) - 1, step.name
        t = (z >> d) - (self.lose(z.shape) if d else 0)
        fits(t, w, step.name)
        if isinstance(step, Truncate):
            # Moved to positive numbers, the value still has to fit its ring.
            assert d + w + 1 <= 64
            return t
        dropped = (t < 1 << step.ignore_bits) & (self.lose(z.shape) > 0)
        return np.where((t < 0) | dropped, 0, t)

    def piecewise(self, step: PiecewiseLinear, x: np.ndarray) -> np.ndarray:
        y = step.first_slope * x + step.offset
        for knot, slope in zip(step.knots, step.slopes, strict=True):
            fits(x - knot, step.window_bits, step.name)
            y = y + slope * np.maximum(x - knot, 0)
        return (y >> step.bits) - (self.lose(x.shape) if step.bits else 0)

    def window_of(self, step: MaxPool2D, x: np.ndarray) -> None:
        found = windows.patches(windows.repeat_edge(x, step.padding), step.pool, step.strides)
        spread = found.max(axis=(4, 5)) - found.min(axis=(4, 5))
        fits(spread, step.window_bits, step.name)


def drawn_network(seed: int) -> Network:
    """A network of layers in an arbitrary order, with a branch now and then."""
    generator = np.random.default_rng(seed)
    size, channels = 8, int(generator.integers(1, 3))
    layers: list[NetworkLayer] = []
    shape = (size, size, channels)
    for _ in range(int(generator.integers(2, 6))):
        kind = str(
            generator.choice(["conv", "relu", "mean", "max", "affine", "tanh", "relu6", "add", "times"])
        )
        scale = float(2.0 ** generator.integers(-3, 3))
        if kind == "conv" and shape[0] > 3:
            kernel = generator.normal(size=(3, 3, shape[2], 2)) * scale
            strides = (int(generator.integers(1, 3)), 1)
            layers.append(ConvLayer("conv", kernel, generator.normal(size=2) * scale, strides, AROUND))
            shape = ((shape[0] - 1) // strides[0] + 1, shape[1], 2)
        elif kind == "mean" and min(shape[:2]) > 3:
            layers.append(AveragePoolLayer("mean", (3, 2), (2, 1), ((1, 1), (0, 0))))
            shape = ((shape[0] - 1) // 2 + 1, shape[1] - 1, shape[2])
        elif kind == "max" and min(shape[:2]) > 3:
            layers.append(MaxPoolLayer("max", (2, 3), (1, 2), ((0, 0), (1, 1))))
            shape = (shape[0] - 1, (shape[1] - 1) // 2 + 1, shape[2])
        elif kind == "affine":
            layers.append(AffineLayer("affine", *(generator.normal(size=(2, shape[2])) * scale)))
        elif kind in {"relu", "relu6"}:
            layers.append(ReluLayer(kind, max_value=6.0 if kind == "relu6" else None))
        elif kind == "tanh":
            layers.append(FunctionLayer("tanh", "tanh"))
        elif kind in {"add", "times"}:
            joined = AddLayer if kind == "add" else MultiplyLayer
            layers += [ReluLayer("side"), joined(kind, inputs=(len(layers), len(layers) + 1))]
    flat = int(np.prod(shape))
    layers += [FlattenLayer("flat"), DenseLayer("end", generator.normal(size=(flat, 3)), np.zeros(3))]
    return Network(f"drawn {seed}", (size, size, channels), tuple(layers), -1.0, 1.0)


def extremes(network: Network, seed: int) -> np.ndarray:
    corners = np.random.default_rng(seed).choice(
        [network.input_low, network.input_high], size=(16, *network.input_shape)
    )
    corners[0], corners[1] = network.input_low, network.input_high
    return corners


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), low=st.booleans())
def test_threat_11_extreme_inputs_stay_in_every_window(seed: int, low: bool) -> None:
    network = drawn_network(seed)
    try:
        plan, weights = plan_network(network)
    except UnsupportedModelError as error:
        assert "use fewer fraction bits" in str(error)  # noqa: PT017 - it may or may not be raised
        return
    coins = np.random.default_rng(seed)
    ways = (lambda shape: np.full(shape, int(low)), lambda shape: coins.integers(0, 2, shape))
    for lose in ways:
        Integers(plan, weights, lose).run(extremes(network, seed))


@pytest.mark.parametrize("way", [0, 1])
def test_threat_11_the_worst_input_of_a_sign_stays_in_its_window(way: int) -> None:
    """All inputs push one way, for which the window is just wide enough: with one bit less it is not."""
    kernel = np.array([[1.0], [-1.0], [1.0]])
    layers = (
        DenseLayer("d", kernel, np.array([-0.996])),
        ReluLayer("r"),
        DenseLayer("e", np.ones((1, 1)), np.zeros(1)),
    )
    network = Network("worst", (3,), layers, -1.0, 1.0)
    plan, weights = plan_network(network)
    worst = np.stack([np.sign(kernel[:, 0]), -np.sign(kernel[:, 0])])

    check = Integers(plan, weights, lambda shape: np.full(shape, way))
    check.run(worst)

    (step,) = (step for step in plan.layers if isinstance(step, Relu))
    z = worst[1] @ kernel[:, 0] - 0.996
    assert -(2.0 ** (step.window_bits - 1 - 16)) < z < -(2.0 ** (step.window_bits - 2 - 16))


# Which ring.


def conv_net(scale: float = 1.0) -> Network:
    generator = np.random.default_rng(3)
    layers = (
        ConvLayer("conv", generator.normal(size=(3, 3, 1, 4)) * scale, generator.normal(size=4)),
        AveragePoolLayer("pool", (2, 2), (2, 2)),
        ReluLayer("relu"),
        ConvLayer("second", generator.normal(size=(2, 2, 4, 4)), generator.normal(size=4)),
        ReluLayer("relu"),
        FlattenLayer("flat"),
        DenseLayer("dense", generator.normal(size=(16, 3)), np.zeros(3)),
    )
    return Network("conv", (8, 8, 1), layers)


def test_products_between_gates_are_in_the_small_ring_and_the_answer_is_not() -> None:
    plan, _ = plan_network(conv_net())

    assert [value.ring_bits for value in plan.values] == [32, 32, 32, 32, 64, 64, 64]
    for step, value in zip(plan.layers, plan.values[1:], strict=True):
        if isinstance(step, Linear) and value.ring_bits == 32:
            assert value.fraction_bits >= 23
            assert step.bound * 2**value.fraction_bits <= 2**31
    # A pooling's division makes the kernel small: it gets the bits that the input would have.
    assert plan.layers[0].weight_fraction_bits > plan.fraction_bits


def test_a_product_that_is_too_large_is_in_the_large_ring_alone() -> None:
    plan, _ = plan_network(conv_net(scale=1000.0))

    rings = {step.name: value.ring_bits for step, value in zip(plan.layers, plan.values[1:], strict=True)}
    assert rings["conv"] == 64
    assert plan.input_ring_bits == 64


def test_a_group_that_turns_out_not_to_fit_is_made_again_in_the_large_ring() -> None:
    formats = Formats(16, 9)
    wide, _ = plan_network(conv_net(), fraction_bits=16)
    large = small_rings(wide, formats, excluded=range(len(wide.values)))
    assert large.values == {}

    groups, needed = groups_of(wide)
    first = groups[0]
    assert first not in needed
    without = small_rings(wide, formats, excluded=[0])
    assert 0 not in without.values
    assert without.values != {}


def test_more_than_16_fraction_bits_are_kept() -> None:
    plan, _ = plan_network(conv_net(), fraction_bits=20)

    assert {value.ring_bits for value in plan.values} == {64}
    assert plan.fraction_bits == 20


def test_sums_of_branches_and_functions_of_large_values_are_in_the_large_ring() -> None:
    kernel = np.eye(4)
    layers = (
        DenseLayer("a", kernel, np.zeros(4)), ReluLayer("r"), AddLayer("add", inputs=(0, 2)),
        FunctionLayer("gelu", "gelu"), DenseLayer("b", kernel, np.zeros(4)),
    )  # fmt: skip
    plan, _ = plan_network(Network("branches", (4,), layers, -100.0, 100.0))

    rings = {step.name: value.ring_bits for step, value in zip(plan.layers, plan.values[1:], strict=True)}
    assert rings["add"] == rings["gelu"] == rings["b"] == 64
    assert plan.input_ring_bits == 64


def test_tanh_of_a_product_is_in_the_small_ring() -> None:
    layers = (
        DenseLayer("a", np.eye(4), np.zeros(4)),
        FunctionLayer("t", "tanh"),
        DenseLayer("b", np.eye(4), np.zeros(4)),
    )
    plan, _ = plan_network(Network("tanh", (4,), layers, -4.0, 4.0))

    assert [value.ring_bits for value in plan.values] == [32, 32, 32, 64, 64]


# What is refused.


@pytest.mark.parametrize("bits", [16, 20])
def test_threat_11_a_product_that_could_wrap_is_refused_naming_layer_and_bound(bits: int) -> None:
    def one(size: float) -> None:
        layers = (
            DenseLayer("only", np.array([[size]]), np.zeros(1)),
            ReluLayer("r"),
            DenseLayer("e", np.eye(1), [0.0]),
        )
        plan_network(Network("large", (1,), layers), fraction_bits=bits)

    # A kernel keeps 10 fraction bits at least, and a product has 62.
    largest = 2.0 ** (62 - bits - 10)
    one(largest * 0.99)
    with pytest.raises(
        UnsupportedModelError, match=r"'only' can reach .* could wrap; use fewer fraction bits"
    ):
        one(largest * 1.01)


def test_threat_11_a_sum_of_too_many_is_refused_by_name() -> None:
    layers = [DenseLayer("d", np.array([[2.0**30]]), np.zeros(1))]
    layers += [MultiplyLayer("square", inputs=(1, 1)), MultiplyLayer("again", inputs=(2, 2))]

    with pytest.raises(UnsupportedModelError, match=r"layer '(square|again)"):
        plan_network(Network("powers", (1,), tuple(layers)))


def test_a_large_product_takes_fraction_bits_from_its_kernel() -> None:
    def planned(size: float) -> Plan:
        layers = (
            DenseLayer("d", np.array([[size]]), np.zeros(1)),
            ReluLayer("r"),
            DenseLayer("e", np.eye(1), np.zeros(1)),
        )
        return plan_network(Network("large", (1,), layers))[0]

    found = [planned(2.0**exponent * 0.9).layers[0].weight_fraction_bits for exponent in (20, 31, 33, 36)]
    assert found == [16, 15, 13, 10]


@pytest.mark.parametrize("exponent", [4, 12, 20, 30])
def test_large_values_are_compared_on_fewer_fraction_bits(exponent: int) -> None:
    scale = 2.0**exponent
    layers = (
        DenseLayer("d", np.eye(4) * scale, np.zeros(4)), ReluLayer("r"), ReshapeLayer("image", (2, 2, 1)),
        MaxPoolLayer("m", (2, 1), (1, 1)), FunctionLayer("t", "tanh"), FlattenLayer("f"),
        DenseLayer("e", np.eye(2), np.zeros(2)),
    )  # fmt: skip
    network = Network("large", (4,), layers, -1.0, 1.0)
    if exponent == 30:
        with pytest.raises(
            UnsupportedModelError, match=r"layer 'm' gets .* fewer than 4; .*train with smaller"
        ):
            plan_network(network)
        return
    plan, weights = plan_network(network)

    for step in plan.layers:
        if isinstance(step, Relu):
            assert step.window_bits - step.ignore_bits <= 32
        if isinstance(step, MaxPool2D | PiecewiseLinear):
            assert step.window_bits <= 32
    Integers(plan, weights, lambda shape: np.ones(shape, dtype=int)).run(extremes(network, 1))


def test_the_check_itself_finds_a_window_that_is_too_narrow() -> None:
    plan, weights = plan_network(conv_net())
    x = np.random.default_rng(0).choice([0.0, 1.0], size=(64, 8, 8, 1))
    window = next(step.window_bits for step in plan.layers if isinstance(step, Relu))
    text = plan.to_json().decode()
    narrow = Plan.from_json(text.replace(f'"window_bits":{window}', f'"window_bits":{window - 3}', 1))

    Integers(plan, weights, lambda shape: np.ones(shape, dtype=int)).run(x)
    with pytest.raises(AssertionError):
        Integers(narrow, weights, lambda shape: np.ones(shape, dtype=int)).run(x)
