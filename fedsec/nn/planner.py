"""From a network in the clear to a plan and its parameters: fuse, fold, bound, refuse.

* A convolution and the average pooling after it become one step (see ``plan.Conv2D``).
* No pooling ever divides on shares. The division by the pool's size goes into the nearest kernel, which
  gets ceil(log2(size)) fraction bits more, so that no precision is lost; for a 2x2 pool the ring elements
  are exactly those of the kernel that was not divided.
* Products are truncated by the gate after them, or when the next product needs it; the last is not, whoever
  decodes the answer knows how many fraction bits it has.
* Everything is planned in the 64-bit ring first. Values whose proven bounds allow it are then held in the
  32-bit ring (``fedsec.nn.rings``).
* ``plan_unseen`` does the same from bounds alone, for parameters that stay in shares.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from fedsec.errors import RangeError, UnsupportedModelError
from fedsec.nn import plan
from fedsec.nn.builder import Builder, Operand
from fedsec.nn.formats import Format, Formats, SmallRingError, TooWideError
from fedsec.nn.lowering import Lowering
from fedsec.nn.network import Network
from fedsec.nn.rings import small_rings
from fedsec.nn.simplify import simplify
from fedsec.nn.weights import Weights

FEWEST_VALUE_BITS = 6
"""Of values between layers, where bounds of parameters that nobody knows leave no room for more."""


def plan_network(
    network: Network, *, fraction_bits: int = 16, sign_resolution_bits: int = 9
) -> tuple[plan.Plan, Weights]:
    """Plan a network for computation on shares.

    Args:
        network: The trained network.
        fraction_bits: Binary digits behind the point of inputs and of values between layers.
        sign_resolution_bits: ReLU may take values below 2^-sign_resolution_bits for 0: the more, the cheaper.

    Returns:
        The public plan, and the parameters in its order, folded where a pooling was.

    Raises:
        UnsupportedModelError: If layers do not fit each other, a parameter is not finite, or a value could
            leave the ring; the text names the layer, the bound and what to do.
    """
    simple = simplify(network)
    formats = Formats(fraction_bits, sign_resolution_bits)
    wide, weights = _lowered(Builder(simple, formats))
    too_wide: set[int] = set()
    while True:
        chosen = small_rings(wide, formats, too_wide)
        if not chosen.values:
            return wide, weights
        try:
            return _lowered(Builder(simple, chosen))
        except SmallRingError as error:
            # Each time at least one group more stays in the 64-bit ring.
            too_wide.add(error.value)


class Unseen(NamedTuple):
    """The plan of a network whose parameters nobody knows.

    Attributes:
        plan: The public plan.
        sizes: Bounds of its parameters' sizes, in its order.
        divisors: For each linear step, in order, what its kernel is divided by.
    """

    plan: plan.Plan
    sizes: Weights
    divisors: tuple[int, ...]


def plan_unseen(network: Network, *, fraction_bits: int = 16, sign_resolution_bits: int = 9) -> Unseen:
    """Plan a network of whose parameters only bounds of their sizes are known.

    Every kernel of the plan is one of the network's divided by a number, every bias one of the network's: no
    scale or shift is folded into another layer. Where a product could leave the ring its kernel gets fewer
    fraction bits, and then what goes into it. All values are in the 64-bit ring.

    Args:
        network: Its parameters are bounds: at least the size of what will stand in their place.
        fraction_bits: As for ``plan_network``; fewer where bounds ask for it.
        sign_resolution_bits: As for ``plan_network``.

    Raises:
        UnsupportedModelError: As for ``plan_network``.
    """
    simple = simplify(network, parameters=False)
    formats = Formats(fraction_bits, sign_resolution_bits, unseen=True)
    while True:
        builder = Builder(simple, formats)
        try:
            return Unseen(*_lowered(builder), tuple(builder.divisors))
        except TooWideError as error:
            formats = _narrower(builder, formats, error)


def _narrower(builder: Builder, formats: Formats, error: TooWideError) -> Formats:
    """Take the bits that are too many from the gates' results, or the input, that a value is made of.

    Raises:
        TooWideError: Too few would be left.
    """
    values = dict(formats.values)
    for value in _made_of(builder, error.step.inputs):
        left = formats.of(value).fraction_bits - error.bits
        if left < FEWEST_VALUE_BITS:
            raise error
        values[value] = Format(64, left)
    return replace(formats, values=values)


def _made_of(builder: Builder, values: Iterable[int]) -> set[int]:
    """Return the results of gates, or the input, of which steps that truncate nothing make these values."""
    found: set[int] = set()
    for value in values:
        step = builder.steps[value - 1] if value else None
        if isinstance(step, plan.Local | plan.MaxPool2D | plan.ReduceMax):
            found |= _made_of(builder, step.inputs)
        else:
            found.add(value)
    return found


def _lowered(builder: Builder) -> tuple[plan.Plan, Weights]:
    network, lowering = builder.network, Lowering(builder)
    operands = [Operand(0)]
    try:
        for number in range(len(network.layers)):
            operands.append(lowering.lower(number, [operands[value] for value in network.inputs_of(number)]))
        return builder.finish(operands[-1])
    except RangeError as error:
        raise UnsupportedModelError(f"model {network.name!r}: {error}") from error
