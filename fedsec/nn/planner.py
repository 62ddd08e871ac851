"""From a network in the clear to a plan and its parameters: fuse, fold, bound, refuse.

* A convolution and the average pooling after it become one step (see ``plan.Conv2D``).
* No pooling ever divides on shares. The division by the pool's size goes into the nearest kernel, which
  gets ceil(log2(size)) fraction bits more, so that no precision is lost; for a 2x2 pool the ring elements
  are exactly those of the kernel that was not divided.
* Products are truncated to ``fraction_bits`` as soon as they exist, except the last, whose consumer decodes.
"""

from __future__ import annotations

import math

import numpy as np

from fedsec.errors import UnsupportedModelError
from fedsec.nn import bounds, plan, windows
from fedsec.nn.network import (
    AveragePoolLayer,
    ConvLayer,
    DenseLayer,
    FlattenLayer,
    Floats,
    Network,
    NetworkLayer,
    ReluLayer,
)
from fedsec.nn.weights import Weights
from fedsec.ring import RING64, decode, encode


def plan_network(network: Network, *, fraction_bits: int = 16) -> tuple[plan.Plan, Weights]:
    """Plan a network for computation on shares.

    Args:
        network: The trained network.
        fraction_bits: Binary digits behind the point of inputs and of values between layers.

    Returns:
        The public plan, and the parameters in its order, folded where a pooling was.

    Raises:
        UnsupportedModelError: If layers do not fit each other, a parameter is not finite, or a value could
            leave the ring; the text names the layer, the bound and what to do.
    """
    builder = _Builder(network, fraction_bits)
    rest = list(network.layers)
    while rest:
        layer = rest.pop(0)
        if isinstance(layer, ConvLayer):
            fused = rest.pop(0) if rest and isinstance(rest[0], AveragePoolLayer) else None
            builder.convolve(layer, fused if isinstance(fused, AveragePoolLayer) else None, last=not rest)
        else:
            builder.add(layer, last=not rest)
    return builder.finish()


class _Builder:
    """The plan so far, and the bounds of the values that its last step gives."""

    def __init__(self, network: Network, fraction_bits: int) -> None:
        self.network = network
        self.fraction_bits = fraction_bits
        self.shape = network.input_shape
        low, high = _rounded(np.array([network.input_low, network.input_high]), fraction_bits)
        self.interval = bounds.Interval.uniform(network.input_shape, low, high)
        self.pending = 1
        """What the values in shares are too large by: pools summed and not divided yet."""
        self.steps: list[plan.Step] = []
        self.weights: Weights = []

    @property
    def here(self) -> tuple[int]:
        return (len(self.steps),)

    def add(self, layer: NetworkLayer, *, last: bool) -> None:
        match layer:
            case DenseLayer():
                self.multiply(layer, last=last)
            case AveragePoolLayer():
                self.pool(layer)
            case ReluLayer():
                self.relu(layer)
            case FlattenLayer():
                flat = (math.prod(self.shape),)
                self.interval = self.interval.map(lambda values: values.reshape(1, -1))
                self._append(
                    plan.Reshape(name=layer.name, inputs=self.here, input_shape=self.shape, output_shape=flat)
                )
            case _:
                raise UnsupportedModelError(
                    f"layer {layer.name!r} is a {type(layer).__name__}, which cannot be planned yet"
                )

    def convolve(self, layer: ConvLayer, pool: AveragePoolLayer | None, *, last: bool) -> None:
        box, box_strides = (pool.pool, pool.strides) if pool else ((1, 1), (1, 1))
        down, across = layer.strides
        strides = (down * box_strides[0], across * box_strides[1])
        sizes = [self._image(layer)[axis] + sum(layer.padding[axis]) for axis in (0, 1)]
        joint = [layer.kernel.shape[i] + layer.strides[i] * (box[i] - 1) for i in (0, 1)]
        output = (*(windows.positions(sizes[i], joint[i], strides[i]) for i in (0, 1)), layer.kernel.shape[3])
        if layer.kernel.shape[2] != self.shape[2] or min(output) < 1:
            self._misfit(layer, f"a kernel of shape {list(layer.kernel.shape)}")
        kernel, bias, bits = self._folded(layer, math.prod(box))
        self.interval = self.interval.map(lambda values: windows.pad(values, layer.padding)).linear(
            bounds.with_box(kernel, box, layer.strides),
            bounds.with_box(np.abs(kernel), box, layer.strides),
            bias,
            lambda x, w: windows.conv2d(x, w, strides),
        )
        step = plan.Conv2D(
            name=layer.name,
            inputs=self.here,
            input_shape=self.shape,
            output_shape=output,
            kernel_shape=_four(layer.kernel.shape),
            strides=strides,
            padding=layer.padding,
            box=box,
            box_step=layer.strides,
            weight_fraction_bits=bits,
            bound=2.0**self.interval.exponent,
        )
        self._append_linear(step, last=last)

    def multiply(self, layer: DenseLayer, *, last: bool) -> None:
        if len(self.shape) != 1 or layer.kernel.shape[0] != self.shape[0]:
            self._misfit(
                layer, f"a matrix of shape {list(layer.kernel.shape)}; is a Flatten missing before it?"
            )
        kernel, bias, bits = self._folded(layer, 1)
        self.interval = self.interval.linear(kernel, np.abs(kernel), bias, np.matmul)
        step = plan.Dense(
            name=layer.name,
            inputs=self.here,
            input_shape=self.shape,
            output_shape=layer.kernel.shape[1:],
            weight_fraction_bits=bits,
            bound=2.0**self.interval.exponent,
        )
        self._append_linear(step, last=last)

    def pool(self, layer: AveragePoolLayer) -> None:
        image = self._image(layer)
        output = (*(windows.positions(image[i], layer.pool[i], layer.strides[i]) for i in (0, 1)), image[2])
        if min(output) < 1:
            self._misfit(layer, f"a pool of {list(layer.pool)}")
        places = math.prod(layer.pool)
        self.interval = self.interval.summed(
            lambda values: windows.sum_pool(values, layer.pool, layer.strides), places
        )
        self.pending *= places
        self._check_words(layer.name, self.fraction_bits, RING64.bits - 2)
        self._append(
            plan.SumPool2D(
                name=layer.name,
                inputs=self.here,
                input_shape=self.shape,
                output_shape=output,
                pool=layer.pool,
                strides=layer.strides,
            )
        )

    def relu(self, layer: ReluLayer) -> None:
        # One bit for the sign. Values of a few units need a window of two bits at least.
        window = max(2, 1 + self.fraction_bits + self.interval.exponent)
        self.interval = self.interval.relu()
        self._append(
            plan.Relu(
                name=layer.name,
                inputs=self.here,
                input_shape=self.shape,
                output_shape=self.shape,
                bits=0,
                window_bits=window,
            )
        )

    def finish(self) -> tuple[plan.Plan, Weights]:
        if not self.weights or self.pending != 1:
            raise UnsupportedModelError(
                f"model {self.network.name!r} has no Conv2D or Dense layer after its last average pooling,"
                " into which the mean's division could be folded; end the model with a Dense layer"
            )
        planned = plan.Plan(
            name=self.network.name,
            input_shape=self.network.input_shape,
            output_shape=self.shape,
            input_low=self.network.input_low,
            input_high=self.network.input_high,
            fraction_bits=self.fraction_bits,
            layers=tuple(self.steps),
        )
        return planned, self.weights

    def _folded(self, layer: ConvLayer | DenseLayer, pooled: int) -> tuple[Floats, Floats, int]:
        """Keep the layer's parameters with every open division in the kernel.

        Returns kernel and bias as they will be in the ring, and the kernel's fraction bits.
        """
        if not (np.isfinite(layer.kernel).all() and np.isfinite(layer.bias).all()):
            raise UnsupportedModelError(
                f"layer {layer.name!r} has parameters that are not finite, training has diverged;"
                " nothing was planned"
            )
        divisor = pooled * self.pending
        bits = self.fraction_bits + (divisor - 1).bit_length()
        kernel = layer.kernel / divisor
        self.weights += [kernel, layer.bias]
        self.pending = 1
        return _rounded(kernel, bits), _rounded(layer.bias, self.fraction_bits + bits), bits

    def _append_linear(self, step: plan.Conv2D | plan.Dense, *, last: bool) -> None:
        product_bits = self.fraction_bits + step.weight_fraction_bits
        # Truncation is proven for |z| < 2^(k-2); what is only decoded may use the whole ring.
        self._check_words(step.name, product_bits, RING64.bits - (1 if last else 2))
        self._append(step)
        if not last:
            self.interval = self.interval.truncated(self.fraction_bits)
            name = f"{step.name} truncate"
            bits = step.weight_fraction_bits
            window = max(2, 1 + self.fraction_bits + self.interval.exponent)
            self._append(
                plan.Truncate(
                    name=name,
                    inputs=self.here,
                    input_shape=self.shape,
                    output_shape=self.shape,
                    bits=bits,
                    window_bits=window,
                )
            )

    def _append(self, step: plan.Step) -> None:
        self.steps.append(step)
        self.shape = step.output_shape

    def _check_words(self, name: str, bits: int, available: int) -> None:
        needed = self.interval.exponent + bits
        if needed > available:
            raise UnsupportedModelError(
                f"layer {name!r} can reach {self.interval.size:.4g}, which with {bits} fraction bits needs"
                f" {needed} of {available} bits of a ring element and could wrap; use fewer fraction bits"
                f" (now {self.fraction_bits}), or train with smaller parameters (for example weight decay)"
            )

    def _image(self, layer: NetworkLayer) -> tuple[int, ...]:
        if len(self.shape) != 3:
            self._misfit(layer, "a layer for images")
        return self.shape

    def _misfit(self, layer: NetworkLayer, what: str) -> None:
        raise UnsupportedModelError(f"layer {layer.name!r} gets {list(self.shape)} and is {what}")


def _rounded(values: Floats, fraction_bits: int) -> Floats:
    return decode(encode(values, fraction_bits, RING64), fraction_bits)


def _four(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    height, width, channels, filters = shape
    return height, width, channels, filters
