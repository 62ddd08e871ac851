"""Replicated sharing among three parties: ``x = x_0 + x_1 + x_2 mod 2^k``, party i holds x_i and x_{i+1}.

One party's pair is uniform and independent of the secret; two parties together can reconstruct. Sums,
differences and products with public numbers are local. A product of two secrets needs one message a party
(``fedsec.mpc``), which the pairs make possible: each of the nine products x_i * y_j can be formed by some
party alone.

Source: Araki, Furukawa, Lindell, Nof, Ohara 2016, "High-Throughput Semi-Honest Secure Three-Party Computation
with an Honest Majority"; Mohassel, Rindal 2018 (ABY3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, ClassVar, NoReturn

import numpy as np

from fedsec.errors import ProtocolError, UsageError
from fedsec.ring import KeyedStream, Ring, RingArray, ring_of

PARTIES = 3

Index = int | slice | EllipsisType | None | tuple[int | slice | EllipsisType | None, ...] | RingArray | Any
"""Anything that numpy takes between square brackets."""


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class RepShare:
    """One party's share of a secret array. Operators are local; none of them ever sends anything.

    Shares made in one process may hold the same arrays (``next`` of party i is ``own`` of party i+1), so they
    are never changed in place.

    Attributes:
        own: x_i, ring elements of the secret's shape.
        next: x_{i+1 mod 3}, of the same shape and dtype.
        fraction_bits: Fraction bits of the secret's fixed-point encoding; 0 for integers. Public.

    Raises:
        ProtocolError: The two arrays differ in shape or dtype.
        InputError: The arrays do not hold ring elements.
    """

    own: RingArray
    next: RingArray
    fraction_bits: int = 0

    # Numpy must not take a share apart in `array + share`; with this it raises TypeError.
    __array_ufunc__: ClassVar[None] = None

    def __post_init__(self) -> None:
        ring_of(self.own)
        if self.own.shape != self.next.shape or self.own.dtype != self.next.dtype:
            raise ProtocolError(
                f"the halves of a replicated share have shapes {self.own.shape} and {self.next.shape}, "
                f"dtypes {self.own.dtype} and {self.next.dtype}: they are not halves of one share"
            )

    def __repr__(self) -> str:
        return f"RepShare(shape={self.shape}, ring={self.ring.bits} bits, fraction_bits={self.fraction_bits})"

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError(
            "shares cannot be compared, equal secrets have different shares; compare after reveal"
        )

    __hash__ = None  # type: ignore[assignment]  # what cannot be compared cannot be a key

    def __bool__(self) -> NoReturn:
        raise TypeError("a share is neither true nor false: nobody knows its secret; reveal it first")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the secret."""
        return self.own.shape

    @property
    def size(self) -> int:
        """Number of elements of the secret."""
        return self.own.size

    @property
    def ring(self) -> Ring:
        """Ring of the secret."""
        return ring_of(self.own)

    def __add__(self, other: RepShare) -> RepShare:
        self._check_same_kind(other)
        return self._with(np.add(self.own, other.own), np.add(self.next, other.next))

    def __sub__(self, other: RepShare) -> RepShare:
        self._check_same_kind(other)
        return self._with(np.subtract(self.own, other.own), np.subtract(self.next, other.next))

    def __neg__(self) -> RepShare:
        return self._with(np.negative(self.own), np.negative(self.next))

    def __getitem__(self, index: Index) -> RepShare:
        return self._with(self.own[index], self.next[index])

    def reshape(self, *shape: int) -> RepShare:
        """Return the same secret in another shape; one dimension may be -1."""
        return self._with(self.own.reshape(shape), self.next.reshape(shape))

    def add_public(self, party_id: int, words: RingArray | int) -> RepShare:
        """Add public ring elements to the secret: they go into x_0, which parties 0 and 2 hold.

        Args:
            party_id: The id of the party that holds this share, 0 to 2.
            words: Public ring elements that broadcast to the secret's shape, encoded with its fraction bits,
                or one integer, taken modulo 2^k.

        Raises:
            UsageError: The party id is not 0 to 2, the ring differs, or the shapes do not fit.
        """
        check_party(party_id)
        public = self._public(words)
        if np.broadcast_shapes(self.shape, public.shape) != self.shape:
            raise UsageError(
                f"public words of shape {public.shape} do not broadcast to a share of shape {self.shape}"
            )
        own = np.add(self.own, public) if party_id == 0 else self.own
        following = np.add(self.next, public) if party_id == PARTIES - 1 else self.next
        return self._with(own, following)

    def scale_public(self, words: RingArray | int, fraction_bits_of_factor: int = 0) -> RepShare:
        """Multiply the secret by public ring elements, element by element.

        Fraction bits add; nothing is truncated.

        Args:
            words: Public ring elements that broadcast with the secret, or one integer, taken modulo 2^k.
            fraction_bits_of_factor: Fraction bits with which ``words`` is encoded.

        Raises:
            UsageError: The ring differs.
        """
        public = self._public(words)
        return RepShare(
            np.asarray(np.multiply(self.own, public)),
            np.asarray(np.multiply(self.next, public)),
            self.fraction_bits + fraction_bits_of_factor,
        )

    def _with(self, own: RingArray, following: RingArray) -> RepShare:
        # An index or a ufunc can give a numpy scalar, whose own arithmetic warns about wrapping; arrays never
        # do.
        return RepShare(np.asarray(own), np.asarray(following), self.fraction_bits)

    def _public(self, words: RingArray | int) -> RingArray:
        if isinstance(words, int):
            return np.asarray(words % self.ring.modulus, dtype=self.ring.dtype)
        if ring_of(words) != self.ring:
            raise UsageError(
                f"public words are of dtype {words.dtype}, the share of {self.own.dtype}; encode them for it"
            )
        return words

    def _check_same_kind(self, other: RepShare) -> None:
        if self.ring != other.ring:
            raise UsageError(
                f"shares of a {self.ring.bits}-bit and a {other.ring.bits}-bit ring cannot be combined"
            )
        if self.fraction_bits != other.fraction_bits:
            raise UsageError(
                f"shares with {self.fraction_bits} and {other.fraction_bits} fraction bits cannot be added; "
                "scale or truncate one of them first"
            )


def share(
    secret: RingArray, stream: KeyedStream, fraction_bits: int = 0
) -> tuple[RepShare, RepShare, RepShare]:
    """Split a secret into the shares of three parties.

    Args:
        secret: Ring elements of any shape.
        stream: Source of x_0 and x_1, which no party may know; it moves by 2 * size elements.
        fraction_bits: Fraction bits with which the secret is encoded.

    Returns:
        The shares of parties 0, 1 and 2.

    Raises:
        InputError: The secret is not an array of ring elements.

    Security: each party's pair is uniform whatever the secret is; any two parties can reconstruct.
    """
    ring = ring_of(secret)
    x_0 = stream.words(secret.shape, ring)
    x_1 = stream.words(secret.shape, ring)
    x_2 = np.asarray(np.subtract(np.subtract(secret, x_0), x_1))
    return (
        RepShare(x_0, x_1, fraction_bits),
        RepShare(x_1, x_2, fraction_bits),
        RepShare(x_2, x_0, fraction_bits),
    )


def reconstruct(shares: Sequence[RepShare]) -> RingArray:
    """Join the shares of parties 0, 1 and 2, in this order.

    Raises:
        UsageError: There are not three shares.
        ProtocolError: Two parties disagree on a part that both hold, or on shape, ring or fraction bits.
    """
    if len(shares) != PARTIES:
        raise UsageError(f"a replicated secret is reconstructed from {PARTIES} shares, got {len(shares)}")
    for i, (this, following) in enumerate(zip(shares, [*shares[1:], shares[0]], strict=True)):
        same_kind = this.own.dtype == following.own.dtype and this.fraction_bits == following.fraction_bits
        if not same_kind or not np.array_equal(this.next, following.own):
            j = (i + 1) % PARTIES
            raise ProtocolError(
                f"parties {i} and {j} hold different copies of part {j}; the secret is not reconstructed"
            )
    return np.asarray(np.add(np.add(shares[0].own, shares[1].own), shares[2].own))


def check_party(party_id: int) -> None:
    """Refuse a party id other than 0, 1 and 2.

    Raises:
        UsageError: The id does not fit.
    """
    if not 0 <= party_id < PARTIES:
        raise UsageError(f"the three computing parties have ids 0, 1 and 2, got {party_id}")
