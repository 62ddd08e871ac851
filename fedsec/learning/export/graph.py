"""A Keras model as a flat list of calls: nested models unfolded, layers that do nothing left out.

Keras keeps a model as nodes: one layer or operation called on tensors. What is read here is what Keras itself
goes by when it computes a functional model (``keras.src.ops.function.Function``); it has no public name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fedsec.errors import UnsupportedModelError
from fedsec.learning.backend import keras

# Keras names the class of a functional model nowhere else.
_FUNCTIONAL = type(keras.Sequential([keras.Input((1,)), keras.layers.Identity()])._functional)  # noqa: SLF001

Shape = tuple[int, ...]

_LONGEST_NAME = 90


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One layer or operation, called on earlier values.

    Value 0 is the model's input; call number i makes value i + 1. A layer called twice is two calls.
    """

    operation: Any
    """A Keras layer, or an operation such as the one behind ``x + y``."""

    name: str
    """Of the layer, behind those of the models around it; unique in the model."""

    inputs: tuple[int, ...]
    input_shapes: tuple[Shape, ...]
    """Without the batch."""

    output_shape: Shape
    operands: tuple[Any, ...] = ()
    """The positional arguments of an operation, with None for each tensor."""


def calls_of(model: Any, ignored: frozenset[type]) -> list[Call]:
    """Return what a model computes, in an order in which it can be computed; the last call is the answer.

    Args:
        model: Any built Keras model with one input and one output.
        ignored: Layers that hand on what they get in a prediction; they are left out.

    Raises:
        UnsupportedModelError: If the model is no graph of layers, has several inputs or outputs, or does not
            know its shapes; the text says what to do.
    """
    graph = _graph_of(model)
    ends = {"input": graph.inputs, "output": graph.outputs}
    for end, tensors in ends.items():
        if len(tensors) != 1:
            raise UnsupportedModelError(
                f"model {model.name!r} has {len(tensors)} {end}s, expected one: join them (Concatenate), or"
                " serve a model with one of them"
            )
    walk = _Walk(ignored)
    walk.through(graph, [0], prefix="")
    if not walk.calls:
        raise UnsupportedModelError(f"model {model.name!r} computes nothing: there is no layer to share")
    return walk.calls


class _Walk:
    """The calls so far, and the names that they have."""

    def __init__(self, ignored: frozenset[type]) -> None:
        self.calls: list[Call] = []
        self._ignored = ignored
        self._names: set[str] = set()

    def through(self, graph: Any, inputs: Sequence[int], prefix: str) -> list[int]:
        """Add what a graph computes from given values; return the numbers of its outputs."""
        numbers = dict(zip(map(id, graph.inputs), inputs, strict=True))
        for node in _in_order(graph):
            operation = node.operation
            given = [numbers[id(tensor)] for tensor in node.input_tensors]
            if isinstance(operation, keras.Model):
                outputs = self._nested(operation, node, given, prefix)
            elif type(operation) in self._ignored:
                outputs = given
            else:
                outputs = [self._add(node, given, prefix)]
            # Layers with several outputs are refused by their type, after the walk.
            numbers.update(zip(map(id, node.outputs), outputs, strict=False))
        return [numbers[id(tensor)] for tensor in graph.outputs]

    def _nested(self, model: Any, node: Any, given: list[int], prefix: str) -> list[int]:
        graph = _graph_of(model)
        if any(isinstance(each, dict) for each in (*node.arguments.args, *node.arguments.kwargs.values())):
            # Keras may match them by name, whatever their order.
            raise UnsupportedModelError(
                f"model {prefix + model.name!r} is called on tensors by name: call it on a list of them, in"
                " the order of its inputs"
            )
        wanted, got = ([tensor.shape for tensor in tensors] for tensors in (graph.inputs, node.input_tensors))
        if wanted != got:
            raise UnsupportedModelError(
                f"model {prefix + model.name!r} takes {wanted} and is called on {got}: call it on tensors of"
                " exactly these shapes, in this order"
            )
        return self.through(graph, given, f"{prefix}{model.name}/")

    def _add(self, node: Any, given: list[int], prefix: str) -> int:
        # The end tells the layer; names in a plan have at most 128 characters, with what is added to them.
        name = again = (prefix + str(node.operation.name))[-_LONGEST_NAME:]
        count = 1
        while again in self._names:
            count += 1
            again = f"{name} ({count})"
        self._names.add(again)
        self.calls.append(
            Call(
                operation=node.operation,
                name=again,
                inputs=tuple(given),
                input_shapes=tuple(tuple(tensor.shape[1:]) for tensor in node.input_tensors),
                output_shape=tuple(node.outputs[0].shape[1:]),
                operands=tuple(_operand(argument) for argument in node.arguments.args),
            )
        )
        return len(self.calls)


def _graph_of(model: Any) -> Any:
    """Return the functional graph of a model, or say why there is none."""
    own_code = not any(
        isinstance(model, base) and type(model).call is base.call for base in (keras.Sequential, _FUNCTIONAL)
    )
    if own_code:
        raise UnsupportedModelError(
            f"model {getattr(model, 'name', model)!r} is a {type(model).__name__}, whose own code is not"
            " seen: expected a keras.Sequential or a functional keras.Model(inputs, outputs)"
        )
    graph = model._functional if isinstance(model, keras.Sequential) else model  # noqa: SLF001 - see above
    if graph is None or any(None in tensor.shape[1:] for tensor in graph.inputs):
        raise UnsupportedModelError(
            f"model {model.name!r} does not know its input shape: begin it with keras.Input(shape), whose"
            " sizes are all given, or train it first"
        )
    return graph


def _in_order(graph: Any) -> Iterator[Any]:
    """Give a graph's nodes, each after those whose values it takes."""
    by_depth = graph._nodes_by_depth  # noqa: SLF001 - see above
    for depth in sorted(by_depth, reverse=True):
        for node in by_depth[depth]:
            if not node.is_input:
                yield node


def _operand(argument: Any) -> Any:
    return None if isinstance(argument, keras.KerasTensor) else argument
