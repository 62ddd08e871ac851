"""Signs on a window of bits, bits as words, and selection by a shared bit."""

from __future__ import annotations

import numpy as np

from fedsec.errors import UsageError
from fedsec.mpc.costs import Cost, protocol
from fedsec.mpc.party import Layout, Party
from fedsec.mpc.signs import SignMasks, SignWindow, open_sign, planes_to_deal
from fedsec.mpc.two_holders import BITS, WORDS, Pair, known_word
from fedsec.mpc.two_parties import deal, join, joined, take_dealt
from fedsec.ring import RING64, Ring, RingArray
from fedsec.sharing.boolean import BitShare, Planes, unpack_bits
from fedsec.sharing.replicated import RepShare


def _is_negative_cost(x: RepShare | Pair, window_bits: int) -> Cost:
    return SignWindow.of(x.size, x.ring, window_bits=window_bits).cost


@protocol(
    cost=_is_negative_cost,
    source="ABY2.0 (Patra, Schneider, Suresh, Yalame 2021), products of masked bits; prefix adder as in ABY3",
)
def is_negative(party: Party, x: RepShare | Pair, window_bits: int) -> BitShare:
    """Take the sign of a secret from its lowest ``window_bits`` bits: 1 for negative.

    With a = x_0 + x_1 (party 0) and b = x_2 (parties 1 and 2), the sign is bit w - 1 of a + b modulo 2^w:
    see ``signs``.

    Shapes:    one plane over x.size elements, in C order.
    Units:     -2^(w-1) <= x < 2^(w-1) as an integer with w = ``window_bits`` is required; the window is
               public.
    Cost:      2 rounds and one a level of the tree over ceil((w - 1) / 3) chunks; about 11 B an element over
               all parties at w = 21.
    Security:  semi-honest, one corrupt party of three. Party 0 receives nothing; parties 1 and 2 receive
               dealt halves and openings under masks, uniform to them (``two_parties``). Components 0 and 1 of
               the result are fresh streams. Only the window's width, which is public, shapes what is sent.
    Source:    products of masked bits as in ABY2.0 (Patra et al. 2021), the prefix adder as in ABY3 (Mohassel
               & Rindal 2018), section 5.3.

    Raises:
        UsageError: ``window_bits`` is not between 2 and the ring's bits.
    """
    window = SignWindow.of(x.size, x.ring, window_bits=window_bits)
    masks = SignMasks.draw(party, window)
    known = known_word(party, x)
    # One message, from party 0 to party 2; then parties 1 and 2 are among themselves.
    if party.id == 0:
        party.exchange({2: deal(party, BITS, [planes_to_deal(window, known, masks)])}, {})
        opened = None
    else:
        dealt = take_dealt(party, [window.dealt_layout])[0]
        opened = open_sign(party, window, known, dealt, masks)
    own, following = joined(party, masks.sign, opened)
    return BitShare(_planes(own), _planes(following), x.size)


def _planes(words: RingArray) -> Planes:
    return words.astype(np.uint64, copy=False)


def _bits_to_words_cost(bit: BitShare, ring: Ring = RING64) -> Cost:
    size = bit.count * ring.element_bytes
    return Cost.each(rounds=2, sent_bytes=size)


@protocol(
    cost=_bits_to_words_cost,
    source="fedsec: bit injection as in ABY3 (Mohassel & Rindal 2018), section 5.4.1",
)
def bits_to_words(party: Party, bit: BitShare, ring: Ring = RING64) -> RepShare:
    """Turn shared bits into shared words 0 and 1.

    The bit is c XOR v = v + (1 - 2v) * c with c = b_0 XOR b_1 (party 0) and v = b_2 (parties 1 and 2): party
    0 deals halves of c, the rest is local.

    Shapes:    bit has one plane, the result is flat with its count.
    Units:     integers of ``ring``, no fraction bits.
    Cost:      2 rounds; every party sends one word an element.
    Security:  semi-honest, one corrupt party of three. Party 0 receives nothing; what the others receive are
               a dealt half and an opening under a mask, uniform to them (``two_parties``).
    Source:    as ``select``.

    Raises:
        UsageError: There is more than one plane.
    """
    if bit.planes != 1:
        raise UsageError(f"one plane of bits makes words, got {bit!r}")
    layout = Layout((bit.count,), ring)
    half = None
    if party.id == 0:
        party.exchange({2: deal(party, WORDS, [unpack_bits(bit.own ^ bit.next, bit.count, ring)])}, {})
    else:
        c_half = take_dealt(party, [layout])[0]
        v = unpack_bits(bit.next if party.id == 1 else bit.own, bit.count, ring)
        half = np.asarray(c_half - v * (c_half + c_half))
        if party.id == 1:
            half += v
    return RepShare(*join(party, WORDS, half, layout))


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
        UsageError: The bit is not one plane over x.size elements.
    """
    if bit.planes != 1 or bit.count != x.size:
        raise UsageError(f"one bit an element is needed to select from {x!r}, got {bit!r}")
    own, following = _select_as_party_0(party, bit, x) if party.id == 0 else _select_as_other(party, bit, x)
    return RepShare(own.reshape(x.shape), following.reshape(x.shape), x.fraction_bits)


def _select_as_party_0(party: Party, bit: BitShare, x: RepShare) -> tuple[RingArray, RingArray]:
    ring = x.ring
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
    ring, other, stream = x.ring, 3 - party.id, party.stream_with(0)
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
