"""Products of two secrets, and the step that makes an additive sharing replicated again."""

from __future__ import annotations

from math import prod

import numpy as np

from fedsec.errors import UsageError
from fedsec.mpc.costs import Cost, protocol
from fedsec.mpc.party import Party
from fedsec.mpc.two_holders import Pair, share_sum
from fedsec.ring import RingArray, ring_of
from fedsec.sharing.boolean import BitShare
from fedsec.sharing.replicated import RepShare

_SOURCE = "Araki, Furukawa, Lindell, Nof, Ohara 2016 (High-throughput semi-honest 3PC)"


def _reshare_cost(words: RingArray, fraction_bits: int = 0) -> Cost:
    return Cost.each(rounds=1, sent_bytes=words.size * words.dtype.itemsize)


@protocol(cost=_reshare_cost, source=_SOURCE)
def reshare(party: Party, words: RingArray, fraction_bits: int = 0) -> RepShare:
    """Turn an additive sharing, one summand a party, into a fresh replicated one.

    Shapes:    z has the shape of ``words``.
    Units:     ring elements with ``fraction_bits`` fraction bits.
    Cost:      1 round; each party sends one word an element.
    Security:  semi-honest, one corrupt party of three. Party i-1 receives w_i + F(k_(i-1,i)) - F(k_(i,i+1));
               it does not know the last stream, so the message is uniform to it. Without the zero share it
               would be w_i itself.
    Source:    Araki et al. 2016.
    """
    # Local: a share of zero makes this party's summand uniform to the receiver.
    z_own = party.zero_share(words.shape, ring_of(words))
    z_own += words

    # One round: z_i moves from party i to party i-1.
    z_next = party.pass_back(z_own)

    return RepShare(own=z_own, next=z_next, fraction_bits=fraction_bits)


def _share_pair_cost(pair: Pair) -> Cost:
    return Cost(1, (pair.size * pair.ring.element_bytes, 0, 0))


@protocol(cost=_share_pair_cost, source="ABY3 (Mohassel & Rindal 2018), section 5: sharing by an input party")
def share_pair(party: Party, pair: Pair) -> RepShare:
    """Make a pair replicated, for what needs a secret's components.

    Shapes:    the result has the shape of the pair.
    Units:     those of the pair.
    Cost:      1 message of one word an element, from party 0 to party 2.
    Security:  semi-honest, one corrupt party of three: the argument of ``share_sum``.
    Source:    sharing by an input party, as in ABY3 (Mohassel & Rindal 2018), section 5.
    """
    return RepShare(*share_sum(party, pair.known), pair.fraction_bits)


def _multiply_cost(x: RepShare, y: RepShare) -> Cost:
    elements = prod(np.broadcast_shapes(x.shape, y.shape))
    return Cost.each(rounds=1, sent_bytes=elements * x.ring.element_bytes)


@protocol(cost=_multiply_cost, source=_SOURCE)
def multiply(party: Party, x: RepShare, y: RepShare) -> RepShare:
    """Multiply two secrets element by element: ``[z] = [x * y]``.

    The nine products x_i * y_j split into three sums that one party each can form alone, so a local step
    already gives an additive sharing of z. Passing it on makes it replicated again.

    Shapes:    z has the broadcast shape of x and y.
    Units:     ring elements; fraction bits add, nothing is truncated here.
    Cost:      1 round; each party sends one word an element of z.
    Security:  semi-honest, one corrupt party of three. The receiver holds x_i and y_i, so without ``alpha``
               the message would tell it x_i * y_(i+1) + x_(i+1) * y_i. ``alpha`` holds a stream that the
               receiver does not share, so the message is uniform to it; it is used once.
    Source:    Araki et al. 2016.

    Raises:
        UsageError: The factors are of different rings.
    """
    require_one_ring(x, y)
    # Local: this party's three of the nine products, masked by its share of a fresh zero.
    alpha = party.zero_share(np.broadcast_shapes(x.shape, y.shape), x.ring)
    z_own = x.own * (y.own + y.next) + x.next * y.own + alpha

    # Reshare, one round: z_i moves from party i to party i-1.
    z_next = party.pass_back(np.asarray(z_own))

    return RepShare(own=np.asarray(z_own), next=z_next, fraction_bits=x.fraction_bits + y.fraction_bits)


def _and_cost(x: BitShare, y: BitShare) -> Cost:
    return Cost.each(rounds=1, sent_bytes=x.own.nbytes)


@protocol(cost=_and_cost, source=_SOURCE)
def and_bits(party: Party, x: BitShare, y: BitShare) -> BitShare:
    """Form the AND of two shared bit vectors, plane by plane: ``[z] = [x AND y]``.

    ``multiply`` in the ring of one bit, 64 bits a machine word.

    Shapes:    x, y and z have the same planes and count.
    Units:     bits.
    Cost:      1 round; each party sends one bit an element and plane (whole words of 64).
    Security:  semi-honest, one corrupt party of three. As ``multiply``, with XOR for plus: the fresh XOR
               sharing of zero holds a stream that the receiver does not share, padding bits included.
    Source:    Araki et al. 2016.

    Raises:
        UsageError: x and y differ in planes or count.
    """
    if x.planes != y.planes or x.count != y.count:
        raise UsageError(f"AND works bit by bit, got {x!r} and {y!r}")
    # Local: three of the nine products of components, masked by a share of zero.
    z_own = party.zero_bits(x.own.shape).astype(np.uint64, copy=False)
    z_own ^= x.own & (y.own ^ y.next)
    z_own ^= x.next & y.own

    # One round: z_i moves from party i to party i-1.
    z_next = party.pass_back(z_own)

    return BitShare(own=z_own, next=z_next.astype(np.uint64, copy=False), count=x.count)


def require_one_ring(x: RepShare, y: RepShare) -> None:
    """Refuse a product of secrets of two rings.

    Raises:
        UsageError: The rings differ.
    """
    if x.ring != y.ring:
        raise UsageError(f"a product needs two secrets of one ring, got {x!r} and {y!r}")
