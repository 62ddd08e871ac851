"""From a network in the clear to a plan and its parameters: fuse, fold, bound, refuse.

* A convolution and the average pooling after it become one step (see ``plan.Conv2D``).
* No pooling ever divides on shares. The division by the pool's size goes into the nearest kernel, which
  gets ceil(log2(size)) fraction bits more, so that no precision is lost; for a 2x2 pool the ring elements
  are exactly those of the kernel that was not divided.
* Products are truncated by the gate after them, or when the next product needs it; the last is not, whoever
  decodes the answer knows how many fraction bits it has.
* Everything is planned in the 64-bit ring first. Values whose proven bounds allow it are then held in the
  32-bit ring (``fedsec.nn.rings``).
"""

from __future__ import annotations

from fedsec.errors import RangeError, UnsupportedModelError
from fedsec.nn import plan
from fedsec.nn.builder import Builder, Formats, Operand, SmallRingError
from fedsec.nn.lowering import Lowering
from fedsec.nn.network import Network
from fedsec.nn.rings import small_rings
from fedsec.nn.simplify import simplify
from fedsec.nn.weights import Weights


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
    wide, weights = _planned(simple, formats)
    too_wide: set[int] = set()
    while True:
        chosen = small_rings(wide, formats, too_wide)
        if not chosen.values:
            return wide, weights
        try:
            return _planned(simple, chosen)
        except SmallRingError as error:
            # Each time at least one group more stays in the 64-bit ring.
            too_wide.add(error.value)


def _planned(network: Network, formats: Formats) -> tuple[plan.Plan, Weights]:
    builder = Builder(network, formats)
    lowering = Lowering(builder)
    operands = [Operand(0)]
    try:
        for number in range(len(network.layers)):
            operands.append(lowering.lower(number, [operands[value] for value in network.inputs_of(number)]))
        return builder.finish(operands[-1])
    except RangeError as error:
        raise UnsupportedModelError(f"model {network.name!r}: {error}") from error
