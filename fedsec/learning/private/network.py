"""A Keras model, walked with every trained layer's input and value before its activation at hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fedsec.errors import UnsupportedModelError
from fedsec.learning.backend import keras, tf
from fedsec.learning.private.rules import RULES, ConvolutionView, Rule

_REFUSED = (keras.layers.BatchNormalization,)
# Keras names the class of a functional model nowhere else.
_FUNCTIONAL = type(keras.Sequential([keras.Input((1,)), keras.layers.Identity()])._functional)  # noqa: SLF001
_CONTAINERS = (keras.Sequential, _FUNCTIONAL)


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """One trained layer in one pass.

    Attributes:
        variables: Its trained variables, in the order of the rule's gradients.
        layer: The layer, or a view of it that the rule takes.
        rule: How its gradients are had.
        x: Its input.
        z: Its value before the activation.
    """

    variables: list[Any]
    layer: Any
    rule: Rule
    x: Any
    z: Any


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """What is known of a model before it is trained.

    Attributes:
        model: The model.
        uncovered: Why single passes are not possible, in words; empty when every trained layer has a rule.
        pooled: For each convolution, by its identity, that only an average pooling follows: that layer.
    """

    model: Any
    uncovered: str = ""
    pooled: dict[int, Any] = field(default_factory=dict)

    def watched(self, x: Any, tape: tf.GradientTape) -> tuple[Any, list[Use]]:
        """Run the model as in training; ``tape`` watches the value before each trained layer's activation.

        Args:
            x: A batch of inputs, as the model takes them.
            tape: A tape that watches no variables.
        """
        graph, run = _graph(self.model), _Pass(self, tape)
        return run.through(graph, graph._standardize_inputs(x)), run.uses  # noqa: SLF001 - as Functional.call


def examined(model: Any) -> Network:
    """Return what is needed to train a model privately.

    Raises:
        UnsupportedModelError: If the model mixes examples or has a regulariser; the text says what to use.
    """
    layers = list(_layers(model))
    # Layers inside layers of somebody's own, too.
    for layer in model._flatten_layers(include_self=False):  # noqa: SLF001 - it has no public name
        _check(layer)
    reason = _uncovered(model, layers)
    return Network(model, reason, {} if reason else _pooled(model))


def _layers(model: Any) -> Iterator[Any]:
    """Give all layers that are no containers, those of nested models too."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer)
        else:
            yield layer


def _check(layer: Any) -> None:
    name = f"layer {layer.name!r} ({type(layer).__name__})"
    # Frozen it uses what it has, and joins nothing.
    if isinstance(layer, _REFUSED) and layer.trainable:
        raise UnsupportedModelError(
            f"{name} joins the examples of a batch, so no single example's part can be bounded: use"
            " LayerNormalization or GroupNormalization instead"
        )
    for variable in layer.trainable_variables:
        if variable.dtype not in {"float32", "float64"}:
            raise UnsupportedModelError(
                f"{name} keeps its parameters in {variable.dtype}, too coarse to bound a norm: use float32"
            )
    named = ("kernel_regularizer", "bias_regularizer", "activity_regularizer", "embeddings_regularizer")
    for option in (*named, "gamma_regularizer", "beta_regularizer", "depthwise_regularizer"):
        if getattr(layer, option, None) is not None:
            raise UnsupportedModelError(
                f"{name} has {option}: use the optimizer's weight_decay, which needs no example"
            )


def _uncovered(model: Any, layers: list[Any]) -> str:
    """Return why the trained layers cannot all be taken in a single pass; empty when they can."""
    if not _is_graph(model):
        return f"{type(model).__name__} computes by code of its own"
    calls = Counter(id(node.operation) for graph in _graphs(model) for node in _nodes(graph))
    for layer in layers:
        if not layer.trainable_variables:
            continue
        name = f"layer {layer.name!r} ({type(layer).__name__})"
        if type(layer) not in RULES:
            return f"{name} has no rule of its own"
        if calls[id(layer)] != 1:
            return f"{name} is used {calls[id(layer)]} times"
        if reason := _unusual(layer):
            return f"{name} {reason}"
    shared = Counter(id(variable) for layer in layers for variable in layer.trainable_variables)
    if any(count > 1 for count in shared.values()):
        return "two layers share a variable"
    return ""


def _unusual(layer: Any) -> str:
    """Return what about a layer its rule does not know; empty when nothing."""
    if len(layer.trainable_variables) != len(layer.weights):
        return "is partly frozen"
    if layer.compute_dtype != layer.variable_dtype:
        return "computes in another precision than it keeps"
    if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
        return "is adapted or quantised"
    checks = (
        ("data_format", "channels_last", "has its channels first"),
        ("mask_zero", False, "masks zeros"),
        ("rms_scaling", False, "normalises without a mean"),
    )
    for attribute, usual, text in checks:
        if getattr(layer, attribute, usual) != usual:
            return text
    if type(layer) is keras.layers.GroupNormalization and layer.axis not in {-1, len(layer.input_spec.axes)}:
        return "normalises along another axis than the last"
    return ""


def _is_graph(model: Any) -> bool:
    return all(
        any(isinstance(one, base) and type(one).call is base.call for base in _CONTAINERS)
        for one in (model, *_nested(model))
    )


def _nested(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield layer
            yield from _nested(layer)


def _graph(model: Any) -> Any:
    return model._functional if isinstance(model, keras.Sequential) else model  # noqa: SLF001 - it has no public name


def _graphs(model: Any) -> Iterator[Any]:
    yield _graph(model)
    for nested in _nested(model):
        yield _graph(nested)


def _nodes(graph: Any) -> Iterator[Any]:
    for nodes in graph._nodes_by_depth.values():  # noqa: SLF001 - it has no public name
        yield from (node for node in nodes if not node.is_input)


def _pooled(model: Any) -> dict[int, Any]:
    """Find convolutions with stride 1 and no activation behind which there is nothing but an average pooling.

    Both together are one convolution, with the pooling's stride, of the input averaged over its windows: the
    same function with a fraction of the multiplications, forward and backward.
    """
    found: dict[int, Any] = {}
    for graph in _graphs(model):
        takers: dict[int, list[Any]] = {}
        for node in _nodes(graph):
            for tensor in node.input_tensors:
                takers.setdefault(id(tensor), []).append(node.operation)
        ends = {id(tensor) for tensor in graph.outputs}
        for node in _nodes(graph):
            behind = takers.get(id(node.outputs[0]), [])
            if len(behind) == 1 and id(node.outputs[0]) not in ends and _joins(node.operation, behind[0]):
                found[id(node.operation)] = behind[0]
    return found


def _joins(layer: Any, pooling: Any) -> bool:
    return (
        type(layer) is keras.layers.Conv2D
        # What is frozen is computed as Keras does, and so is the pooling behind it.
        and layer.trainable
        and type(pooling) is keras.layers.AveragePooling2D
        and layer.padding == "valid"
        and tuple(layer.strides) == tuple(layer.dilation_rate) == (1, 1)
        and layer.activation is keras.activations.linear
        and (pooling.padding, pooling.data_format) == ("valid", "channels_last")
        and tuple(pooling.strides) == tuple(pooling.pool_size)
    )


class _Pass:
    """One run through the graph."""

    def __init__(self, network: Network, tape: tf.GradientTape) -> None:
        self.uses: list[Use] = []
        self._network = network
        self._skipped = {id(layer) for layer in network.pooled.values()}
        self._tape = tape

    def through(self, graph: Any, x: Any) -> Any:
        # What Keras' own Functional.call does, with another way to compute the trained layers.
        return graph._run_through_graph(x, operation_fn=self._operation)  # noqa: SLF001

    def _operation(self, operation: Any) -> Callable[..., Any]:
        if isinstance(operation, keras.Model):
            return lambda x, *_args, **_kwargs: self.through(_graph(operation), x)
        if id(operation) in self._skipped:
            return lambda x: x
        if getattr(operation, "trainable_variables", None):
            return lambda x, *_args, **_kwargs: self._trained(operation, x)
        if getattr(operation, "_call_has_training_arg", False):
            return lambda *args, **kwargs: operation(*args, **{**kwargs, "training": True})
        return operation  # type: ignore[no-any-return]

    def _trained(self, layer: Any, x: Any) -> Any:
        rule, x, view = RULES[type(layer)], tf.convert_to_tensor(x), layer
        if pooling := self._network.pooled.get(id(layer)):
            # The mean over a window, then the kernel at the pooling's stride: see _pooled.
            x = tf.nn.avg_pool2d(x, pooling.pool_size, 1, "VALID")
            view = ConvolutionView.of(layer, strides=tuple(pooling.strides))
        z = rule.forward(view, x)
        self._tape.watch(z)
        self.uses.append(Use(layer.trainable_variables, view, rule, x, z))
        activation = getattr(layer, "activation", None)
        return z if activation is None else activation(z)
