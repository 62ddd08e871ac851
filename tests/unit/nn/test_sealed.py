"""Plans from bounds of parameters alone, and parameters taken out of a state that is there in shares only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsec.errors import UnsupportedModelError, UsageError
from fedsec.mpc import simulate
from fedsec.nn import plaintext
from fedsec.nn.network import (
    AddLayer,
    AveragePoolLayer,
    ConvLayer,
    DenseLayer,
    FlattenLayer,
    FunctionLayer,
    MaxPoolLayer,
    Network,
    PadLayer,
    ReluLayer,
    RescaleLayer,
)
from fedsec.nn.plan import Dense, Plan
from fedsec.nn.planner import FEWEST_VALUE_BITS, plan_unseen
from fedsec.nn.sealed import Source, check_sources, gather, rescale, serving_digest
from fedsec.nn.weights import dropped_bits
from fedsec.ring import RING64, decode, encode, fresh_stream, signed
from fedsec.sharing import replicated


def network(size: float) -> Network:
    """Every kind of step between layers, parameters within ``size``."""
    layers = (
        RescaleLayer("rescale", 0.5, 0.25, inputs=(0,)),
        PadLayer("pad", ((1, 0), (0, 1)), inputs=(1,)),
        ConvLayer("conv", np.full((3, 3, 1, 4), size), np.full(4, size), inputs=(2,)),
        AveragePoolLayer("pool", (3, 3), (2, 2), inputs=(3,)),
        ReluLayer("relu", inputs=(4,)),
        ConvLayer("same", np.full((1, 1, 4, 4), size), np.full(4, size), inputs=(5,)),
        AddLayer("add", inputs=(5, 6)),
        MaxPoolLayer("max", (2, 2), (1, 1), inputs=(7,)),
        FlattenLayer("flat", inputs=(8,)),
        DenseLayer("dense", np.full((16, 5), size), np.full(5, size), inputs=(9,)),
        FunctionLayer("tanh", "tanh", inputs=(10,)),
        DenseLayer("last", np.full((5, 3), size), np.full(3, size), inputs=(11,)),
    )
    return Network("all", (9, 9, 1), layers)


def drawn(sizes: list[np.ndarray], seed: int, corners: bool) -> list[np.ndarray]:
    """Parameters within their bounds; at corners all of the largest size, with one sign for each array."""
    generator = np.random.default_rng(seed)
    if corners:
        return [size * generator.choice([-1.0, 1.0]) for size in sizes]
    return [generator.uniform(-size, size) for size in sizes]


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_threat_11_no_parameters_within_their_bounds_bring_a_value_beyond_its_own(
    seed: int, corners: bool
) -> None:
    planned = plan_unseen(network(3.0))
    images = np.random.default_rng(seed).integers(0, 2, (6, 9, 9, 1)).astype(float)
    images[0] = 1.0

    values = plaintext.trace(planned.plan, drawn(planned.sizes, seed, corners), images)

    for value, found in zip(planned.plan.values, values, strict=True):
        assert np.abs(found).max() < value.bound


def test_bounds_are_reached_but_for_a_power_of_two() -> None:
    """All parameters as large as they can be: a bound that is far off would cost precision for nothing."""
    layers = (
        DenseLayer("a", np.full((6, 5), 2.0), np.full(5, 2.0)),
        ReluLayer("relu"),
        DenseLayer("b", np.full((5, 3), 2.0), np.full(3, 2.0)),
    )
    planned = plan_unseen(Network("n", (6,), layers))

    values = plaintext.trace(planned.plan, planned.sizes, np.ones((1, 6)))

    for value, found in zip(planned.plan.values[1:], values[1:], strict=True):
        assert np.abs(found).max() > value.bound / 2.1


def test_no_parameter_is_folded_into_another() -> None:
    planned = plan_unseen(network(3.0))

    kernels = planned.sizes[::2]
    assert [float(kernel.max() * by) for kernel, by in zip(kernels, planned.divisors, strict=True)] == (
        pytest.approx([3.0] * len(kernels))
    )
    assert all(float(bias.max()) == 3.0 for bias in planned.sizes[1::2])
    assert planned.divisors[0] == 9


def test_where_bounds_are_large_what_goes_into_a_product_gets_fewer_bits_and_then_it_is_refused() -> None:
    def stack(size: float) -> Network:
        layers: list[Any] = []
        for name in ("one", "two", "three"):
            layers += [DenseLayer(name, np.full((8, 8), size), np.full(8, size)), ReluLayer(f"{name} relu")]
        return Network("stack", (8,), (*layers, DenseLayer("four", np.full((8, 2), size), np.full(2, size))))

    bits = {
        size: [value.fraction_bits for value in plan_unseen(stack(size)).plan.values] for size in (1, 100)
    }
    assert min(bits[1]) == 16
    assert FEWEST_VALUE_BITS <= min(bits[100]) < 16
    assert bits[100][0] == 16
    with pytest.raises(UnsupportedModelError, match=r"layer 'four' can reach 4\.\d+e\+15.*smaller clip"):
        plan_unseen(stack(1000.0))


def small() -> tuple[Plan, tuple[Source, ...]]:
    """A plan with each kind of source; the state has 50 words with 20 fraction bits."""
    layers = (
        Dense(
            name="a", inputs=(0,), input_shape=(6,), output_shape=(4,), weight_fraction_bits=13, bound=1024.0
        ),
        Dense(
            name="b", inputs=(1,), input_shape=(4,), output_shape=(4,), weight_fraction_bits=8, bound=2.0**20
        ),
    )
    plan = Plan(
        name="small", input_shape=(6,), output_shape=(4,), input_low=0.0, input_high=1.0, fraction_bits=13,
        layers=layers,
    )  # fmt: skip
    # A kernel, a bias with more bits than the state has, a kernel divided by three, none.
    sources = (Source(10, 1, 7), Source(34, 1 << 6, 0), Source(0, round(2**20 / 3), 32), Source(None))
    return plan, sources


STATE_BITS = 20


def of_parties(state: np.ndarray, program: Any) -> list[np.ndarray]:
    shares = replicated.share(encode(state, STATE_BITS, RING64), fresh_stream(), STATE_BITS)
    results = simulate(lambda party: program(party, shares[party.id])).results
    return [replicated.reconstruct([result[i] for result in results]) for i in range(len(results[0]))]


def test_parameters_come_out_of_a_state_within_one_unit_and_right_on_average() -> None:
    plan, sources = small()
    state = np.random.default_rng(5).uniform(-20, 20, 50)

    differences = []
    for _ in range(20):
        found = of_parties(
            state, lambda party, share: rescale(party, plan, sources, gather(plan, sources, share))
        )
        first, bias, second, none = (
            decode(words, spec.fraction_bits) for words, spec in zip(found, plan.weight_specs, strict=True)
        )
        np.testing.assert_array_equal(bias, decode(encode(state[34:38], STATE_BITS), STATE_BITS))
        assert not none.any()
        differences.append((first - state[10:34].reshape(6, 4)) * 2**13)
        assert np.abs(second - state[:16].reshape(4, 4) / 3).max() <= 1.01 * 2**-8
    assert np.abs(differences).max() <= 1.01
    # 480 roundings, each off by less than one unit: the mean's deviation is below 0.03.
    assert abs(float(np.mean(differences))) < 0.15


def test_a_bias_makes_up_for_what_the_truncation_after_it_drops() -> None:
    relu = plan_unseen(
        Network("n", (6,), (DenseLayer("a", np.ones((6, 4)), np.ones(4)), ReluLayer("r"),
                            DenseLayer("b", np.ones((4, 2)), np.ones(2)))))  # fmt: skip
    (bits, _) = dropped_bits(relu.plan)
    assert bits > 0
    sources = tuple(Source(None) for _ in relu.plan.weight_specs)

    found = of_parties(
        np.zeros(1),
        lambda party, share: rescale(party, relu.plan, sources, gather(relu.plan, sources, share)),
    )

    assert [int(np.max(signed(words))) for words in found] == [0, 1 << bits, 0, 0]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({0: Source(27)}, "words 27 to 50, the sealed state has 50"),
        ({3: Source(1 << 40)}, "the sealed state has 50"),
        (None, "4 arrays of parameters, got 3 sources"),
    ],
)
def test_sources_beyond_the_state_are_refused(change: dict[int, Source] | None, text: str) -> None:
    plan, sources = small()
    given = list(sources)[:3] if change is None else [change.get(i, s) for i, s in enumerate(sources)]

    with pytest.raises(UsageError, match=text):
        check_sources(plan, given, 50)
    check_sources(plan, sources, 50)


def test_the_digest_names_plan_and_sources() -> None:
    plan, sources = small()
    other = (*sources[:3], Source(0))

    assert serving_digest(plan, sources) == serving_digest(plan, sources)
    assert serving_digest(plan, other) != serving_digest(plan, sources)
    assert serving_digest(plan.with_head("label"), sources) != serving_digest(plan, sources)
