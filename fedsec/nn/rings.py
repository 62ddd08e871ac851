"""Which values of a plan can be held in the 32-bit ring, and with how many fraction bits.

Words of half the size are half the bytes and faster products. Values that are joined by steps that keep the
ring (products with a kernel, sums, shapes, comparisons) are a group; gates lead from one group to another. A
group can be small if all its products are proven to fit 31 bits with enough fraction bits left, and nothing
in it asks for more: sums of branches, products of two values and functions need the 64-bit ring, and so does
the answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fedsec.nn import plan
from fedsec.nn.formats import Format, Formats

MOST_BITS = 14
"""Fraction bits of a value, and of a kernel, in the 32-bit ring."""

FEWEST_PRODUCT_BITS = 23
"""With fewer fraction bits of a product, answers would be too coarse."""

_KEEPS_RING = plan.Conv2D | plan.Dense | plan.SumPool2D | plan.Reshape | plan.Pad2D | plan.MaxPool2D
_LEAVES_RING = plan.Truncate | plan.Relu


def groups_of(wide: plan.Plan) -> tuple[list[int], set[int]]:
    """Return each value's group, named by one of its values, and the groups that need the 64-bit ring."""
    parent = list(range(len(wide.values)))

    def root(value: int) -> int:
        while parent[value] != value:
            value = parent[value]
        return value

    large = [len(wide.layers)]
    for number, step in enumerate(wide.layers):
        if isinstance(step, _LEAVES_RING):
            continue
        if isinstance(step, plan.PiecewiseLinear | plan.TopK):
            large.extend(() if _is_small_function(wide, step) else step.inputs)
            continue
        if not isinstance(step, _KEEPS_RING):
            large.append(number + 1)
        for value in step.inputs:
            parent[root(value)] = root(number + 1)
    return [root(value) for value in range(len(parent))], {root(value) for value in large}


def small_rings(wide: plan.Plan, formats: Formats, excluded: Iterable[int] = ()) -> Formats:
    """Choose formats for the values that can be held in the 32-bit ring.

    Args:
        wide: The plan with all values in the 64-bit ring.
        formats: How it was made.
        excluded: Values whose groups turned out not to fit.
    """
    most = min(MOST_BITS, formats.fraction_bits)
    if formats.fraction_bits > 16:
        return formats  # the 32-bit ring would take away what was asked for
    groups, large = groups_of(wide)
    large |= {groups[value] for value in excluded}
    values: dict[int, Format] = {}
    weights: dict[int, int] = {}
    for group in set(groups) - large:
        members = [value for value in range(1, len(groups)) if groups[value] == group]
        products = [value for value in members if isinstance(wide.layers[value - 1], plan.Linear)]
        # Kernels on inputs of up to 255 have numbers as small as after a division by 255.
        small = max(_exponent(wide.values[0].bound) - 1, 0) if groups[0] == group else 0
        chosen = _bits(wide, products, formats, (most, small)) if products else _argument_bits(wide, members)
        if chosen is None:
            continue
        values.update(
            {value: Format(32, chosen[0]) for value in range(len(groups)) if groups[value] == group}
        )
        weights.update(zip(products, chosen[1], strict=True))
    return replace(formats, values=values, weights=weights)


def _is_small_function(wide: plan.Plan, step: plan.Step) -> bool:
    """Whether a function's argument was truncated for it, and its sum fits the 32-bit ring."""
    if not isinstance(step, plan.PiecewiseLinear):
        return False
    (value,) = step.inputs
    summed = wide.values[value].fraction_bits + step.slope_bits + _exponent(step.bound)
    truncated = value > 0 and isinstance(wide.layers[value - 1], plan.Truncate)
    # A truncation needs one bit more than a sign.
    return truncated and step.bits > 0 and summed <= 30 and step.window_bits <= 31


def _argument_bits(wide: plan.Plan, members: list[int]) -> tuple[int, list[int]] | None:
    """Return the fraction bits of a value that is the argument of a function and nothing else."""
    if len(members) != 1 or not isinstance(wide.layers[members[0] - 1], plan.Truncate):
        return None
    return wide.values[members[0]].fraction_bits, []


def _bits(
    wide: plan.Plan, products: list[int], formats: Formats, limits: tuple[int, int]
) -> tuple[int, list[int]] | None:
    """Return the fraction bits of a group's values and of its kernels, if there are enough."""
    most, small = limits
    steps = [wide.layers[value - 1] for value in products]
    linear = [step for step in steps if isinstance(step, plan.Linear)]
    # A division that is folded into a kernel makes it small, and gives it more fraction bits for that.
    folded = [max(step.weight_fraction_bits - formats.fraction_bits, 0) + small for step in linear]
    # A truncation needs one bit more than a sign.
    cut = {value for step in wide.layers if isinstance(step, plan.Truncate) for value in step.inputs}
    room = [31 - _exponent(step.bound) - (value in cut) for step, value in zip(linear, products, strict=True)]
    if not linear or min(room) < min(FEWEST_PRODUCT_BITS, 2 * most):
        return None
    # An input is as coarse as a kernel, but for what a folded division has taken from the kernel.
    of_values = min(most, *((bits - more) // 2 for bits, more in zip(room, folded, strict=True)))
    return of_values, [min(most + more, bits - of_values) for bits, more in zip(room, folded, strict=True)]


def _exponent(bound: float) -> int:
    return round(bound).bit_length() - 1 if bound >= 1 else -(round(1 / bound).bit_length() - 1)
