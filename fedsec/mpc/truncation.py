"""Dropping fraction bits after a product, without the rare large error of truncating each share alone."""

from __future__ import annotations

import numpy as np

from fedsec.errors import UsageError
from fedsec.mpc.costs import Cost, protocol
from fedsec.mpc.party import Party
from fedsec.mpc.products import require_ring
from fedsec.mpc.two_holders import WORDS, known_word, sum_and_product
from fedsec.ring import WORD_SIZES, Ring
from fedsec.sharing.replicated import RepShare


def _factor_ring(bits: int) -> Ring:
    """Return the smallest ring that holds ``bits`` bits: the wrap bit counts modulo 2^bits only."""
    return Ring(next(size for size in WORD_SIZES if size >= bits))


def _truncate_cost(x: RepShare, bits: int) -> Cost:
    if bits == 0:
        return Cost.each(0, 0)
    factor = x.size * _factor_ring(bits).element_bytes
    return Cost(rounds=1, sent=(x.size * x.ring.element_bytes + 2 * factor, factor, factor))


@protocol(
    cost=_truncate_cost,
    source="fedsec: wrap as OR of two top bits; transfer as in ABY3 (Mohassel & Rindal 2018), section 5.4.1",
)
def truncate(party: Party, x: RepShare, bits: int) -> RepShare:
    """Divide a secret by 2^bits: the result is ``floor(x / 2^bits)`` or one less, never anything else.

    With z = x + 2^(k-2), a = z_0 + z_1 (party 0) and b = z_2 (parties 1 and 2), z < 2^(k-1) means that a + b
    wraps around exactly when a or b has its top bit set: wrap = u OR v = u + v - u * v. Then

        (a >> bits) + (b >> bits) - wrap * 2^(k - bits)

    is z >> bits, or one less when the bits cut from a and from b add up to a carry. The product u * v counts
    modulo 2^bits only, so it is computed in words of 8 or 16 bits.

    Shapes:    the result has the shape of x.
    Units:     |x| < 2^(k-2) is required, for anything larger the result is arbitrary; fraction bits fall by
               ``bits``.
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
        UsageError: ``bits`` is negative, more than k - 2 or more than the fraction bits of x; or the ring
            differs.
    """
    ring = party.ring
    require_ring(party, x)
    if not 0 <= bits <= min(ring.bits - 2, x.fraction_bits):
        raise UsageError(
            f"0 to {min(ring.bits - 2, x.fraction_bits)} bits can be truncated from a secret with "
            f"{x.fraction_bits} fraction bits in the {ring.bits}-bit ring, got {bits}"
        )
    if bits == 0:
        return x

    # Local: cut what this party knows of z = a + b, and move the wrap's linear part u + v into it.
    word, top = ring.dtype.type, ring.bits - 1
    known = known_word(party, x)
    known = np.asarray(known + word(1 << (ring.bits - 2)) if party.id == 0 else known)
    top_bit = np.asarray(known >> word(top))
    summand = (known >> word(bits)) - (top_bit << word(ring.bits - bits))
    if party.id != 0:
        summand = summand - word(1 << (ring.bits - 2 - bits))

    # One round: shares of A + B and of u * v.
    total, product = sum_and_product(
        party, WORDS, np.asarray(summand), top_bit.astype(_factor_ring(bits).dtype)
    )

    # Local: put u * v back where it counts.
    shift = word(ring.bits - bits)
    own, following = (
        np.asarray(part + (factor.astype(ring.dtype) << shift))
        for part, factor in zip(total, product, strict=True)
    )
    return RepShare(own, following, x.fraction_bits - bits)
