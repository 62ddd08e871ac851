"""A plan is what the planner made, or it is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from fedsec.errors import InputError, UsageError
from fedsec.nn import Plan, load_weights, plan_network, save_weights
from fedsec.nn.network import AveragePoolLayer, ConvLayer, DenseLayer, FlattenLayer, Network, ReluLayer
from fedsec.nn.plan import MAX_ELEMENTS, Conv2D, Relu, Reshape, Truncate


@pytest.fixture(scope="module")
def planned() -> tuple[Plan, list[np.ndarray]]:
    generator = np.random.default_rng(0)
    layers = (
        ConvLayer("conv", generator.normal(size=(3, 3, 1, 4)), generator.normal(size=4)),
        AveragePoolLayer("pool", (2, 2), (2, 2)),
        ReluLayer("relu"),
        FlattenLayer("flat"),
        DenseLayer("dense", generator.normal(size=(36, 5)), generator.normal(size=5)),
    )
    return plan_network(Network("small", (8, 8, 1), layers))


def test_it_holds_the_steps_and_their_fraction_bits(planned: tuple[Plan, list[np.ndarray]]) -> None:
    plan, weights = planned

    kinds = [type(step).__name__ for step in plan.layers]
    assert kinds == ["Conv2D", "Relu", "Reshape", "Dense"]
    assert [spec.shape for spec in plan.weight_specs] == [(3, 3, 1, 4), (4,), (36, 5), (5,)]
    assert [spec.shape for spec in plan.weight_specs] == [array.shape for array in weights]
    # Values below 8 leave 28 bits of 31 for the fraction.
    assert [spec.fraction_bits for spec in plan.weight_specs] == [15, 28, 16, 32]
    assert plan.output_fraction_bits == 32
    assert plan.output_shape == (5,)


def test_it_comes_back_from_its_file_with_the_same_digest(
    planned: tuple[Plan, list[np.ndarray]], tmp_path: Path
) -> None:
    plan, _ = planned
    plan.save(tmp_path / "plan.json")

    again = Plan.load(tmp_path / "plan.json")

    assert again == plan
    assert again.digest() == plan.digest()
    assert msgspec.structs.replace(plan, name="other").digest() != plan.digest()


def test_a_plan_holds_no_parameter(planned: tuple[Plan, list[np.ndarray]]) -> None:
    plan, _ = planned
    for step in plan.layers:
        bound = getattr(step, "bound", 1.0)
        # Only the power of two above the bound is public.
        assert np.log2(bound) == round(np.log2(bound))


def changed(plan: Plan, number: int, **values: object) -> bytes:
    """The JSON of a plan in which one step says something else."""
    raw = msgspec.json.decode(plan.to_json())
    raw["layers"][number].update(values)
    return msgspec.json.encode(raw)


@pytest.mark.parametrize(
    ("number", "values"),
    [
        (0, {"output_shape": [3, 3, 5]}),
        (0, {"kernel_shape": [3, 3, 2, 4]}),
        (0, {"strides": [3, 3]}),
        (0, {"box": [9, 9]}),
        (0, {"weight_fraction_bits": 63}),
        (0, {"padding": [[2, 0], [0, 0]]}),
        (1, {"bits": 35}),
        (1, {"window_bits": 64}),
        (1, {"input_shape": [1, 1, 1]}),
        (2, {"output_shape": [35]}),
        (3, {"type": "lambda"}),
        (3, {"more": 1}),
        (3, {"output_shape": [1 << 25]}),
        (3, {"input_shape": [36, 1]}),
        (0, {"name": ""}),
    ],
)
def test_a_plan_that_does_not_follow_is_refused(
    planned: tuple[Plan, list[np.ndarray]], number: int, values: dict[str, object]
) -> None:
    with pytest.raises(UsageError, match="plan"):
        Plan.from_json(changed(planned[0], number, **values))


@pytest.mark.parametrize(
    "values",
    [
        {"version": 1}, {"ring_bits": 32}, {"fraction_bits": 3}, {"output_shape": [4]},
        {"input_shape": [8, 8]}, {"layers": []}, {"input_low": 2.0}, {"input_high": 1.7e308}, {"surprise": 0},
    ],
)  # fmt: skip
def test_a_frame_that_does_not_fit_is_refused(
    planned: tuple[Plan, list[np.ndarray]], values: dict[str, object]
) -> None:
    raw = {**msgspec.json.decode(planned[0].to_json()), **values}

    with pytest.raises(UsageError, match="plan"):
        Plan.from_json(msgspec.json.encode(raw))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_what_is_no_json_object_is_refused(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(text)

    with pytest.raises(UsageError, match="no plan"):
        Plan.load(tmp_path / "plan.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing\.json"):
        Plan.load(tmp_path / "nothing.json")


def test_a_kernel_too_large_is_refused() -> None:
    side = 1 << 13
    step = {
        "name": "d",
        "inputs": [0],
        "input_shape": [side],
        "output_shape": [side],
        "weight_fraction_bits": 16,
        "bound": 1.0,
    }
    raw = {
        "name": "large", "input_shape": [side], "output_shape": [side], "input_low": 0.0, "input_high": 1.0,
        "fraction_bits": 16, "layers": [{"type": "dense", **step}],
    }  # fmt: skip
    with pytest.raises(UsageError, match="kernel that is too large"):
        Plan.from_json(msgspec.json.encode(raw))


CONV = {
    "type": "conv2d", "name": "c", "inputs": [0], "input_shape": [1 << 12, 1 << 12, 1],
    "output_shape": [1, 1, 1], "kernel_shape": [1, 1, 1, 1], "strides": [1 << 13, 1 << 13],
    "weight_fraction_bits": 16, "bound": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "largest"),
    [
        ({}, 1 << 24),
        ({"padding": [[0, 1], [0, 0]]}, (1 << 24) + (1 << 12)),
        ({"input_shape": [1 << 12, 1 << 12, 2], "kernel_shape": [1, 1, 2, 1]}, 1 << 25),
        # Few inputs and outputs, but 2^25 values in patches: 1021 x 1021 positions of 4 x 8 places.
        (
            {"input_shape": [1024, 1028, 1], "kernel_shape": [4, 8, 1, 1], "strides": [1, 1],
             "output_shape": [1021, 1021, 1]},
            1021 * 1021 * 32,
        ),
    ],
    ids=["as large as allowed", "padding", "input", "patches"],
)  # fmt: skip
def test_no_step_makes_a_larger_array_of_one_example_than_allowed(
    changes: dict[str, object], largest: int
) -> None:
    step = {**CONV, **changes}
    raw = {
        "name": "large", "input_shape": step["input_shape"], "output_shape": step["output_shape"],
        "input_low": 0.0, "input_high": 1.0, "fraction_bits": 16, "layers": [step],
    }  # fmt: skip
    if largest == MAX_ELEMENTS:
        assert Plan.from_json(msgspec.json.encode(raw)).largest_array == largest
    else:
        with pytest.raises(UsageError, match=f"makes {largest} values of one example"):
            Plan.from_json(msgspec.json.encode(raw))


def test_the_largest_array_of_a_plan_is_the_one_that_is_made(planned: tuple[Plan, list[np.ndarray]]) -> None:
    # 8 x 8 images, 2 x 2 boxes, 3 x 3 kernels at stride 2: 3 x 3 positions of 9 places; outputs 3 x 3 x 4.
    assert planned[0].largest_array == 81


def test_weights_come_back_from_their_file(planned: tuple[Plan, list[np.ndarray]], tmp_path: Path) -> None:
    plan, weights = planned
    file = tmp_path / "weights.npz"
    save_weights(file, weights)

    for one, two in zip(load_weights(file, plan), weights, strict=True):
        np.testing.assert_array_equal(one, two)

    save_weights(file, weights[:-1])
    with pytest.raises(InputError, match="has parameters"):
        load_weights(file, plan)
    file.write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(InputError, match="cannot read"):
        load_weights(file, plan)


def test_steps_are_values() -> None:
    step = Relu(name="r", inputs=(0,), input_shape=(3,), output_shape=(3,), bits=0, window_bits=20)

    assert step == Relu(name="r", inputs=(0,), input_shape=(3,), output_shape=(3,), bits=0, window_bits=20)
    assert len({step, Reshape(name="f", inputs=(0,), input_shape=(3,), output_shape=(3,))}) == 2
    with pytest.raises(UsageError):
        Truncate(name="t", inputs=(0,), input_shape=(3,), output_shape=(4,), bits=3, window_bits=20)
    with pytest.raises(UsageError, match="comes"):
        Conv2D(
            name="c", inputs=(0,), input_shape=(2, 2, 1), output_shape=(1, 1, 1), kernel_shape=(3, 3, 1, 1),
            weight_fraction_bits=16, bound=1.0,
        )  # fmt: skip
