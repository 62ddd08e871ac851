"""Signs on a window of bits, selection by a shared bit, and ReLU."""

from __future__ import annotations

import numpy as np

from fedsec.errors import UsageError
from fedsec.mpc.costs import Cost, protocol
from fedsec.mpc.party import BIT_WORDS, Layout, Party
from fedsec.mpc.products import and_bits, require_ring
from fedsec.mpc.two_holders import BITS, known_word, sum_and_product
from fedsec.ring import RingArray
from fedsec.sharing.boolean import LANES, BitShare, Planes, pack_bits, unpack_bits
from fedsec.sharing.replicated import RepShare


def _plane_bytes(planes: int, count: int) -> int:
    return planes * -(-count // LANES) * BIT_WORDS.element_bytes


def _is_negative_cost(x: RepShare, window_bits: int) -> Cost:
    window = _plane_bytes(window_bits, x.size)
    below = _plane_bytes(window_bits - 1, x.size)
    cost = Cost(rounds=1, sent=(window + 2 * below, below, below))
    positions = window_bits - 1
    while positions > 1:
        # A level joins pairs of positions: one AND for what a pair generates, one for what it propagates,
        # which the lowest pair does not need.
        pairs = positions // 2
        cost += Cost.each(rounds=1, sent_bytes=_plane_bytes(2 * pairs - 1, x.size))
        positions -= pairs
    return cost


@protocol(
    cost=_is_negative_cost,
    source="ABY3 (Mohassel & Rindal 2018), section 5.3: bits by a parallel-prefix adder, cut to one carry",
)
def is_negative(party: Party, x: RepShare, window_bits: int) -> BitShare:
    """Take the sign of a secret from its lowest ``window_bits`` bits: 1 for negative.

    With a = x_0 + x_1 (party 0) and b = x_2 (parties 1 and 2), the sign is bit w - 1 of a + b modulo 2^w,
    that is a XOR b XOR carry at that place. A pair of positions generates a carry when the upper one does, or
    propagates the one that the lower generates; a tree of such pairs gives the carry in ceil(log2(w - 1))
    rounds.

    Shapes:    one plane over x.size elements, in C order.
    Units:     -2^(w-1) <= x < 2^(w-1) as an integer with w = ``window_bits`` is required; the window is
               public.
    Cost:      1 + ceil(log2(w - 1)) rounds; about 25 B an element over all parties at w = 21.
    Security:  semi-honest, one corrupt party of three. The first round is ``sum_and_product`` on bits, whose
               messages are uniform to their receivers; every further round is ``and_bits``. Only the window's
               width, which is public, shapes what is sent.
    Source:    ABY3 (Mohassel & Rindal 2018), section 5.3.

    Raises:
        UsageError: ``window_bits`` is not between 2 and the ring's bits, or the ring differs.
    """
    require_ring(party, x)
    if not 2 <= window_bits <= party.ring.bits:
        raise UsageError(f"a sign needs a window of 2 to {party.ring.bits} bits, got {window_bits}")

    # Local: the window's bits of what this party knows, one plane a position.
    planes = pack_bits(known_word(party, x).reshape(-1), window_bits)

    # One round: where exactly one of a and b has a bit, a carry is propagated; where both have, one is
    # generated.
    either, both = sum_and_product(party, BITS, planes, planes[:-1])
    propagate = BitShare(_planes(either.own), _planes(either.next), x.size)
    generate = BitShare(_planes(both.own), _planes(both.next), x.size)

    # One round a level of the tree.
    carry = _carry_out(party, generate, propagate[:-1])
    return propagate[-1] ^ carry


def _carry_out(party: Party, generate: BitShare, propagate: BitShare) -> BitShare:
    """Return the carry out of the highest position; one round halves the number of positions."""
    while generate.planes > 1:
        pairs = generate.planes // 2
        lower, upper = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
        # The lowest pair's own propagation is never asked for: nothing comes into position 0.
        joined = and_bits(
            party,
            _stack(propagate[upper], propagate[upper][1:]),
            _stack(generate[lower], propagate[lower][1:]),
        )
        left_over = slice(2 * pairs, None)
        generate = _stack(generate[upper] ^ joined[:pairs], generate[left_over])
        # Position 0 keeps any propagation bit: it is never read.
        propagate = _stack(propagate[:1], joined[pairs:], propagate[left_over])
    return generate


def _stack(*shares: BitShare) -> BitShare:
    own = np.concatenate([share.own for share in shares])
    following = np.concatenate([share.next for share in shares])
    return BitShare(own, following, shares[0].count)


def _planes(words: RingArray) -> Planes:
    return words.astype(np.uint64, copy=False)


def _select_cost(bit: BitShare, x: RepShare) -> Cost:
    return _select_cost_of(x)


def _select_cost_of(x: RepShare) -> Cost:
    word = x.size * x.ring.element_bytes
    return Cost(rounds=2, sent=(2 * word, word, word))


@protocol(
    cost=_select_cost,
    source="fedsec: bit injection as in ABY3 (Mohassel & Rindal 2018), section 5.4.1, with streams",
)
def select(party: Party, bit: BitShare, x: RepShare) -> RepShare:
    """Multiply a secret by a secret bit: x where the bit is 1, else 0.

    The bit is c XOR v with c = b_0 XOR b_1 (party 0) and v = b_2 (parties 1 and 2); x is a + x_2 with
    a = x_0 + x_1 (party 0). Then

        (c XOR v) * x  =  (1 - 2v) * (c * a)  +  (1 - 2v) * c * x_2  +  v * x

    Party 0 splits c and c * a between parties 1 and 2, which turns everything into local products at those
    two; they add up their halves under masks.

    Shapes:    the result has the shape of x; the bit has one plane over x.size elements, in C order.
    Units:     ring elements; the fraction bits are those of x.
    Cost:      2 rounds; party 0 sends two words an element, parties 1 and 2 one word each.
    Security:  semi-honest, one corrupt party of three. Party 0 receives nothing. Party 2 receives c and c * a
               minus two streams of parties 0 and 1, uniform to it, then party 1's half minus a third stream
               of parties 0 and 1, uniform to it as well. Party 1 receives party 2's half minus a stream of
               parties 0 and 2, uniform to it. Components 0 and 1 of the result are those last streams, so the
               result is freshly shared.
    Source:    the bit injection of ABY3 (Mohassel & Rindal 2018), section 5.4.1, with streams for oblivious
               transfer.

    Raises:
        UsageError: The bit is not one plane over x.size elements, or the ring differs.
    """
    require_ring(party, x)
    if bit.planes != 1 or bit.count != x.size:
        raise UsageError(f"one bit an element is needed to select from {x!r}, got {bit!r}")
    own, following = _select_as_party_0(party, bit, x) if party.id == 0 else _select_as_other(party, bit, x)
    return RepShare(own.reshape(x.shape), following.reshape(x.shape), x.fraction_bits)


def _select_as_party_0(party: Party, bit: BitShare, x: RepShare) -> tuple[RingArray, RingArray]:
    ring = party.ring
    with_1, with_2 = party.stream_with(1), party.stream_with(2)
    c = unpack_bits(bit.own ^ bit.next, bit.count, ring)
    a = known_word(party, x).reshape(-1)

    # One round, to party 2 only: its halves of c and of c * a; party 1's halves are streams.
    c_2 = c - with_1.words(c.shape, ring)
    ca_2 = c * a - with_1.words(c.shape, ring)
    party.exchange({2: [c_2, ca_2]}, {})

    z_1 = with_1.words(c.shape, ring)
    z_0 = with_2.words(c.shape, ring)
    return z_0, z_1


def _select_as_other(party: Party, bit: BitShare, x: RepShare) -> tuple[RingArray, RingArray]:
    ring, other, stream = party.ring, 3 - party.id, party.stream_with(0)
    v = unpack_bits(bit.next if party.id == 1 else bit.own, bit.count, ring)
    x_2 = known_word(party, x).reshape(-1)
    layout = Layout(v.shape, ring)

    # The halves of c and of c * a, and this party's part of v * x: party 1 adds x_1 and x_2, party 2 adds
    # x_0.
    if party.id == 1:
        c_half, ca_half = stream.words(v.shape, ring), stream.words(v.shape, ring)
        part_of_x = x.own.reshape(-1) + x_2
    else:
        c_half, ca_half = party.exchange({}, {0: [layout, layout]})[0]
        part_of_x = x.next.reshape(-1)

    # Local: this half of the product, then one round between parties 1 and 2, each half under its own stream.
    agreed = ca_half + c_half * x_2
    half = agreed + v * (part_of_x - agreed - agreed)
    z_known = stream.words(v.shape, ring)
    half -= z_known
    z_2 = half + party.exchange({other: [half]}, {other: [layout]})[other][0]
    return (z_known, z_2) if party.id == 1 else (z_2, z_known)


def _relu_cost(x: RepShare, window_bits: int) -> Cost:
    return _is_negative_cost(x, window_bits) + _select_cost_of(x)


@protocol(cost=_relu_cost, source="ABY3 (Mohassel & Rindal 2018), sections 5.3 and 5.4")
def relu(party: Party, x: RepShare, window_bits: int) -> RepShare:
    """Keep positive elements, set negative ones to zero: ``[max(x, 0)]``.

    Shapes:    the result has the shape of x.
    Units:     as ``is_negative``: x fits the window of ``window_bits`` bits; the fraction bits are those of
               x.
    Cost:      3 + ceil(log2(w - 1)) rounds; about 57 B an element over all parties at w = 21 in the 64-bit
               ring.
    Security:  semi-honest, one corrupt party of three: ``is_negative`` and ``select`` one after the other, on
               streams used once. Nothing is opened; the result is freshly shared.
    Source:    ABY3 (Mohassel & Rindal 2018), sections 5.3 and 5.4.

    Raises:
        UsageError: As ``is_negative``.
    """
    negative = is_negative(party, x, window_bits)
    positive = negative.xor_public(party.id, np.full_like(negative.own, ~np.uint64(0)))
    return select(party, positive, x)
