"""Steps: what they take, what they give, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from fedsec.errors import UsageError
from fedsec.mpc.dealt.chunks import MOST_WINDOW_BITS
from fedsec.nn import Plan, plaintext, windows
from fedsec.nn.base import power_of_two
from fedsec.nn.gates import WIDEST_COMPARISON
from fedsec.nn.plan import (
    Add,
    AddConstant,
    Concatenate,
    Conv2D,
    Dense,
    MaxPool2D,
    Multiply,
    Pad2D,
    PiecewiseLinear,
    RandomisedResponse,
    ReduceMax,
    ReduceSum,
    Relu,
    Reshape,
    Scale,
    Step,
    SumPool2D,
    TopK,
    Truncate,
    Value,
)

IMAGE, LIST = (4, 6, 2), (5,)

EXAMPLES: dict[str, tuple[Step, list[Value]]] = {
    "conv2d": (
        Conv2D(
            name="s", inputs=(0,), input_shape=IMAGE, output_shape=(3, 2, 4), kernel_shape=(2, 2, 1, 4),
            strides=(1, 2), padding=((0, 1), (1, 0)), dilation=(2, 1), groups=2, box=(1, 2), box_step=(1, 3),
            weight_fraction_bits=10, bound=64.0,
        ),
        [Value(IMAGE, 8, 32, 2.0)],
    ),
    "dense": (
        Dense(
            name="s", inputs=(0,), input_shape=(3, 5), output_shape=(3, 2), weight_fraction_bits=10, bound=8.0
        ),
        [Value((3, 5), 8, 64, 2.0)],
    ),
    "sum_pool2d": (
        SumPool2D(
            name="s", inputs=(0,), input_shape=IMAGE, output_shape=(3, 2, 2), pool=(2, 3), strides=(1, 3),
            padding=((0, 0), (1, 1)),
        ),
        [Value(IMAGE, 8, 32, 2.0)],
    ),
    "reshape": (
        Reshape(name="s", inputs=(0,), input_shape=IMAGE, output_shape=(8, 6)), [Value(IMAGE, 8, 32, 2.0)],
    ),
    "pad2d": (
        Pad2D(name="s", inputs=(0,), input_shape=IMAGE, output_shape=(7, 6, 2), padding=((1, 2), (0, 0))),
        [Value(IMAGE, 8, 32, 2.0)],
    ),
    "add": (
        Add(
            name="s", inputs=(0, 0, 0), input_shapes=(LIST, LIST, (1,)), output_shape=LIST, signs=(1, -1, -1)
        ),
        [Value(LIST, 8, 64, 2.0), Value(LIST, 8, 64, 1.0), Value((1,), 8, 64, 0.5)],
    ),
    "concatenate": (
        Concatenate(name="s", inputs=(0, 0), input_shapes=((2, 3), (4, 3)), output_shape=(6, 3), axis=0),
        [Value((2, 3), 8, 64, 2.0), Value((4, 3), 8, 64, 4.0)],
    ),
    "scale": (
        Scale(
            name="s", inputs=(0,), input_shape=(3, 2), output_shape=(3, 2), factors=(3, -12), fraction_bits=2
        ),
        [Value((3, 2), 8, 64, 2.0)],
    ),
    "add_constant": (
        AddConstant(name="s", inputs=(0,), input_shape=LIST, output_shape=LIST, constant=-0.75),
        [Value(LIST, 8, 64, 2.0)],
    ),
    "reduce_sum": (
        ReduceSum(name="s", inputs=(0,), input_shape=(3, 5), output_shape=(3, 1)),
        [Value((3, 5), 8, 64, 2.0)],
    ),
    "truncate": (
        Truncate(
            name="s", inputs=(0,), input_shape=LIST, output_shape=LIST, bits=4, window_bits=10, ring_bits=32
        ),
        [Value(LIST, 8, 64, 32.0)],
    ),
    "relu": (
        Relu(
            name="s", inputs=(0,), input_shape=LIST, output_shape=LIST, bits=4, window_bits=10, ring_bits=32,
            ignore_bits=2,
        ),
        [Value(LIST, 8, 64, 32.0)],
    ),
    "max_pool2d": (
        MaxPool2D(
            name="s", inputs=(0,), input_shape=IMAGE, output_shape=(2, 3, 2), pool=(2, 3), strides=(2, 2),
            padding=((0, 0), (1, 0)), window_bits=12,
        ),
        [Value(IMAGE, 8, 32, 2.0)],
    ),
    "reduce_max": (
        ReduceMax(name="s", inputs=(0,), input_shape=(3, 5), output_shape=(3, 1), window_bits=12),
        [Value((3, 5), 8, 64, 2.0)],
    ),
    "multiply": (
        Multiply(name="s", inputs=(0, 0), input_shapes=((2, 3, 2), (1, 2)), output_shape=(2, 3, 2)),
        [Value((2, 3, 2), 8, 64, 2.0), Value((1, 2), 6, 64, 4.0)],
    ),
    "piecewise_linear": (
        PiecewiseLinear(
            name="s", inputs=(0,), input_shape=LIST, output_shape=LIST, window_bits=12, knots=(-256, 0, 128),
            slopes=(2, 1, -5), first_slope=-1, offset=512, slope_bits=1, bits=3, bound=16.0,
        ),
        [Value(LIST, 8, 64, 2.0)],
    ),
    "top_k": (
        TopK(name="s", inputs=(0,), input_shape=LIST, output_shape=(3,), k=3, bits=2, window_bits=12),
        [Value(LIST, 8, 64, 2.0)],
    ),
    "randomised_response": (
        RandomisedResponse(
            name="s", inputs=(0,), input_shape=(1,), output_shape=(1,), classes=5, table_bits=4, others=2
        ),
        [Value((1,), 0, 64, 8.0)],
    ),
}  # fmt: skip

GIVES = {
    "conv2d": (18, 32, 64.0), "dense": (18, 64, 8.0), "sum_pool2d": (8, 32, 16.0), "reshape": (8, 32, 2.0),
    "pad2d": (8, 32, 2.0), "add": (8, 64, 4.0), "concatenate": (8, 64, 4.0), "scale": (10, 64, 8.0),
    "add_constant": (8, 64, 4.0), "reduce_sum": (8, 64, 16.0), "truncate": (4, 32, 32.0),
    "relu": (4, 32, 32.0), "max_pool2d": (8, 32, 2.0), "reduce_max": (8, 64, 2.0), "multiply": (14, 64, 8.0),
    "piecewise_linear": (6, 64, 16.0), "top_k": (0, 64, 8.0),
    "randomised_response": (0, 64, 8.0),
}  # fmt: skip


def test_every_kind_of_step_is_here() -> None:
    kinds = {step.__struct_config__.tag for step, _ in EXAMPLES.values()}

    assert kinds == set(EXAMPLES) == set(GIVES)
    assert len(kinds) == len(Step.__args__)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", EXAMPLES)
def test_it_gives_its_value(kind: str) -> None:
    step, values = EXAMPLES[kind]

    assert step.follow(tuple(values)) == (step.output_shape, *GIVES[kind])
    assert step.largest_array >= max(math.prod(shape) for shape in (*step.shapes, step.output_shape))
    assert msgspec.json.decode(msgspec.json.encode(step), type=Step) == step


def real(kind: str) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """What a step gives for some inputs, the inputs and its parameters."""
    step, values = EXAMPLES[kind]
    generator = np.random.default_rng(3)
    inputs = [generator.integers(-512, 513, (7, *value.shape)) / 256 for value in values]
    parameters = []
    if isinstance(step, Conv2D | Dense):
        parameters = [generator.normal(size=step.kernel_shape), generator.normal(size=step.kernel_shape[-1])]
    return plaintext._apply(step, inputs, tuple(values), iter(parameters)), inputs, parameters


def expected(kind: str, inputs: list[np.ndarray], parameters: list[np.ndarray]) -> np.ndarray:
    """The same by definition."""
    x = inputs[0]
    return {
        "conv2d": lambda: conv_by_loops(x, *parameters),
        "dense": lambda: np.einsum("nri,io->nro", x, parameters[0]) + parameters[1],
        "sum_pool2d": lambda: pool_by_loops(
            np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0))), (2, 3), (1, 3), np.sum
        ),
        "reshape": lambda: np.array([row.ravel().reshape(8, 6) for row in x]),
        "pad2d": lambda: np.concatenate([np.zeros((7, 1, 6, 2)), x, np.zeros((7, 2, 6, 2))], axis=1),
        "add": lambda: x - inputs[1] - inputs[2],
        "concatenate": lambda: np.hstack(inputs),
        "scale": lambda: x * [0.75, -3.0],
        "add_constant": lambda: x - 0.75,
        "reduce_sum": lambda: np.einsum("nri->nr", x)[..., None],
        "truncate": lambda: x,
        "relu": lambda: (x + abs(x)) / 2,
        "max_pool2d": lambda: pool_by_loops(
            np.pad(x, ((0, 0), (0, 0), (1, 0), (0, 0)), constant_values=-np.inf), (2, 3), (2, 2), np.max
        ),
        "reduce_max": lambda: np.array([[[max(row)] for row in rows] for rows in x.tolist()]),
        "multiply": lambda: x * inputs[1][:, None],
        # Slopes -1/2, 1/2, 1, -3/2 between -1, 0 and 1/2; 1 at 0 less half of the way from -1.
        "piecewise_linear": lambda: np.interp(x, [-2.0, -1.0, 0.0, 0.5, 2.0], [2.0, 1.5, 2.0, 2.5, 0.25]),
        "top_k": lambda: np.array([sorted(range(5), key=lambda i: (-row[i], i))[:3] for row in x.tolist()]),
        # Of all labels the likeliest.
        "randomised_response": lambda: x,
    }[kind]()


def conv_by_loops(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Box of two values three columns apart, then 2x2 with rows two apart, two groups."""
    x = np.pad(x, ((0, 0), (0, 1), (1, 0), (0, 0)))
    boxed = x[:, :, :-3] + x[:, :, 3:]
    z = np.zeros((len(x), 3, 2, 4))
    for i, j, f in np.ndindex(3, 2, 4):
        group = f // 2
        for u, v in np.ndindex(2, 2):
            z[:, i, j, f] += boxed[:, i + 2 * u, 2 * j + v, group] * kernel[u, v, 0, f]
    return z + bias


def pool_by_loops(x: np.ndarray, pool: tuple[int, int], strides: tuple[int, int], reduce: Any) -> np.ndarray:
    rows, columns = ((x.shape[a + 1] - pool[a]) // strides[a] + 1 for a in (0, 1))
    z = np.zeros((len(x), rows, columns, x.shape[3]))
    for i, j in np.ndindex(rows, columns):
        top, left = i * strides[0], j * strides[1]
        z[:, i, j] = reduce(x[:, top : top + pool[0], left : left + pool[1]], axis=(1, 2))
    return z


@pytest.mark.parametrize("kind", EXAMPLES)
def test_its_plain_twin_is_its_definition(kind: str) -> None:
    given, inputs, parameters = real(kind)

    assert given.shape == (7, *EXAMPLES[kind][0].output_shape)
    np.testing.assert_allclose(given, expected(kind, inputs, parameters), atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("conv2d", {"output_shape": (3, 2, 5)}),
        ("conv2d", {"groups": 3}),
        ("conv2d", {"groups": 1}),
        ("conv2d", {"kernel_shape": (2, 2, 1, 3), "output_shape": (3, 2, 3)}),
        ("conv2d", {"dilation": (9, 1)}),
        ("conv2d", {"inputs": (0, 0)}),
        ("conv2d", {"input_shape": (4, 12)}),
        ("dense", {"output_shape": (4, 2)}),
        ("sum_pool2d", {"pool": (9, 1)}),
        ("reshape", {"output_shape": (47,)}),
        ("pad2d", {"padding": ((1, 1), (0, 0))}),
        ("add", {"signs": (1, -1)}),
        ("add", {"inputs": (0, 0)}),
        ("add", {"input_shapes": ((1,), LIST, (1,))}),
        ("add", {"input_shapes": (LIST, (4,), (1,))}),
        ("add", {"input_shapes": (LIST, (1, 5), (1,))}),
        ("concatenate", {"axis": 2}),
        ("concatenate", {"input_shapes": ((2, 3), (4, 2))}),
        ("concatenate", {"input_shapes": ((2, 3), (4,))}),
        ("concatenate", {"output_shape": (5, 3)}),
        ("scale", {"factors": (1, 2, 3)}),
        ("reduce_sum", {"output_shape": (3,)}),
        ("relu", {"ignore_bits": 9}),
        ("relu", {"output_shape": (4,)}),
        ("max_pool2d", {"padding": ((0, 0), (3, 0))}),
        ("max_pool2d", {"output_shape": (2, 2, 2)}),
        ("reduce_max", {"output_shape": (1, 5)}),
        ("multiply", {"input_shapes": ((2, 3, 2), (3, 3))}),
        ("multiply", {"inputs": (0, 0, 0), "input_shapes": ((2, 3, 2), (1, 2), (1, 2))}),
        ("piecewise_linear", {"knots": (0, 0, 1)}),
        ("piecewise_linear", {"knots": (3, 2, 1)}),
        ("piecewise_linear", {"slopes": (1, 2)}),
        ("top_k", {"k": 6, "output_shape": (6,)}),
        ("top_k", {"k": 2}),
        ("top_k", {"input_shape": (1,), "k": 1, "output_shape": (1,)}),
        # Of 16 entries, 4 for each of four wrong labels leave none for the label itself.
        ("randomised_response", {"others": 4}),
        ("randomised_response", {"others": 0}),
        ("randomised_response", {"output_shape": (2,)}),
    ],
)  # fmt: skip
def test_a_step_that_does_not_follow_within_itself_is_refused(kind: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"plan, step 's': "):
        msgspec.structs.replace(EXAMPLES[kind][0], **changes)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("add", [{}, {"fraction_bits": 9}, {}]),
        ("add", [{}, {"ring_bits": 32}, {}]),
        ("concatenate", [{}, {"fraction_bits": 9}]),
        ("multiply", [{}, {"ring_bits": 32}]),
        ("truncate", [{"fraction_bits": 3}]),
        ("relu", [{"fraction_bits": 3}]),
        # The narrower the ring, the narrower the window.
        ("piecewise_linear", [{"ring_bits": 32, "fraction_bits": 28}]),
        ("piecewise_linear", [{"fraction_bits": 1}]),
        ("top_k", [{"fraction_bits": 1}]),
        ("randomised_response", [{"fraction_bits": 1}]),
        ("randomised_response", [{"ring_bits": 32}]),
    ],
)
def test_values_that_a_step_cannot_take_are_refused(kind: str, changes: list[dict[str, Any]]) -> None:
    step, values = EXAMPLES[kind]
    given = tuple(value._replace(**change) for value, change in zip(values, changes, strict=True))

    with pytest.raises(UsageError, match=r"plan, step 's': "):
        step.follow(given)


@pytest.mark.parametrize(
    ("kind", "bits", "window", "ring", "fits"),
    [
        # A sign takes the whole ring of its input, a truncation all but one bit of it.
        ("relu", 4, 28, 32, True), ("relu", 4, 29, 32, False),
        ("truncate", 4, 27, 32, True), ("truncate", 4, 28, 32, False), ("truncate", 0, 31, 32, True),
        ("truncate", 4, 59, 64, True),
        ("truncate", 4, 60, 64, False), ("relu", 0, 32, 64, True),
    ],
)  # fmt: skip
def test_a_window_has_to_fit_the_ring(kind: str, bits: int, window: int, ring: int, fits: bool) -> None:
    step = msgspec.structs.replace(EXAMPLES[kind][0], bits=bits, window_bits=window, ring_bits=64)
    given = (Value(LIST, 8, ring, 1.0),)

    if fits:
        assert step.follow(given).fraction_bits == 8 - bits
        with pytest.raises(UsageError, match="too wide"):
            msgspec.structs.replace(step, ring_bits=32, window_bits=32).follow(given)
    else:
        with pytest.raises(UsageError, match="too wide"):
            step.follow(given)


def test_a_comparison_that_no_table_has_is_refused() -> None:
    def follow(kind: str, **changes: int) -> Value:
        return msgspec.structs.replace(EXAMPLES[kind][0], **changes).follow(
            (Value(shapes[kind], 8, 64, 1.0),)
        )

    shapes = {kind: EXAMPLES[kind][1][0].shape for kind in EXAMPLES}
    assert WIDEST_COMPARISON == MOST_WINDOW_BITS
    for kind in ("max_pool2d", "reduce_max", "piecewise_linear"):
        follow(kind, window_bits=42)
        with pytest.raises(UsageError, match="43 bits is too wide; at most 42 are compared"):
            follow(kind, window_bits=43)
    follow("relu", window_bits=50, ignore_bits=8, bits=0, ring_bits=64)
    with pytest.raises(UsageError, match="43 bits is too wide"):
        follow("relu", window_bits=50, ignore_bits=7, bits=0, ring_bits=64)
    follow("top_k", window_bits=30)
    with pytest.raises(UsageError, match="31 bits is too wide; at most 30 are compared"):
        follow("top_k", window_bits=31)


def test_pieces_that_drop_nothing_stay_in_their_ring() -> None:
    step, _ = EXAMPLES["piecewise_linear"]
    small = (Value(LIST, 8, 32, 2.0),)

    assert msgspec.structs.replace(step, bits=0, ring_bits=32).follow(small).ring_bits == 32
    with pytest.raises(UsageError, match="stays in its argument's ring"):
        msgspec.structs.replace(step, bits=0, ring_bits=64).follow(small)


# Plans as graphs.


def relu(name: str, value: int) -> Relu:
    return Relu(name=name, inputs=(value,), input_shape=LIST, output_shape=LIST, bits=0, window_bits=12)


def graph(*steps: Step) -> Plan:
    return Plan(
        name="graph", input_shape=LIST, output_shape=steps[-1].output_shape, input_low=-1.0, input_high=1.0,
        fraction_bits=8, layers=steps,
    )  # fmt: skip


def add(*values: int) -> Add:
    shapes = (LIST,) * len(values)
    return Add(name="add", inputs=values, input_shapes=shapes, output_shape=LIST, signs=(1,) * len(values))


def test_values_are_let_go_after_their_last_use() -> None:
    plan = graph(relu("a", 0), relu("b", 0), add(1, 2), add(3, 1))

    assert plan.last_uses == (1, 3, 2, 3, 4)
    assert [value.shape for value in plan.inputs_of(2)] == [LIST, LIST]
    assert [value.bound for value in plan.values] == [2.0, 8.0, 8.0, 16.0, 32.0]


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ((relu("a", 1),), "takes value 1, of 0 to 0"),
        ((relu("a", 0), relu("b", 3)), "takes value 3, of 0 to 1"),
        ((relu("a", 0), relu("b", 0)), r"nothing takes the values \[1\]"),
        ((relu("a", 0), EXAMPLES["reduce_sum"][0]), "expected to take"),
    ],
)
def test_a_graph_that_does_not_hold_together_is_refused(steps: tuple[Step, ...], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        graph(*steps)


def test_values_that_do_not_fit_their_words_are_refused() -> None:
    wide = Dense(
        name="wide", inputs=(0,), input_shape=LIST, output_shape=LIST, weight_fraction_bits=40, bound=2.0**15
    )

    assert graph(wide).output_fraction_bits == 48
    with pytest.raises(UsageError, match="step 'wide': values below 65536 with 48 fraction bits in 64-bit"):
        graph(msgspec.structs.replace(wide, bound=2.0**16))
    for bound in (3.0, 0.0, -2.0, math.inf, math.nan):
        with pytest.raises(UsageError, match="expected a power of two"):
            graph(msgspec.structs.replace(wide, bound=bound))


def test_the_input_is_below_its_bound_also_when_rounded() -> None:
    plan = graph(relu("a", 0))
    below_one = msgspec.structs.replace(plan, input_low=0.0, input_high=1 - 2.0**-20)

    # Rounded to 8 bits, the largest input is 1.
    assert below_one.values[0].bound == 2.0


@pytest.mark.parametrize(
    ("size", "power"), [(1.0, 1.0), (1.01, 2.0), (0.75, 1.0), (4.0, 4.0), (2.0**-20, 2.0**-20)]
)
def test_power_of_two_is_the_least_that_is_not_below(size: float, power: float) -> None:
    assert power_of_two(size) == power


def test_a_repeated_edge_changes_no_maximum() -> None:
    x = np.random.default_rng(0).normal(size=(3, 4, 5, 2))
    margins = ((1, 2), (0, 1))

    padded = np.pad(x, ((0, 0), *margins, (0, 0)), constant_values=-np.inf)

    repeated = windows.patches(windows.repeat_edge(x, margins), (3, 2), (1, 2)).max(axis=(4, 5))
    np.testing.assert_array_equal(repeated, windows.patches(padded, (3, 2), (1, 2)).max(axis=(4, 5)))
