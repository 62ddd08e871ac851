"""How the values of a plan are held, and what is raised where one does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from fedsec.errors import UnsupportedModelError
from fedsec.nn.base import Step
from fedsec.nn.gates import WIDEST_COMPARISON

ARGUMENT_BITS = 13
"""Fraction bits of what goes into a smooth function: finer ones are lost in its pieces' error."""


MOST_COMPARED_BITS = 32
"""A comparison looks at no more bits where parameters are known: more cost more than they bring."""


class Format(NamedTuple):
    """How a value that a gate gives, or the input, is held."""

    ring_bits: int
    fraction_bits: int


@dataclass(frozen=True)
class Formats:
    """What is chosen for the values of a plan, by their numbers."""

    fraction_bits: int
    """Of values and kernels about which nothing else is said; their ring has 64 bits."""

    sign_resolution_bits: int
    """A sign may be wrong for values below 2^-sign_resolution_bits."""

    values: Mapping[int, Format] = field(default_factory=dict)
    weights: Mapping[int, int] = field(default_factory=dict)
    """Fraction bits of the kernel that makes a value."""

    unseen: bool = False
    """Whether the network's parameters are not known, but bounds of their sizes (``plan_unseen``)."""

    @property
    def most_compared_bits(self) -> int:
        """A sign looks at no more bits: the larger values can be, the fewer fraction bits are compared."""
        # Bounds of parameters that nobody knows are far above what values reach: as fine as tables go.
        return WIDEST_COMPARISON if self.unseen else MOST_COMPARED_BITS

    @property
    def coarsest_unit(self) -> float:
        """At least one unit of any value between two steps."""
        chosen = (value.fraction_bits for value in self.values.values())
        return 2.0 ** -min(self.fraction_bits, ARGUMENT_BITS, *chosen)

    def of(self, value: int) -> Format:
        """Return the format of a value between two steps."""
        return self.values.get(value, Format(64, self.fraction_bits))


class SmallRingError(Exception):
    """A value of the 32-bit ring does not fit it; the plan is made again without."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value


class TooWideError(UnsupportedModelError):
    """A value does not fit the 64-bit ring; it may if what goes into it has fewer fraction bits.

    Attributes:
        step: What would give it.
        bits: How many bits are too many.
    """

    def __init__(self, text: str, step: Step, bits: int) -> None:
        super().__init__(text)
        self.step = step
        self.bits = bits
