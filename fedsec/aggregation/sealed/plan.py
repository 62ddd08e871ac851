"""From a shared sum to the change of the sealed model: the public constants, and why nothing can wrap.

An element of the sum is S = scale * total * mean, up to rounding. The change is mean * 2^F words, so S is
multiplied by n / 2^bits with n = round(2^(F + bits) / (scale * total)). In the 64-bit upload ring S is as
large as 2^62; it first loses so many low bits that it has 36.

* |S| < 2^30 in 32 bits (the encoding is planned for twice the roster), so that it can be lifted;
* honest means are within the clip, so |S * n| <= 2^61 by the choice of ``bits``, plus a part of it from the
  rounding of n: below 2^62, which truncation needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from fedsec.aggregation.planner import ArraySpec, Encoding
from fedsec.errors import RangeError
from fedsec.mpc import Party, lift, multiply_fraction, reshare, truncate
from fedsec.ring import RING64, RingArray
from fedsec.sharing.replicated import RepShare

_MOST_BITS = 32
"""More would not make the mean more precise, and truncation would send longer words."""
_SUM_BITS = 36
_PRODUCT_BITS = 61
_CHUNK = 1 << 18
"""Elements that are computed on at once: memory does not grow with what the protocols keep for each."""


@dataclass(frozen=True, slots=True)
class Division:
    """How a sum becomes a change of the model; all of it is public.

    Attributes:
        dropped: Low bits that the sum loses first.
        bits: The logarithm of the denominator.
        numerators: One for each array.
        error_bound: Largest error of an element of the change beside that of the encoding, in units of a
            parameter: from the dropped bits, the rounding of the numerators and the truncation.
    """

    dropped: int
    bits: int
    numerators: tuple[int, ...]
    error_bound: float


def plan_division(
    encoding: Encoding, arrays: Sequence[ArraySpec], total_weight: int, fraction_bits: int
) -> Division:
    """Choose the constants of one round.

    Args:
        encoding: The encoding of the round, planned for twice the roster.
        arrays: The model's arrays with their clips.
        total_weight: The opened sum of the weights.
        fraction_bits: Of the model's words.

    Raises:
        RangeError: The mean does not fit the words, or the weight is none.
    """
    largest = max((spec.clip for spec in arrays), default=1.0)
    bits = min(_MOST_BITS, _PRODUCT_BITS - fraction_bits - max(0, math.ceil(math.log2(largest))))
    dropped = max(0, (encoding.hospitals * encoding.largest_word).bit_length() - 1 - _SUM_BITS)
    if bits < 1 or total_weight < 1:
        raise RangeError(
            f"a mean of clip {largest:g} and weight {total_weight} does not fit words with {fraction_bits} "
            "fraction bits: lower the clip or the fraction bits"
        )
    unit = [Fraction(encoding.scale(spec.clip)) * total_weight for spec in arrays]
    numerators = tuple(round(Fraction(2 ** (fraction_bits + bits + dropped)) / one) for one in unit)
    if any(not 0 < one < 2**_PRODUCT_BITS for one in numerators):
        raise RangeError("the weights of this round are too small or too large to divide by in shares")
    word = 2.0**-fraction_bits
    errors = [
        word + (2.0**dropped / float(one) if dropped else 0.0) + spec.clip * 0.5 / n
        for spec, one, n in zip(arrays, unit, numerators, strict=True)
    ]
    return Division(dropped, bits, numerators, max(errors, default=word))


def change_of(
    party: Party, total: RepShare, arrays: Sequence[ArraySpec], division: Division, fraction_bits: int
) -> RepShare:
    """Turn the shared sum of updates into the change of the model, shared afresh.

    Security:  every message is one of ``lift``, ``truncate`` and ``reshare``. The last makes the components
               new: who is sent them learns the state and nothing of how it was made.

    Args:
        party: This party.
        total: The sum of the encoded updates, in the ring of the uploads.
        arrays: The arrays that stand in it, one after the other.
        division: The constants, the same at all three parties.
        fraction_bits: Of the result.
    """
    sizes = [spec.size for spec in arrays]
    numerators: RingArray = np.repeat(np.array(division.numerators, dtype=RING64.dtype), sizes)
    own, following = np.empty_like(numerators), np.empty_like(numerators)
    for at in range(0, total.size, _CHUNK):
        piece = slice(at, at + _CHUNK)
        own[piece], following[piece] = _change(party, total[piece], numerators[piece], division)
    return RepShare(own, following, fraction_bits)


def _change(
    party: Party, total: RepShare, numerators: RingArray, division: Division
) -> tuple[RingArray, RingArray]:
    wide = lift(party, total)
    if division.dropped:
        # One more before: floor or one less becomes the two integers around the quotient.
        raised = wide.add_public(party.id, 1 << division.dropped)
        wide = truncate(party, RepShare(raised.own, raised.next, division.dropped), division.dropped)
    change = multiply_fraction(party, wide, numerators, division.bits)
    fresh = reshare(party, change.own)
    return fresh.own, fresh.next
