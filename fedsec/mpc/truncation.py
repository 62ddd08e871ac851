"""Dropping fraction bits after a product, without the rare large error of truncating each share alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fedsec.errors import UsageError
from fedsec.mpc.costs import Cost, protocol
from fedsec.mpc.party import Party
from fedsec.mpc.two_holders import WORDS, Pair, known_word, share_sum, sum_and_product
from fedsec.ring import WORD_SIZES, Ring, RingArray
from fedsec.sharing.replicated import RepShare


class Cut(NamedTuple):
    """Which part of a word is kept, and in which ring: x >> ``bits``, from ``ring`` to ``result``."""

    bits: int
    ring: Ring
    result: Ring

    @property
    def kept_bits(self) -> int:
        """Bits that are left of the word."""
        return self.ring.bits - self.bits

    @property
    def is_reduction(self) -> bool:
        """Whether nothing is cut but high bits: parts of a sum can be cut one by one."""
        return self.bits == 0 and self.factor is None

    @property
    def factor(self) -> Ring | None:
        """The smallest ring for the wrap, which counts modulo 2^(result - kept bits); None: not at all."""
        missing = self.result.bits - self.kept_bits
        return Ring(next(size for size in WORD_SIZES if size >= missing)) if missing > 0 else None

    def of(self, known: RingArray) -> tuple[RingArray, RingArray | None]:
        """Return what is kept of a known word, as a signed number, and its top bit where that counts."""
        word = np.asarray(known >> known.dtype.type(self.bits)).astype(self.result.dtype, copy=False)
        if self.factor is None:
            return word, None
        top = np.asarray(known >> known.dtype.type(self.ring.bits - 1))
        signed = word - (top.astype(self.result.dtype) << self.result.dtype.type(self.kept_bits))
        return np.asarray(signed), top.astype(self.factor.dtype)

    def wraps(self, factors: RingArray) -> RingArray:
        """Return products of top bits where they count: times 2^kept bits."""
        shift = self.result.dtype.type(self.kept_bits)
        return np.asarray(factors.astype(self.result.dtype) << shift)


def _truncate_cost(x: RepShare | Pair, bits: int, *, ring: Ring | None = None) -> Cost:
    cut = Cut(bits, x.ring, ring or x.ring)
    if isinstance(x, RepShare) and cut.is_reduction:
        return Cost.each(0, 0)
    factor = x.size * cut.factor.element_bytes if cut.factor else 0
    return Cost(rounds=1, sent=(x.size * cut.result.element_bytes + 2 * factor, factor, factor))


@protocol(
    cost=_truncate_cost,
    source="fedsec: wrap as OR of two top bits; transfer as in ABY3 (Mohassel & Rindal 2018), section 5.4.1",
)
def truncate(party: Party, x: RepShare | Pair, bits: int, *, ring: Ring | None = None) -> RepShare:
    """Divide a secret by 2^bits: the result is ``floor(x / 2^bits)`` or one less, never anything else.

    With z = x + 2^(k-2), a = z_0 + z_1 (party 0) and b = z_2 (parties 1 and 2), z < 2^(k-1) means that a + b
    wraps around exactly when a or b has its top bit set: wrap = u OR v = u + v - u * v. Then

        (a >> bits) + (b >> bits) - wrap * 2^(k - bits)

    is z >> bits, or one less when the bits cut from a and from b add up to a carry. In a result ring of 2^K
    the product u * v counts modulo 2^(K - k + bits) only, so it is computed in words of 8 or 16 bits.

    Shapes:    the result has the shape of x.
    Units:     |x| < 2^(k-2) is required, for anything larger the result is arbitrary; fraction bits fall by
               ``bits``. The result is in ``ring``, that of x if not given.
    Cost:      1 round; party 0 sends one word of the ring and two small ones an element, parties 1 and 2 one
               small word.
    Security:  semi-honest, one corrupt party of three; the argument is that of ``sum_and_product``, whose
               summands are A = (a >> bits) - u * 2^(k-bits) and B = (b >> bits) - v * 2^(k-bits) -
               2^(k-2-bits). Every message is uniform to its receiver. Which of the two results comes out
               depends on the bits cut from a and b, one of which each party knows: a party that sees the
               result opened learns floor((x - t) / 2^bits) for a t it knows, in place of floor(x / 2^bits).
               It learns x to the same precision, but the rounding is visible in what is opened.
    Source:    fedsec; the three-party transfer is in the spirit of ABY3 (Mohassel & Rindal 2018), section
               5.4.1.

    Raises:
        UsageError: ``bits`` is negative, more than k - 2 or more than the fraction bits of x.
    """
    if not 0 <= bits <= min(x.ring.bits - 2, x.fraction_bits):
        raise UsageError(
            f"0 to {min(x.ring.bits - 2, x.fraction_bits)} bits can be truncated from a secret with "
            f"{x.fraction_bits} fraction bits in the {x.ring.bits}-bit ring, got {bits}"
        )
    cut = Cut(bits, x.ring, ring or x.ring)
    if isinstance(x, RepShare) and cut.is_reduction:
        return RepShare(cut.of(x.own)[0], cut.of(x.next)[0], x.fraction_bits)

    # Local: cut what this party knows of z = a + b, and move the wrap's linear part u + v into it.
    known, quarter = known_word(party, x), x.ring.bits - 2
    if party.id == 0:
        summand, top = cut.of(np.asarray(known + known.dtype.type(1 << quarter)))
    else:
        word, top = cut.of(known)
        summand = np.asarray(word - word.dtype.type((1 << (quarter - bits)) % cut.result.modulus))

    # One round: shares of A + B and of u * v; then u * v goes where it counts, if it does.
    if top is None:
        return RepShare(*share_sum(party, summand), x.fraction_bits - bits)
    total, product = sum_and_product(party, WORDS, summand, top)
    own, following = (
        np.asarray(part + cut.wraps(factors)) for part, factors in zip(total, product, strict=True)
    )
    return RepShare(own, following, x.fraction_bits - bits)
