"""How each layer of a network becomes steps of a plan."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from fedsec.errors import UnsupportedModelError
from fedsec.nn import bounds, plan
from fedsec.nn.activations import lower_function, lower_relu
from fedsec.nn.builder import FEWEST_WEIGHT_BITS, WIDEST_PRODUCT, Builder, Operand
from fedsec.nn.images import expect_image, lower_average, lower_max_pool, lower_pad, misfit, places_of
from fedsec.nn.network import (
    AddLayer,
    AffineLayer,
    AveragePoolLayer,
    ConcatenateLayer,
    ConvLayer,
    DenseLayer,
    FlattenLayer,
    FunctionLayer,
    MaxPoolLayer,
    MultiplyLayer,
    Network,
    NetworkLayer,
    PadLayer,
    ReluLayer,
    RescaleLayer,
    ReshapeLayer,
    SubtractLayer,
)


class Lowering:
    """Layers one after the other, in the order of the network."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self._pools = _fusions(builder.network)
        self._fused = {number for number, _ in self._pools.values()}

    def lower(self, number: int, inputs: Sequence[Operand]) -> Operand:
        """Append a layer's steps; returns its output.

        Raises:
            UnsupportedModelError: If the layer does not fit its input or a value could leave the ring.
        """
        layer = self.builder.network.layers[number]
        if number in self._fused:
            return inputs[0]
        if isinstance(layer, ConvLayer):
            return self._convolve(layer, inputs[0], self._pools[number][1] if number in self._pools else None)
        return self._one(layer, inputs)

    def _one(self, layer: NetworkLayer, inputs: Sequence[Operand]) -> Operand:
        match layer:
            case AddLayer():
                return self._add(layer, list(inputs), [1] * len(inputs))
            case SubtractLayer():
                return self._add(layer, list(inputs), [1] + [-1] * (len(inputs) - 1))
            case MultiplyLayer():
                return self._multiply(layer, inputs)
            case ConcatenateLayer():
                return self._concatenate(layer, list(inputs))
            case _:
                return self._unary(layer, inputs[0])

    def _unary(self, layer: NetworkLayer, x: Operand) -> Operand:
        match layer:
            case DenseLayer():
                return self._dense(layer, x)
            case AffineLayer():
                return self._affine(layer, x)
            case RescaleLayer():
                return self._rescale(layer, x)
            case ReluLayer():
                return lower_relu(self.builder, layer, x)
            case FunctionLayer():
                return lower_function(self.builder, layer, x)
            case _:
                return self._places_of(layer, x)

    def _places_of(self, layer: NetworkLayer, x: Operand) -> Operand:
        match layer:
            case FlattenLayer():
                return self.builder.reshaped(layer.name, x, (math.prod(self.builder.shape(x)),))
            case ReshapeLayer():
                return self._reshape(layer, x)
            case AveragePoolLayer():
                return lower_average(self.builder, layer, x)
            case MaxPoolLayer():
                return lower_max_pool(self.builder, layer, x)
            case PadLayer():
                return lower_pad(self.builder, layer, x)
            case _:
                raise UnsupportedModelError(f"layer {layer.name!r} is of a kind that cannot be planned")

    # Linear layers.

    def _convolve(self, layer: ConvLayer, x: Operand, pool: AveragePoolLayer | None) -> Operand:
        box, box_strides = (pool.pool, pool.strides) if pool else ((1, 1), (1, 1))
        image = expect_image(self.builder, layer, x)
        height, width, channels, filters = layer.kernel.shape
        strides = (layer.strides[0] * box_strides[0], layer.strides[1] * box_strides[1])
        reach = [
            layer.dilation[i] * ((height, width)[i] - 1) + 1 + layer.strides[i] * (box[i] - 1) for i in (0, 1)
        ]
        places = places_of(image, (reach[0], reach[1]), strides, layer.padding)
        if channels * layer.groups != image[2] or filters % layer.groups or min(places) < 1:
            raise self._misfit(layer, x, f"a kernel of shape {list(layer.kernel.shape)}")
        x = self.builder.dropped(layer.name, x)
        step = plan.Conv2D(
            name=layer.name,
            inputs=(x.value,),
            input_shape=self.builder.shape(x),
            output_shape=(*places, filters),
            kernel_shape=(height, width, channels, filters),
            strides=strides,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            box=box,
            box_step=layer.strides,
            weight_fraction_bits=0,
            bound=1.0,
        )
        return self._put_linear(step, layer, x, math.prod(box))

    def _dense(self, layer: DenseLayer, x: Operand) -> Operand:
        shape = self.builder.shape(x)
        if layer.kernel.shape[0] != shape[-1]:
            raise self._misfit(
                layer, x, f"a matrix of shape {list(layer.kernel.shape)}; is a Flatten missing before it?"
            )
        x = self.builder.dropped(layer.name, x)
        step = plan.Dense(
            name=layer.name,
            inputs=(x.value,),
            input_shape=shape,
            output_shape=(*shape[:-1], layer.kernel.shape[1]),
            weight_fraction_bits=0,
            bound=1.0,
        )
        return self._put_linear(step, layer, x, 1)

    def _put_linear(
        self, step: plan.Conv2D | plan.Dense, layer: ConvLayer | DenseLayer, x: Operand, pooled: int
    ) -> Operand:
        """Append a product, with every open division in its kernel."""
        builder = self.builder
        if not (np.isfinite(layer.kernel).all() and np.isfinite(layer.bias).all()):
            raise UnsupportedModelError(
                f"layer {layer.name!r} has parameters that are not finite, training has diverged;"
                " nothing was planned"
            )
        divisor = pooled * x.pending
        parameters = (layer.kernel / divisor, layer.bias)
        given = builder.values[x.value]
        folded = (divisor - 1).bit_length()
        number = len(builder.steps) + 1
        bits = builder.formats.weights.get(number, builder.formats.fraction_bits + folded)
        if given.ring_bits == 64:
            # What a product may have too many bits is taken from the kernel's.
            encoded = builder.encoded(_with_bits(step, bits), parameters, given)
            needed = given.fraction_bits + bits + bounds.product(step, builder.interval(x), encoded).exponent
            bits = max(bits - max(needed - WIDEST_PRODUCT, 0), min(bits, FEWEST_WEIGHT_BITS + folded))
        step = _with_bits(step, bits)
        # It depends on what comes next how much encode_weights adds to a bias.
        value = builder.put(
            step, builder.encoded(step, parameters, given), more=builder.formats.coarsest_unit
        )
        builder.weights += parameters
        builder.divisors.append(divisor)
        return Operand(value, product=True)

    def _affine(self, layer: AffineLayer, x: Operand) -> Operand:
        """A scale for each channel is a convolution of each channel with one number."""
        builder = self.builder
        shape = builder.shape(x)
        if len(layer.scale) != shape[-1] or len(layer.shift) != shape[-1]:
            raise self._misfit(layer, x, f"a scale and shift of {len(layer.scale)} channels")
        kernel = layer.scale.reshape(1, 1, 1, -1)
        one = ConvLayer(layer.name, kernel, layer.shift, groups=shape[-1])
        if len(shape) == 3:
            return self._convolve(one, x, None)
        image = builder.reshaped(layer.name, x, (*(1,) * (3 - len(shape)), *shape))
        return builder.reshaped(layer.name, self._convolve(one, image, None), shape)

    def _rescale(self, layer: RescaleLayer, x: Operand) -> Operand:
        builder = self.builder
        if not (math.isfinite(layer.scale) and math.isfinite(layer.offset)):
            raise UnsupportedModelError(f"layer {layer.name!r} has a scale or an offset that is not finite")
        x = builder.scaled(layer.name, builder.dropped(layer.name, x), layer.scale)
        if layer.offset == 0.0:
            return x
        shape = builder.shape(x)
        step = plan.AddConstant(
            name=layer.name, inputs=(x.value,), input_shape=shape, output_shape=shape, constant=layer.offset
        )
        return Operand(builder.put(step), product=x.product)

    # Several inputs.

    def _add(self, layer: NetworkLayer, inputs: list[Operand], signs: list[int]) -> Operand:
        builder = self.builder
        shapes = [builder.shape(x) for x in inputs]
        if len(set(shapes)) > 1:
            raise misfit(
                self.builder, layer, inputs[0], f"to be joined with {[list(shape) for shape in shapes[1:]]}"
            )
        inputs = builder.aligned(layer.name, inputs)
        value = builder.put(
            plan.Add(
                name=layer.name,
                inputs=tuple(x.value for x in inputs),
                input_shapes=tuple(shapes),
                output_shape=shapes[0],
                signs=tuple(1 if sign > 0 else -1 for sign in signs),
            )
        )
        return Operand(value, inputs[0].pending, any(x.product for x in inputs))

    def _concatenate(self, layer: ConcatenateLayer, inputs: list[Operand]) -> Operand:
        builder = self.builder
        inputs = builder.aligned(layer.name, inputs)
        shapes = [builder.shape(x) for x in inputs]
        axis = layer.axis % len(shapes[0])
        rests = {shape[:axis] + shape[axis + 1 :] for shape in shapes}
        if len(rests) > 1 or not -len(shapes[0]) <= layer.axis < len(shapes[0]):
            raise misfit(
                self.builder, layer, inputs[0], f"to be joined with {[list(shape) for shape in shapes[1:]]}"
            )
        along = sum(shape[axis] for shape in shapes)
        value = builder.put(
            plan.Concatenate(
                name=layer.name,
                inputs=tuple(x.value for x in inputs),
                input_shapes=tuple(shapes),
                output_shape=(*shapes[0][:axis], along, *shapes[0][axis + 1 :]),
                axis=axis,
            )
        )
        return Operand(value, inputs[0].pending, any(x.product for x in inputs))

    def _multiply(self, layer: MultiplyLayer, inputs: Sequence[Operand]) -> Operand:
        builder = self.builder
        product = inputs[0]
        for other in inputs[1:]:
            x, y = (builder.dropped(layer.name, operand) for operand in (product, other))
            shapes = builder.shape(x), builder.shape(y)
            try:
                output = np.broadcast_shapes(*shapes)
            except ValueError:
                raise self._misfit(layer, x, f"to be multiplied by {list(shapes[1])}") from None
            value = builder.put(
                plan.Multiply(
                    name=layer.name, inputs=(x.value, y.value), input_shapes=shapes, output_shape=output
                )
            )
            product = Operand(value, x.pending * y.pending, product=True)
        return product

    def _reshape(self, layer: ReshapeLayer, x: Operand) -> Operand:
        if math.prod(layer.shape) != math.prod(self.builder.shape(x)):
            raise self._misfit(layer, x, f"to be reshaped to {list(layer.shape)}")
        return self.builder.reshaped(layer.name, x, layer.shape)

    def _misfit(self, layer: NetworkLayer, x: Operand, what: str) -> UnsupportedModelError:
        return misfit(self.builder, layer, x, what)


def _with_bits(step: plan.Conv2D | plan.Dense, bits: int) -> plan.Conv2D | plan.Dense:
    return msgspec.structs.replace(step, weight_fraction_bits=bits)


def _fusions(network: Network) -> dict[int, tuple[int, AveragePoolLayer]]:
    """Return for each convolution whose only use is an average pooling without margins that pooling."""
    inputs = [network.inputs_of(number) for number in range(len(network.layers))]
    uses = [value for taken in inputs for value in taken] + [len(inputs)]
    found = {}
    for number, layer in enumerate(network.layers):
        source = inputs[number][0]
        convolved = source > 0 and isinstance(network.layers[source - 1], ConvLayer)
        if not (convolved and uses.count(source) == 1 and isinstance(layer, AveragePoolLayer)):
            continue
        if layer.padding == ((0, 0), (0, 0)):
            found[source - 1] = (number, layer)
    return found
