"""Piecewise linear functions of masked values: sigmoid, exp, 1/x and the like, in three rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsec.errors import UsageError
from fedsec.mpc.dealt.gates import FIRST, Fields, Gate, Masks, Material, Rounds, count_of, flat, layout
from fedsec.mpc.dealt.kernels import compiled
from fedsec.mpc.dealt.maximum import check_window
from fedsec.mpc.dealt.plain import Bytes, Planes
from fedsec.mpc.dealt.signs import Payload, Signs
from fedsec.mpc.dealt.truncation import TruncateGate
from fedsec.mpc.party import Layout
from fedsec.ring import Ring, RingArray


@dataclass(frozen=True, slots=True)
class Pieces:
    """y = first_slope * x + offset + sum over k of slopes[k] * max(0, x - knots[k]), public integers.

    Attributes:
        knots: Where the slope changes, with the fraction bits of x.
        slopes: By how much it changes there.
        first_slope: The slope below all knots.
        offset: With the fraction bits of x and of the slopes together.
    """

    knots: tuple[int, ...]
    slopes: tuple[int, ...]
    first_slope: int
    offset: int

    def __post_init__(self) -> None:
        """Refuse pieces that do not fit together."""
        if not self.knots or len(self.knots) != len(self.slopes):
            raise UsageError(
                f"a change of slope is needed for each of at least one knot, got {len(self.slopes)} for "
                f"{len(self.knots)}"
            )


class KnotSigns(Signs):
    """Signs of x - knot for several knots: all have the mask of x, so one set of tables serves all of them.

    A table is a secret in shares, and what is looked up in it is never opened but under a delta of its own:
    looking up two entries tells no more than one.
    """

    def __init__(
        self,
        party_id: int,
        count: int,
        knots: Sequence[RingArray],
        window_bits: int,
        payloads: Sequence[Payload],
    ) -> None:
        """Choose the chunks.

        Args:
            party_id: Id of the party that holds this.
            count: Values of x an image.
            knots: Public ring elements, one a knot.
            window_bits: Bits of x - knot, the sign among them.
            payloads: What is multiplied with each sign; values are [N, knots * count].

        Raises:
            UsageError: There are no tables for a window of so many bits.
        """
        super().__init__(party_id, len(knots) * count, window_bits, payloads)
        self._knots = knots
        tables = tuple(layout(chunk.ring, self.n, count) for chunk in self.chunks)
        self.fields = Fields(tables + self.fields.dealt[self.n :], self.fields.masks)

    def digits(self, window: RingArray, shares: Sequence[RingArray], delta: Planes) -> Planes:
        """Return this evaluator's masked share of the digits of all knots, to be opened: [N, n, words].

        Args:
            window: Words that hold the masked values of x, shape [N, count].
            shares: This evaluator's shares of the fields.
            delta: Its part of the mask.
        """
        kernels = compiled()
        found: Bytes = np.zeros((len(self._knots), *window.shape), dtype=np.uint8)
        for knot, digits in zip(self._knots, found, strict=True):
            at_knot = window - knot
            for chunk, planes in zip(self.chunks, shares, strict=False):
                kernels.lookup(at_knot, chunk.shift, chunk.bits, planes, digits)
        masked: Planes = np.empty(delta.shape, dtype=np.uint64)
        kernels.add_digits(flat(np.ascontiguousarray(found.swapaxes(0, 1))), delta, masked)
        return masked


class PiecewiseGate(Gate):
    """A piecewise linear function of x, then truncated.

    With keep_k = 1 where x >= knots[k], else 0, the function is

        first_slope * x + offset + sum of slopes[k] * keep_k * (x - knots[k])

    The signs of all x - knots[k] are opened together. With x = m + r the evaluators have shares of keep_k * m
    locally, and keep_k * r is dealt.
    """

    def __init__(
        self,
        party_id: int,
        source: Layout,
        pieces: Pieces,
        *,
        window_bits: int,
        bits: int,
        ring: Ring,
        final: bool = False,
    ) -> None:
        """Choose tables.

        Args:
            party_id: Id of this party.
            source: Shape without the batch, and ring of x. Two bits of the ring must be free above the sum.
            pieces: The function.
            window_bits: Number of bits that hold every x - knots[k] with its sign.
            bits: Number of low bits to drop from the sum.
            ring: Ring of the result.
            final: Whether the result stays in additive shares.

        Raises:
            UsageError: The window does not fit the ring, or there are no tables for it; or another ring is
                asked for without dropping bits.
        """
        check_window(source, window_bits)
        if bits == 0 and ring != source.ring:
            raise UsageError(f"a sum that is not truncated stays in {source.ring}, asked for {ring}")
        self._pieces, self._source = pieces, source
        self._knots, self._slopes = self._words(pieces.knots), self._words(pieces.slopes)
        self._signs = KnotSigns(
            party_id,
            count_of(source.shape),
            list(self._knots),
            window_bits,
            [Payload(source.ring, 1), Payload(source.ring)],
        )
        self._truncation = None
        if bits:
            most = source.ring.bits - 1 - bits
            self._truncation = TruncateGate(
                party_id, source, bits=bits, window_bits=most, ring=ring, final=final
            )
        fields = self._signs.fields
        if self._truncation is None:
            super().__init__(party_id, fields, 1, source, final=final)
            return
        # The sum is opened under a mask of its own; the truncation brings the mask of the result.
        fields += Fields(masks=(source,)) + self._truncation.fields
        super().__init__(
            party_id, fields, 2 + self._truncation.rounds, Layout(source.shape, ring), final=True
        )
        self.final = final

    def deal(
        self, r: Sequence[RingArray], shares: Sequence[RingArray], masks: Sequence[Masks]
    ) -> RingArray | None:
        """Deal the tables of all signs, then those of the truncation."""
        mask = flat(r[0])
        tables = len(self._signs.fields.dealt)
        self._signs.deal(mask, [None, np.tile(mask, len(self._knots))], shares[:tables], masks[0])
        if self._truncation is None:
            return self.result_mask(masks)
        opened = masks[1][0] + masks[1][1]
        return self._truncation.deal([opened], shares[tables:], masks[2:])

    def prepare(
        self, r: Sequence[RingArray], shares: Sequence[RingArray], masks: Sequence[RingArray]
    ) -> tuple[Material, RingArray | None]:
        """Keep tables and masks; the mask of x is part of the sum."""
        tables = len(self._signs.fields.dealt)
        kept = (*shares[:tables], masks[0], r[0])
        if self._truncation is None:
            return (*kept, *masks[1:]), None if self.final else masks[1]
        material, mask = self._truncation.prepare([masks[1]], shares[tables:], masks[2:])
        return (*kept, masks[1], *material), mask

    def run(self, m: Sequence[RingArray], material: Material) -> Rounds:
        """Open the digits of all signs, form the sum, open and truncate it."""
        tables = len(self._signs.fields.dealt)
        shares, (delta, r, *rest) = material[:tables], material[tables:]
        mine = self._signs.digits(flat(m[0]), shares, delta)

        # One round: the digits under their masks.
        theirs = yield mine

        total = self._summed(m[0], r, self._signs.keep(mine, theirs, shares))
        if self._truncation is None:
            # One round: the sum under its mask, unless it stays in shares.
            return (yield from self.opened(total, material))
        total -= rest[0]
        # One round: the sum under its mask.
        theirs = yield total
        # One round: the truncated sum under its mask.
        return (yield from self._truncation.run([theirs + total], tuple(rest[1:])))

    def _summed(self, m: RingArray, r: RingArray, kept: Sequence[RingArray]) -> RingArray:
        """Return this evaluator's share of the sum."""
        keep, keep_r = (part.reshape(len(m), len(self._knots), -1) for part in kept)
        masked = flat(m)
        share = flat(r + m if self.party_id == FIRST else r) * self._words([self._pieces.first_slope])
        # One knot at a time: what it adds fits the cache.
        for k, (knot, slope) in enumerate(zip(self._knots, self._slopes, strict=True)):
            part = masked - knot
            part *= keep[:, k]
            part += keep_r[:, k]
            part *= slope
            share += part
        if self.party_id == FIRST:
            share += self._words([self._pieces.offset])
        return share.reshape(m.shape)

    def _words(self, numbers: Sequence[int]) -> RingArray:
        return np.array([number % self._source.ring.modulus for number in numbers], self._source.ring.dtype)
