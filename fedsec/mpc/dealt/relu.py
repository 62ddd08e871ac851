"""ReLU of masked values, with a truncation before it and a change of ring after it, in two rounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsec.errors import UsageError
from fedsec.mpc.dealt.gates import FIRST, Gate, Masks, Material, Rounds, count_of, flat
from fedsec.mpc.dealt.kernels import compiled
from fedsec.mpc.dealt.plain import Planes
from fedsec.mpc.dealt.signs import Payload, Signs
from fedsec.mpc.party import Layout
from fedsec.ring import RING32, RING64, WORD_SIZES, Ring, RingArray


def wrap_ring(ring: Ring, window_bits: int) -> Ring:
    """Return the smallest ring in which a wrap can be counted: it counts times 2^window_bits modulo 2^k."""
    return Ring(next(size for size in WORD_SIZES if size >= ring.bits - window_bits))


def window_ring(window_bits: int) -> Ring:
    """Return the words that windows of so many bits are kept in."""
    return RING32 if window_bits <= RING32.bits else RING64


def cut(words: RingArray, shift: int, bits: int) -> RingArray:
    """Return ``bits`` bits from place ``shift`` of every word of [N, count], in words of ``window_ring``."""
    out = np.empty(words.shape, dtype=window_ring(bits).dtype)
    compiled().window(words, shift, bits, out)
    return out


def rest_and_wrap(r: RingArray, bits: int, ring: Ring) -> tuple[RingArray, RingArray]:
    """Return R = r - 2^bits in ``ring`` and U = 1 where the top bit of r is 0, for windows of ``bits`` bits.

    For 0 <= T < 2^(bits-1) and T = m + r modulo 2^bits: if the top bit of m is 1, the sum wraps around, and
    T = m + R. If it is 0, the sum wraps around exactly when the top bit of r is 1: T = m + R + 2^bits * U.
    """
    rest = r.astype(ring.dtype) - ring.dtype.type((1 << bits) % ring.modulus)
    wrap = r >> r.dtype.type(bits - 1) ^ r.dtype.type(1)
    return rest, wrap.astype(wrap_ring(ring, bits).dtype)


class ReluGate(Gate):
    """max(0, T) for T = x / 2^bits rounded down, or that minus 1.

    Exact on all masks if -2^(w-1+d) + 2^(d+g) <= x < 2^(w-1+d) with d = ``bits``, w = ``window_bits``,
    g = ``ignore_bits``. If T is in [0, 2^g) it may come out as 0; a negative T always does.
    """

    def __init__(
        self,
        party_id: int,
        source: Layout,
        *,
        bits: int,
        window_bits: int,
        ignore_bits: int = 0,
        ring: Ring,
        final: bool = False,
    ) -> None:
        """Choose tables.

        Args:
            party_id: Id of this party.
            source: Shape without the batch, and ring of the input.
            bits: Number d of low bits to drop.
            window_bits: Number w of bits that hold T with its sign.
            ignore_bits: Number g of low bits of T that the sign does not look at.
            ring: Ring of the result.
            final: Whether the result stays in additive shares.

        Raises:
            UsageError: The window does not fit the ring, or what is ignored the window.
        """
        if bits < 0 or ignore_bits < 0 or bits + window_bits > source.ring.bits:
            raise UsageError(
                f"a window of {window_bits} bits above {bits} dropped ones does not fit {source.ring}"
            )
        self.bits, self.window_bits = bits, window_bits
        payloads = [Payload(ring, 1), Payload(ring), Payload(wrap_ring(ring, window_bits))]
        sign_bits = window_bits - ignore_bits
        self.signs = Signs(party_id, count_of(source.shape), sign_bits, payloads, shift=ignore_bits)
        super().__init__(party_id, self.signs.fields, 1, Layout(source.shape, ring), final=final)
        places = [number for chunk in self.signs.chunks for number in (chunk.shift, chunk.bits)]
        self._numbers = (bits, window_bits, *places)

    def deal(
        self, r: Sequence[RingArray], shares: Sequence[RingArray], masks: Sequence[Masks]
    ) -> RingArray | None:
        """Prepare as the dealer."""
        window = cut(flat(r[0]), self.bits, self.window_bits)
        rest, wrap = rest_and_wrap(window, self.window_bits, self.ring)
        self.signs.deal(window, [None, rest, wrap], shares, masks[0])
        return self.result_mask(masks)

    def run(self, m: Sequence[RingArray], material: Material) -> Rounds:
        """Look up, open the digits, choose and open the result."""
        tables = len(self.signs.fields.dealt)
        delta = material[tables]
        window, mine = self._digits(flat(m[0]), material, delta)

        # One round: the digits under their mask.
        theirs = yield mine

        share = np.empty(window.shape, dtype=self.ring.dtype)
        numbers = (self.window_bits, int(self.party_id == FIRST))
        compiled().relu_share((mine, theirs), window, numbers, material[tables - 3 : tables], share)
        # One round: the result under its mask.
        return (yield from self.opened(share.reshape(m[0].shape), material))

    def _digits(self, words: RingArray, material: Material, delta: Planes) -> tuple[RingArray, Planes]:
        """Return the windows of masked values and this evaluator's masked share of their digits."""
        if self.signs.n != 2:
            window = cut(words, self.bits, self.window_bits)
            return window, self.signs.digits(window, material, delta)
        window = np.empty(words.shape, dtype=window_ring(self.window_bits).dtype)
        masked: Planes = np.empty(delta.shape, dtype=np.uint64)
        compiled().two_digits(words, self._numbers, (material[0], material[1], delta), window, masked)
        return window, masked
