"""Truncation of masked values, with a change of ring, in one round."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsec.errors import UsageError
from fedsec.mpc.dealt.gates import FIRST, Fields, Gate, Masks, Material, Rounds, count_of, flat
from fedsec.mpc.dealt.kernels import compiled
from fedsec.mpc.dealt.relu import cut, rest_and_wrap, wrap_ring
from fedsec.mpc.party import Layout
from fedsec.ring import Ring, RingArray


class TruncateGate(Gate):
    """T = x / 2^bits rounded down, or that minus 1.

    T and T - 1 must lie in [-2^(w-1), 2^(w-1)) with w = ``window_bits``. T + 2^(w-1), which is not negative,
    is put together as in the ReLU, from a window of one bit more.
    """

    def __init__(
        self,
        party_id: int,
        source: Layout,
        *,
        bits: int,
        window_bits: int,
        ring: Ring,
        final: bool = False,
    ) -> None:
        """Check that the window fits.

        Args:
            party_id: Id of this party.
            source: Shape without the batch, and ring of the input.
            bits: Number of low bits to drop.
            window_bits: Number of bits that hold T with its sign.
            ring: Ring of the result.
            final: Whether the result stays in additive shares.

        Raises:
            UsageError: The window and one bit more do not fit the ring.
        """
        if bits < 0 or window_bits < 1 or bits + window_bits >= source.ring.bits:
            raise UsageError(
                f"truncating {bits} bits needs a window of {window_bits} bits and one more in {source.ring}"
            )
        self.bits, self.window_bits = bits, window_bits + 1
        self.source = source.ring
        count = count_of(source.shape)
        fields = Fields((Layout((count,), ring), Layout((count,), wrap_ring(ring, self.window_bits))))
        super().__init__(party_id, fields, 0, Layout(source.shape, ring), final=final)

    def deal(
        self, r: Sequence[RingArray], shares: Sequence[RingArray], masks: Sequence[Masks]
    ) -> RingArray | None:
        """Prepare as the dealer."""
        window = cut(flat(r[0]), self.bits, self.window_bits)
        for share, value in zip(shares, rest_and_wrap(window, self.window_bits, self.ring), strict=True):
            np.subtract(value, share, out=share)
        return self.result_mask(masks)

    def run(self, m: Sequence[RingArray], material: Material) -> Rounds:
        """Put the result together and open it."""
        half = 1 << (self.window_bits - 2)
        raised = m[0] + self.source.dtype.type(half << self.bits)
        window = cut(flat(raised), self.bits, self.window_bits)
        word = self.ring.dtype.type
        mine = self.party_id == FIRST
        keep = np.full(window.shape, mine, dtype=self.ring.dtype)
        compiled().combine(window, self.window_bits, material[0], material[1], keep)
        if mine:
            keep -= word(half % self.ring.modulus)
        # One round: the result under its mask.
        return (yield from self.opened(keep.reshape(m[0].shape), material))
