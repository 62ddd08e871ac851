"""The stated error holds, and is not far above what can happen."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from fedsec.errors import UsageError
from fedsec.mpc import simulate
from fedsec.nn import Plan, Weights, layers, plan_network
from fedsec.nn.accuracy import error_bound
from fedsec.nn.network import (
    ConvLayer,
    DenseLayer,
    FlattenLayer,
    FunctionLayer,
    MaxPoolLayer,
    MultiplyLayer,
    Network,
    ReluLayer,
)
from fedsec.nn.plan import Relu
from fedsec.nn.weights import decode_output, encode_input, share_weights
from fedsec.ring import fresh_stream
from fedsec.sharing import replicated


def seen(plan: Plan, weights: Weights, x: np.ndarray, expected: np.ndarray) -> float:
    """The largest error at the parties."""
    shares = share_weights(plan, weights, fresh_stream())
    given = replicated.share(encode_input(plan, x), fresh_stream(), plan.fraction_bits)
    done = simulate(lambda party: layers.predict(party, plan, shares[party.id], given[party.id]))
    return float(np.abs(decode_output(plan, replicated.reconstruct(done.results)) - expected).max())


def test_rounded_inputs_and_parameters_reach_the_bound() -> None:
    """Every input and every parameter half a unit off, all the same way."""
    bits = 8
    half = 2.0 ** -(bits + 1) * 0.999
    kernel, bias = np.full((20, 1), 0.5 + half), np.array([half])
    plan, weights = plan_network(
        Network("half", (20,), (DenseLayer("d", kernel, bias),), -1.0, 1.0), fraction_bits=bits
    )
    x = np.full((4, 20), 0.75 + half)

    found, bound = seen(plan, weights, x, x @ kernel + bias), error_bound(plan, weights)

    assert 0.8 * bound < found <= bound


def test_truncation_reaches_the_bound() -> None:
    """Up to one unit for each truncation; over many values both ends are seen."""
    generator = np.random.default_rng(0)
    kernel = generator.integers(-64, 65, (1, 64)) / 256.0
    stages = (
        DenseLayer("a", kernel, np.full(64, 8.0)),
        ReluLayer("r"),
        DenseLayer("b", np.eye(64), np.zeros(64)),
    )
    plan, weights = plan_network(Network("cut", (1,), stages, -1.0, 1.0), fraction_bits=8)
    x = generator.integers(-256, 257, (500, 1)) / 256.0
    expected = np.maximum(x @ kernel + 8.0, 0.0)

    found, bound = seen(plan, weights, x, expected), error_bound(plan, weights)

    assert 0.7 * bound < found <= bound


def test_a_coarse_sign_is_in_the_bound() -> None:
    stages = (
        DenseLayer("a", np.eye(2), np.zeros(2)),
        ReluLayer("r"),
        DenseLayer("b", np.eye(2), np.zeros(2)),
    )
    network = Network("sign", (2,), stages, -1.0, 1.0)
    plan, weights = plan_network(network, sign_resolution_bits=4)
    fine, _ = plan_network(network, sign_resolution_bits=30)
    x = np.linspace(-0.2, 0.2, 400).repeat(50).reshape(-1, 2)

    found = seen(plan, weights, x, np.maximum(x, 0.0))

    assert {step.ignore_bits for step in fine.layers if isinstance(step, Relu)} == {0}
    assert 2.0**-4 <= error_bound(plan, weights) < 2.0**-3
    assert error_bound(fine, weights) < 2.0**-10
    assert 2.0**-6 < found <= error_bound(plan, weights)


def test_what_is_always_negative_has_no_error_after_relu() -> None:
    stages = (
        DenseLayer("a", np.eye(2), np.full(2, -50.0)),
        ReluLayer("r"),
        DenseLayer("b", np.eye(2), np.zeros(2)),
    )
    plan, weights = plan_network(Network("dead", (2,), stages, -1.0, 1.0))

    assert error_bound(plan, weights) < 1e-6


@pytest.mark.parametrize("fraction_bits", [8, 12, 16])
def test_more_fraction_bits_mean_less_error(fraction_bits: int) -> None:
    generator = np.random.default_rng(1)
    stages = (
        ConvLayer("c", generator.normal(size=(3, 3, 1, 2)), np.zeros(2)), ReluLayer("r"),
        MaxPoolLayer("m", (2, 2), (2, 2)), FlattenLayer("f"),
        DenseLayer("d", generator.normal(size=(18, 3)) / 4, np.zeros(3)),
    )  # fmt: skip
    network = Network("bits", (8, 8, 1), stages)
    bounds = [
        error_bound(*plan_network(network, fraction_bits=bits, sign_resolution_bits=20))
        for bits in (fraction_bits, fraction_bits + 4)
    ]

    assert bounds[1] < bounds[0] / 2


def test_a_function_adds_its_own_error() -> None:
    stages = (
        DenseLayer("a", np.eye(2), np.zeros(2)),
        FunctionLayer("t", "tanh"),
        DenseLayer("b", np.eye(2) * 4, np.zeros(2)),
    )
    plan, weights = plan_network(Network("tanh", (2,), stages, -4.0, 4.0))
    (function,) = (step for step in plan.layers if step.name == "t")

    assert 4 * function.error < error_bound(plan, weights) < 4 * function.error + 0.01
    exact = msgspec.structs.replace(
        plan,
        layers=tuple(
            msgspec.structs.replace(step, error=0.0) if step is function else step for step in plan.layers
        ),
    )
    assert error_bound(exact, weights) == pytest.approx(
        error_bound(plan, weights) - 4 * function.error, rel=1e-6
    )


def test_a_product_of_two_values_has_the_errors_of_both() -> None:
    stages = (MultiplyLayer("square", inputs=(0, 0)),)
    plan, weights = plan_network(Network("square", (3,), stages, -8.0, 8.0), fraction_bits=8)
    half = 2.0**-9

    assert error_bound(plan, weights) == pytest.approx(2 * 8 * half, rel=0.01)
    x = np.full((1, 3), 7.5 + 0.999 * half)
    assert seen(plan, weights, x, x * x) == pytest.approx(2 * 7.5 * half, rel=0.01)


def test_probabilities_are_off_by_less_than_logits_and_labels_by_nothing() -> None:
    plan, weights = plan_network(Network("d", (4,), (DenseLayer("d", np.eye(4) * 9, np.zeros(4)),)))

    logits, probabilities = (error_bound(plan, weights, reveal) for reveal in ("logits", "probabilities"))

    assert logits < 0.001
    assert probabilities < 0.01
    for reveal in ("label", "top3"):
        with pytest.raises(UsageError, match="labels have no distance"):
            error_bound(plan, weights, reveal)
    with pytest.raises(UsageError, match="no distance"):
        error_bound(plan.with_head("label"), weights)
