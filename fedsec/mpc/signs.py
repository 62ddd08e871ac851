"""The sign of a + b where party 0 knows a and parties 1 and 2 know b, as halves of parties 1 and 2.

The sign is bit w - 1 of a + b modulo 2^w, that is a XOR b XOR carry there. The bits below are taken three at
a time. Whether a chunk generates a carry (G), and whether it propagates one (P), is a polynomial in the three
bits of a whose coefficients parties 1 and 2 know, because they know b:

    G = a2 b2 + (a2 + b2)(a1 b1 + (a1 + b1) a0 b0),     P = (a2 + b2)(a1 + b1)(a0 + b0)      modulo 2.

So party 0 deals halves of the seven monomials a0, a1, a1 a0, a2, a2 a0, a2 a1, a2 a1 a0 of every chunk, and
parties 1 and 2 have halves of G and P without a message. A tree of pairs of chunks gives the carry: the upper
chunk generates one, or propagates that of the lower. Each level opens three bits a pair under masks, of which
party 0 deals the two products (``two_parties``).

All of it is bit-sliced: one plane a bit, 64 elements a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fedsec.errors import UsageError
from fedsec.mpc.costs import Cost
from fedsec.mpc.party import BIT_WORDS, Layout, Party
from fedsec.mpc.two_holders import BITS
from fedsec.mpc.two_parties import Mask, draw_mask, open_halves
from fedsec.ring import Ring, RingArray
from fedsec.sharing.boolean import LANES, Planes, pack_bits, unpack_bits

CHUNK = 3
"""Bits of a chunk: two would need more levels of the tree, four more than twice the dealt bits."""

_MONOMIALS = (1 << CHUNK) - 1


@dataclass(frozen=True, slots=True)
class SignWindow:
    """Which bits a sign is taken from; public.

    Attributes:
        low: The lowest bit that is looked at.
        planes: Number of bits, the sign's own included.
        padding: Zero bits put below so that the others make whole chunks.
        count: Number of elements.
    """

    low: int
    planes: int
    padding: int
    count: int

    @classmethod
    def of(
        cls, count: int, ring: Ring, *, window_bits: int, bits: int = 0, ignore_bits: int = 0
    ) -> SignWindow:
        """Return the window of a value whose sign is bit ``bits + window_bits - 1``.

        Args:
            count: Number of elements.
            ring: Ring of the value.
            window_bits: Bits of the value from ``bits`` upwards, the sign included.
            bits: Lowest bits that do not count.
            ignore_bits: Further bits above those that the sign may leave out; fewer are, if whole chunks need
                them.

        Raises:
            UsageError: Fewer than two bits are left, or the window does not fit the ring.
        """
        if bits < 0 or ignore_bits < 0 or window_bits - ignore_bits < 2 or bits + window_bits > ring.bits:
            raise UsageError(
                f"a sign needs a window of 2 to {ring.bits} bits; got {window_bits}, of which {ignore_bits}"
                f" are ignored, {bits} bits up in the {ring.bits}-bit ring"
            )
        below = CHUNK * -(-(window_bits - 1 - ignore_bits) // CHUNK)
        unused = max(0, window_bits - 1 - below)
        return cls(bits + unused, window_bits - unused, max(0, below - (window_bits - 1)), count)

    @property
    def chunks(self) -> int:
        """Number of chunks below the sign bit."""
        return (self.planes + self.padding - 1) // CHUNK

    @property
    def lane_words(self) -> int:
        """Words of a plane."""
        return -(-self.count // LANES)

    @property
    def levels(self) -> Iterator[int]:
        """Pairs of chunks that each level of the tree joins."""
        chunks = self.chunks
        while chunks > 1:
            yield chunks // 2
            chunks -= chunks // 2

    @property
    def opened_planes(self) -> int:
        """Planes that parties 1 and 2 open in all levels."""
        return sum(3 * pairs - 1 for pairs in self.levels)

    @property
    def dealt_planes(self) -> int:
        """Planes that party 0 deals: monomials, its sign bit, and products of masks."""
        return _MONOMIALS * self.chunks + 1 + sum(2 * pairs - 1 for pairs in self.levels)

    @property
    def dealt_layout(self) -> Layout:
        """Layout of the dealt planes."""
        return Layout((self.dealt_planes, self.lane_words), BIT_WORDS)

    @property
    def cost(self) -> Cost:
        """Cost of a sign: one message of party 0, a round a level, and one to open the sign."""
        opened = (self.opened_planes + 1) * self.lane_words * BIT_WORDS.element_bytes
        rounds = 2 + sum(1 for _ in self.levels)
        return Cost(rounds, (self.dealt_layout.size_bytes, opened, opened))

    def cut(self, known: RingArray) -> Planes:
        """Return the bits of a known word as planes, the padding at the bottom."""
        words = np.asarray(known.reshape(-1) >> known.dtype.type(self.low))
        planes = pack_bits(words, self.planes)
        if not self.padding:
            return planes
        return np.concatenate([np.zeros((self.padding, self.lane_words), dtype=np.uint64), planes])


class SignMasks(NamedTuple):
    """Masks of what parties 1 and 2 open for a sign: the bits of the tree, and the sign itself."""

    tree: Mask
    sign: Mask

    @classmethod
    def draw(cls, party: Party, window: SignWindow) -> SignMasks:
        """Draw both."""
        parts = draw_mask(party, (window.opened_planes + 1, window.lane_words), BIT_WORDS)
        return cls(tuple(part[:-1] for part in parts), tuple(part[-1:] for part in parts))

    def words(self, count: int, ring: Ring) -> RingArray:
        """Return, at party 0, the mask of each sign as a word 0 or 1."""
        return unpack_bits(_planes(self.sign[0] ^ self.sign[1]), count, ring)


def planes_to_deal(window: SignWindow, known: RingArray, masks: SignMasks) -> RingArray:
    """Return, at party 0, the planes that it deals: [dealt planes, words]."""
    planes = window.cut(known)
    dealt = np.empty((window.dealt_planes, window.lane_words), dtype=np.uint64)
    ends = _MONOMIALS * window.chunks
    _write_monomials(planes[:-1], dealt[:ends])
    dealt[ends] = planes[-1]
    mask = masks.tree[0] ^ masks.tree[1]
    opened, ends = 0, ends + 1
    for pairs in window.levels:
        left, right = _factors(mask[opened : opened + 3 * pairs - 1], pairs)
        dealt[ends : ends + 2 * pairs - 1] = left & right
        opened, ends = opened + 3 * pairs - 1, ends + 2 * pairs - 1
    return dealt


def open_sign(
    party: Party, window: SignWindow, known: RingArray, dealt: RingArray, masks: SignMasks
) -> Planes:
    """Return, at parties 1 and 2, the sign XOR its mask, one plane; a round a level and one more.

    Args:
        party: Party 1 or 2.
        window: The bits that count.
        known: What both know, b.
        dealt: This party's half of what party 0 dealt.
        masks: This party's parts.
    """
    planes = window.cut(known)
    ends = _MONOMIALS * window.chunks
    generate, propagate = _chunk_halves(planes[:-1], dealt[:ends], first=party.id == 1)
    sign = dealt[ends]
    if party.id == 1:
        sign = sign ^ planes[-1]
    carry = _carry_half(party, window, (generate, propagate), dealt[ends + 1 :], masks.tree[0])
    return _planes(open_halves(party, BITS, (sign ^ carry)[None], masks.sign[0]))


def _write_monomials(bits: RingArray, monomials: RingArray) -> None:
    """Write a0, a1, a1 a0, a2, a2 a0, a2 a1, a2 a1 a0 of all chunks."""
    a0, a1, a2 = bits[0::CHUNK], bits[1::CHUNK], bits[2::CHUNK]
    out = monomials.reshape(_MONOMIALS, len(a0), -1)
    out[0], out[1], out[3] = a0, a1, a2
    np.bitwise_and(a1, a0, out=out[2])
    np.bitwise_and(a2, a0, out=out[4])
    np.bitwise_and(a2, a1, out=out[5])
    np.bitwise_and(out[5], a0, out=out[6])


def _chunk_halves(bits: RingArray, monomials: RingArray, *, first: bool) -> tuple[RingArray, RingArray]:
    """Return halves of what every chunk generates and propagates; one party's has what is known to both."""
    b0, b1, b2 = bits[0::CHUNK], bits[1::CHUNK], bits[2::CHUNK]
    a0, a1, a10, a2, a20, a21, a210 = monomials.reshape(_MONOMIALS, len(b0), -1)
    generate = (a2 ^ (b1 & (a1 ^ (b0 & a0))) ^ (b0 & a10)) & b2
    generate ^= (a21 ^ (b0 & a20)) & b1
    generate ^= b0 & a210
    lowest = a0 ^ b0 if first else a0
    propagate = ((lowest & b1) ^ (a1 & b0) ^ a10) & b2
    propagate ^= ((a2 & b0) ^ a20) & b1
    propagate ^= (a21 & b0) ^ a210
    return generate, propagate


def _carry_half(
    party: Party,
    window: SignWindow,
    halves: tuple[RingArray, RingArray],
    products: RingArray,
    mask: RingArray,
) -> RingArray:
    """Return this party's half of the carry out of the highest chunk; one round a level."""
    generate, propagate = halves
    for pairs in window.levels:
        opens, joins = 3 * pairs - 1, 2 * pairs - 1
        lower, upper = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
        # The lowest chunk's propagation is never asked for: nothing comes into bit 0.
        asked = np.concatenate([propagate[upper], generate[lower], propagate[lower][1:]])
        opened = open_halves(party, BITS, asked, mask[:opens])
        left, right = _factors(opened, pairs)
        mask_left, mask_right = _factors(mask[:opens], pairs)
        joined = (left & mask_right) ^ (right & mask_left) ^ products[:joins]
        if party.id == 1:
            joined ^= left & right
        generate = np.concatenate([generate[upper] ^ joined[:pairs], generate[2 * pairs :]])
        propagate = np.concatenate([propagate[:1], joined[pairs:], propagate[2 * pairs :]])
        products, mask = products[joins:], mask[opens:]
    carry: RingArray = generate[0]
    return carry


def _factors(opened: RingArray, pairs: int) -> tuple[RingArray, RingArray]:
    """Return what is multiplied: upper propagates times lower generates, and times lower propagates."""
    upper = opened[:pairs]
    return np.concatenate([upper, upper[1:]]), opened[pairs:]


def _planes(words: RingArray) -> Planes:
    return words.astype(np.uint64, copy=False)
