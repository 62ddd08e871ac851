"""Signs of masked values by one-time tables, with what is kept or dropped by them.

A masked value m and its mask r add up to a w-bit number T modulo 2^w. Cut m and r into chunks c_1 (lowest) to
c_n. With d_1 the carry out of chunk 1, and d_i = 1, 0, -1 where chunk i generates, propagates or kills a
carry,

    D  =  d_1 + sum over i >= 2 of 2^(i-2) * d_i

is at least 1 exactly when a carry reaches the top bit: the highest chunk that does not propagate decides, and
all below it together count less. D + 2^(n-1) - 1 is an n-bit digit whose top bit is that carry; adding
2^(n-1) times the XOR of the top bits of m and r makes it the sign. Every d_i depends on one chunk of m and
one of r, so the dealer writes a table of it over all values of the chunk of m and shares it between the
evaluators, who look up their shares: a table is used once, and which entry is taken both know anyway.

The evaluators open j = D + delta. For each c = 0 .. 2^(n-1) - 1 the dealer has shared the sign p_c that
j = c would mean, and p_c times each payload; j + 2^(n-1) means the opposite sign. So shares of the payload
times the opposite of the sign are a local choice.

Source: the construction is ours; one-time tables are those of Ishai, Kushilevitz, Meldgaard, Orlandi,
Paskin-Cherniavsky 2013 ("On the power of correlated randomness in secure computation").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedsec.mpc.dealt.chunks import chunks_of
from fedsec.mpc.dealt.gates import FIRST, Fields, Masks, layout
from fedsec.mpc.dealt.kernels import compiled
from fedsec.mpc.dealt.plain import Bytes, Planes
from fedsec.mpc.party import BIT_WORDS
from fedsec.ring import Ring, RingArray
from fedsec.sharing.boolean import LANES


class Payload(NamedTuple):
    """What is multiplied with "the value is not negative".

    Attributes:
        ring: Its ring.
        constant: The public number that it is for all elements, or None if the dealer knows it.
    """

    ring: Ring
    constant: int | None = None


class Signs:
    """The signs of ``count`` numbers of ``window_bits`` bits an image.

    Attributes:
        fields: The tables, one field a chunk, then one a payload; one mask, that of the digits.
        n: Bits of a digit.
    """

    def __init__(
        self, party_id: int, count: int, window_bits: int, payloads: Sequence[Payload], *, shift: int = 0
    ) -> None:
        """Choose the chunks.

        Args:
            party_id: Id of the party that holds this.
            count: Numbers an image.
            window_bits: Their bits, the sign among them.
            payloads: What is multiplied with each sign.
            shift: Place of the window's lowest bit in the words that ``deal`` and ``digits`` get.

        Raises:
            UsageError: There are no tables for a window of so many bits.
        """
        self.party_id, self.count, self.payloads = party_id, count, tuple(payloads)
        kept_bytes = sum(payload.ring.element_bytes for payload in payloads)
        self.chunks = chunks_of(window_bits, kept_bytes, shift)
        self.n = len(self.chunks)
        kept = 1 << (self.n - 1)
        tables = [layout(chunk.ring, self.n, count) for chunk in self.chunks]
        tables += [layout(p.ring, kept if p.constant is not None else kept + 1, count) for p in payloads]
        digits = layout(BIT_WORDS, self.n, -(-count // LANES))
        self.fields = Fields(tuple(tables), (digits,))

    def deal(
        self,
        window: RingArray,
        values: Sequence[RingArray | None],
        shares: Sequence[RingArray],
        delta: Masks,
    ) -> None:
        """Write the tables of a block as the dealer.

        Args:
            window: Words that hold the windows of the masks, shape [N, count].
            values: Of each payload that is no constant the values, [N, count] of its ring.
            shares: Evaluator 1's shares of the fields; are overwritten by evaluator 2's.
            delta: Both parts of the mask of the digits.
        """
        kernels = compiled()
        for chunk, planes in zip(self.chunks, shares, strict=False):
            kernels.deal_chunk(window, chunk, planes)
        digits: Bytes = np.empty((len(window), self.count), dtype=np.uint8)
        kernels.sum_digits(*delta, digits)
        for payload, value, share in zip(self.payloads, values, shares[self.n :], strict=True):
            known = np.full(digits.shape, payload.constant, payload.ring.dtype) if value is None else value
            kernels.deal_kept(digits, self.n, known, share)

    def digits(self, window: RingArray, shares: Sequence[RingArray], delta: Planes) -> Planes:
        """Return this evaluator's masked share of the digits, to be opened: [N, n, words].

        Args:
            window: Words that hold the windows of the masked values, shape [N, count].
            shares: This evaluator's shares of the fields.
            delta: Its part of the mask.
        """
        kernels = compiled()
        digits: Bytes = np.zeros((len(window), self.count), dtype=np.uint8)
        for chunk, planes in zip(self.chunks, shares, strict=False):
            kernels.lookup(window, chunk.shift, chunk.bits, planes, digits)
        masked: Planes = np.empty(delta.shape, dtype=np.uint64)
        kernels.add_digits(digits, delta, masked)
        return masked

    def keep(self, mine: Planes, theirs: Planes, shares: Sequence[RingArray]) -> list[RingArray]:
        """Return this evaluator's shares of each payload, [N, count], 0 where the value is negative.

        Args:
            mine: What ``digits`` returned.
            theirs: The same of the other evaluator.
            shares: This evaluator's shares of the fields.
        """
        kernels = compiled()
        digits: Bytes = np.empty((len(mine), self.count), dtype=np.uint8)
        kernels.sum_digits(mine, theirs, digits)
        kept: list[RingArray] = []
        for payload, share in zip(self.payloads, shares[self.n :], strict=True):
            out = np.empty(digits.shape, dtype=payload.ring.dtype)
            whole = payload.constant if payload.constant is not None and self.party_id == FIRST else 0
            kernels.choose(digits, self.n, whole, share, out)
            kept.append(out)
        return kept
