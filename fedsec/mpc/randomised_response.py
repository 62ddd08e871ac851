"""K-ary randomised response: the law of the noise on a label, in whole numbers, and what it protects.

The label i of K is answered as j = (i + e) mod K, with a shift e that does not depend on i: e = 0 with
probability p, each other shift with probability q. Whatever the label, and so whatever the model and the data
that it was trained on, no answer is more than p / q times as likely as under another label: an answer is
epsilon-differentially private with epsilon = ln(p / q).

Here p and q are fractions of a power of two, as the shift is looked up in a table of so many entries at a
uniform place. They are chosen on the private side: ``epsilon`` is what they give exactly, never more than
what was asked for.

Source: Warner 1965 (Randomized Response) for two labels; Kairouz, Oh, Viswanath 2014 (Extremal Mechanisms for
Local Differential Privacy) for K.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal
from functools import cached_property

import numpy as np

from fedsec.errors import UsageError
from fedsec.ring import Ring, RingArray

FEWEST_BITS, MOST_BITS = 8, 16
"""A table of 2^16 entries is dealt in 64 kB an image, or twice that for more than 128 classes."""

MOST_EPSILON = 10.0
"""At odds of e^10 to 1, one answer in 2,400 of ten classes is noisy: hardly any protection to speak of."""

_NEAR_ENOUGH = Decimal("0.98")
"""A table is large enough if its epsilon is this part of what was asked for, or more."""

_MILLION = 10**6
_DECIMAL = Context(prec=40)


@dataclass(frozen=True)
class ResponseLaw:
    """How often each shift is drawn.

    Attributes:
        classes: Number K of labels.
        bits: The table of shifts has 2^bits entries.
        others: How many of them hold each shift but 0.
    """

    classes: int
    bits: int
    others: int

    def __post_init__(self) -> None:
        """Refuse a table without noise, or with the truth no likelier than any other label."""
        if self.classes < 2 or self.bits < 1 or self.others < 1 or self.truths <= self.others:
            raise UsageError(
                "expected a law in which the label itself is the likeliest answer and every other one has its"
                f" chance; got {self.classes} classes, of which each wrong one has {self.others} of"
                f" 2^{self.bits} entries"
            )

    @classmethod
    def of(cls, classes: int, epsilon: float) -> ResponseLaw:
        """Return the law with the smallest table whose epsilon is at most the given one and near it.

        All parties and users work it out for themselves, so the numbers come from ``decimal``, which rounds
        alike on every machine.

        Args:
            classes: Number of labels.
            epsilon: At most so much is spent on an answer.

        Raises:
            UsageError: There is no such law: the epsilon is not in (0, 10], or too small for so many classes.
        """
        if not 0 < epsilon <= MOST_EPSILON:
            raise UsageError(
                f"expected an epsilon an answer above 0 and up to {MOST_EPSILON:g}, got {epsilon}"
            )
        wanted = Decimal(epsilon)
        odds = wanted.exp(_DECIMAL) + (classes - 1)
        law = None
        for bits in range(FEWEST_BITS, MOST_BITS + 1):
            # Rounded up: the wrong labels get more than their part, never less.
            others = int((Decimal(1 << bits) / odds).to_integral_value(ROUND_CEILING))
            if (1 << bits) - (classes - 1) * others > others:
                law = cls(classes, bits, others)
                if law.exactly >= _NEAR_ENOUGH * wanted:
                    break
        if law is None:
            raise UsageError(
                f"epsilon {epsilon:g} an answer cannot be told from no answer among {classes} classes: give a"
                " larger one"
            )
        return law

    @property
    def truths(self) -> int:
        """How many of the entries hold the shift 0."""
        return (1 << self.bits) - (self.classes - 1) * self.others

    @property
    def exactly(self) -> Decimal:
        """Return ln(p / q), to 40 digits."""
        return (Decimal(self.truths) / self.others).ln(_DECIMAL)

    @property
    def epsilon_millionths(self) -> int:
        """What one answer spends, in millionths, rounded up."""
        return int((self.exactly * _MILLION).to_integral_value(ROUND_CEILING))

    @property
    def epsilon(self) -> float:
        """What one answer spends, rounded up to a millionth."""
        return self.epsilon_millionths / _MILLION

    @property
    def truth(self) -> float:
        """Chance p that an answer is the label itself."""
        return math.ldexp(self.truths, -self.bits)

    @property
    def sum_bits(self) -> int:
        """Bits that hold a label and a shift added up."""
        return (2 * (self.classes - 1)).bit_length()

    @property
    def ring(self) -> Ring:
        """The smallest ring that holds them."""
        return Ring(8 if self.sum_bits <= 8 else 16)

    @cached_property
    def shifts(self) -> RingArray:
        """The table: the shift at each place, in ``ring``; the truth comes first, then 1, 2, ..., K - 1."""
        table = np.zeros(1 << self.bits, dtype=self.ring.dtype)
        table[self.truths :] = np.repeat(np.arange(1, self.classes), self.others)
        return table
