"""A network with fewer layers that computes the same on real numbers.

* A scale and shift for each channel (batch normalisation, rescaling) goes into the linear layer before it,
  through average pooling if one is between, or into the linear layer after it.
* Zeros around an image go into the convolution after them.

What a value is also used for elsewhere stays as it was.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedsec.nn.network import (
    AffineLayer,
    AveragePoolLayer,
    ConvLayer,
    DenseLayer,
    FlattenLayer,
    Floats,
    Network,
    NetworkLayer,
    PadLayer,
    RescaleLayer,
    ReshapeLayer,
)


def simplify(network: Network, *, parameters: bool = True) -> Network:
    """Return a network that gives the same output on real numbers, in fewer layers.

    Args:
        network: Any network.
        parameters: Whether parameters may change: without, only zeros around images go elsewhere.
    """
    graph = _Graph(network, parameters=parameters)
    for number in range(len(graph.layers)):
        graph.fold(number)
    return graph.finish()


class _Graph:
    """Layers that are folded into others one by one. A layer that was is passed by: ``passed`` says to what.

    Values are numbered as in the network throughout.
    """

    def __init__(self, network: Network, *, parameters: bool) -> None:
        self.network = network
        self.parameters = parameters
        self.layers = [
            replace(layer, inputs=network.inputs_of(number)) for number, layer in enumerate(network.layers)
        ]
        self.passed: dict[int, int] = {}
        self.uses = [0] * (len(self.layers) + 1)
        for layer in self.layers:
            for value in layer.inputs:
                self.uses[value] += 1
        # The answer is used, too.
        self.uses[-1] += 1

    def fold(self, number: int) -> None:
        layer = replace(self.layers[number], inputs=tuple(map(self._resolved, self.layers[number].inputs)))
        self.layers[number] = layer
        match layer:
            case AffineLayer() | RescaleLayer() if self.parameters:
                self._fold_back(number, layer)
            case ConvLayer() | DenseLayer():
                self._fold_in(number, layer)
            case _:
                pass

    def finish(self) -> Network:
        """Number what is left anew."""
        numbers = {0: 0}
        kept: list[NetworkLayer] = []
        for number, layer in enumerate(self.layers):
            if number + 1 in self.passed:
                continue
            kept.append(replace(layer, inputs=tuple(numbers[self._resolved(v)] for v in layer.inputs)))
            numbers[number + 1] = len(kept)
        return replace(self.network, layers=tuple(kept))

    def _resolved(self, value: int) -> int:
        while value in self.passed:
            value = self.passed[value]
        return value

    def _only_source(self, value: int) -> int | None:
        """Return the number of the layer that makes a value which is used only once."""
        value = self._resolved(value)
        return value - 1 if value > 0 and self.uses[value] == 1 else None

    def _fold_back(self, number: int, layer: AffineLayer | RescaleLayer) -> None:
        """Fold a scale and shift into the linear layer before it: a mean keeps both."""
        source = self._only_source(layer.inputs[0])
        while source is not None and isinstance(self.layers[source], AveragePoolLayer):
            source = self._only_source(self.layers[source].inputs[0])
        before = None if source is None else self.layers[source]
        if source is None or not isinstance(before, ConvLayer | DenseLayer):
            return
        scale, shift = _scale_and_shift(layer, len(before.bias))
        if len(scale) != len(before.bias):
            return
        self.layers[source] = replace(before, kernel=before.kernel * scale, bias=before.bias * scale + shift)
        self._pass_by(number)

    def _fold_in(self, number: int, layer: ConvLayer | DenseLayer) -> None:
        """Fold what comes right before a linear layer into it, as long as there is something."""
        source = self._only_source(layer.inputs[0])
        # One scale for all values stays what it is through other shapes.
        through = source
        while through is not None and isinstance(self.layers[through], FlattenLayer | ReshapeLayer):
            through = self._only_source(self.layers[through].inputs[0])
        if through is not None and isinstance(self.layers[through], RescaleLayer):
            source = through
        folded = None if source is None else _after(self.layers[source], layer)
        if (
            source is None
            or folded is None
            or not (self.parameters or isinstance(self.layers[source], PadLayer))
        ):
            return
        self.layers[number] = folded
        self._pass_by(source)
        self.fold(number)

    def _pass_by(self, number: int) -> None:
        """Let what takes a layer's output take its input."""
        (value,) = self.layers[number].inputs
        self.passed[number + 1] = value
        self.uses[value] += self.uses[number + 1] - 1


def _after(before: NetworkLayer, layer: ConvLayer | DenseLayer) -> ConvLayer | DenseLayer | None:
    """Return one linear layer in place of two layers, or nothing."""
    match before:
        case PadLayer() if isinstance(layer, ConvLayer):
            (top, bottom), (left, right) = (
                (old[0] + new[0], old[1] + new[1])
                for old, new in zip(layer.padding, before.padding, strict=True)
            )
            return replace(layer, padding=((top, bottom), (left, right)))
        case AffineLayer() | RescaleLayer():
            return _with_scaled_input(before, layer)
        case _:
            return None


def _with_scaled_input(
    before: AffineLayer | RescaleLayer, layer: ConvLayer | DenseLayer
) -> ConvLayer | DenseLayer | None:
    groups = layer.groups if isinstance(layer, ConvLayer) else 1
    scale, shift = _scale_and_shift(before, layer.kernel.shape[-2] * groups)
    # A margin of zeros would have to be one of shifted zeros.
    padded = isinstance(layer, ConvLayer) and layer.padding != ((0, 0), (0, 0))
    if len(scale) != layer.kernel.shape[-2] * groups or (padded and np.any(shift)):
        return None
    of_kernel = _for_groups(scale, groups, layer.kernel.shape[-1])
    moved = layer.kernel * _for_groups(shift, groups, layer.kernel.shape[-1])
    bias = layer.bias + moved.reshape(-1, layer.kernel.shape[-1]).sum(axis=0)
    return replace(layer, kernel=layer.kernel * of_kernel, bias=bias)


def _for_groups(channels: Floats, groups: int, filters: int) -> Floats:
    """Return what belongs to each channel of each filter's group: shape [channels of a group, filters]."""
    return np.repeat(channels.reshape(groups, -1).T, filters // groups, axis=1)


def _scale_and_shift(layer: AffineLayer | RescaleLayer, size: int) -> tuple[Floats, Floats]:
    if isinstance(layer, AffineLayer):
        return layer.scale, layer.shift
    return np.full(size, layer.scale), np.full(size, layer.offset)
