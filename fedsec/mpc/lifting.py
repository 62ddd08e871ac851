"""From a sum in a small ring to a mean in a large one, without opening either: lift, then divide.

Hospitals upload in the 32-bit ring, the model stays in the 64-bit ring. Taking the components of a sharing as
larger words is wrong by a multiple of 2^32, and dividing each component by the total weight is wrong by a
multiple of 2^64 / weight: both need to know whether the components wrap, which no party does.
"""

from __future__ import annotations

from fedsec.errors import UsageError
from fedsec.mpc.costs import Cost, protocol
from fedsec.mpc.party import Party
from fedsec.mpc.truncation import truncate
from fedsec.ring import RING64, Ring, RingArray
from fedsec.sharing.replicated import RepShare

_SOURCE = "fedsec: the wrap of truncate, counted in a larger ring"


def _lift_cost(x: RepShare, ring: Ring = RING64) -> Cost:
    return Cost.each(0, 0) if ring == x.ring else truncate.cost(x, 0, ring=ring)


@protocol(cost=_lift_cost, source=_SOURCE)
def lift(party: Party, x: RepShare, ring: Ring = RING64) -> RepShare:
    """Take a secret into a larger ring: the same integer, exactly.

    With z = x + 2^(k-2), a = z_0 + z_1 (party 0) and b = z_2 (parties 1 and 2), a + b wraps around exactly
    when a or b has its top bit set, so the integer is a + b - wrap * 2^k - 2^(k-2). That is ``truncate`` of
    no bits into a larger ring: nothing is cut, so there is no carry and the result is exact.

    Shapes:    the result has the shape of x.
    Units:     |x| < 2^(k-2) is required, for anything larger the result is arbitrary; fraction bits stay.
    Cost:      1 round; party 0 sends one word of the larger ring and two small ones an element, parties 1 and
               2 one small word. In the ring of x it is free.
    Security:  semi-honest, one corrupt party of three: the argument of ``truncate``. Nothing is rounded, so
               a result that is opened shows the integer and nothing of its sharing.
    Source:    fedsec, as ``truncate``.

    Raises:
        UsageError: The ring is smaller than that of x.
    """
    if ring.bits < x.ring.bits:
        raise UsageError(
            f"expected a ring of at least {x.ring.bits} bits to lift into, got {ring.bits} bits: high bits "
            "would be lost"
        )
    return x if ring == x.ring else truncate(party, x, 0, ring=ring)


def _multiply_fraction_cost(x: RepShare, numerators: RingArray | int, bits: int) -> Cost:
    return truncate.cost(RepShare(x.own, x.next, max(bits, x.fraction_bits)), bits)


@protocol(cost=_multiply_fraction_cost, source=_SOURCE)
def multiply_fraction(party: Party, x: RepShare, numerators: RingArray | int, bits: int) -> RepShare:
    """Multiply a secret by public fractions: the result is one of the two integers around x * n / 2^bits.

    So a sum is divided by a public total t, with n = round(2^bits / t).

    Shapes:    ``numerators`` broadcast to the shape of x, which is that of the result.
    Units:     |x * n| + 2^bits < 2^(k-2) is required, for anything larger the result is arbitrary; the
               result has the fraction bits of x, and is floor or floor + 1 of the exact quotient.
    Cost:      1 round; that of ``truncate``.
    Security:  semi-honest, one corrupt party of three: the product with public numbers is local, the rest
               is ``truncate``. As there, which of the two integers comes out depends on the sharing.
    Source:    fedsec, as ``truncate``.

    Raises:
        UsageError: ``bits`` is not 1 to k - 2.
    """
    if not 1 <= bits <= x.ring.bits - 2:
        raise UsageError(f"expected a denominator of 2 to 2^{x.ring.bits - 2}, got 2^{bits}")
    product = x.scale_public(numerators)
    # Local: one more, so that floor or one less becomes the integers on both sides.
    raised = product.add_public(party.id, 1 << bits)
    cut = truncate(party, RepShare(raised.own, raised.next, bits), bits)
    return RepShare(cut.own, cut.next, x.fraction_bits)
