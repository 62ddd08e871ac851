"""Boolean sharing among three parties, bit-sliced: ``b = b_0 XOR b_1 XOR b_2``.

Party i holds b_i and b_{i+1}. A vector of n words is held as bit planes: plane p is bit p of all words, 64 of
them in one uint64, element e in bit ``e mod 64`` of word ``e // 64``. A gate on a plane then works on 64
elements at a time, and a protocol that needs 21 bits carries 21 planes. Bits behind the last element are
padding without meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NoReturn

import numpy as np
import numpy.typing as npt

from fedsec.errors import ProtocolError, UsageError
from fedsec.ring import RING64, KeyedStream, Ring, RingArray, ring_of
from fedsec.sharing.replicated import PARTIES, check_party

Planes = npt.NDArray[np.uint64]
"""Bit planes, shape [planes, ceil(count / 64)], plane 0 the lowest bit."""

LANES = 64


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class BitShare:
    """One party's share of bit planes. Operators are local.

    Attributes:
        own: b_i, uint64, shape [planes, ceil(count / 64)].
        next: b_{i+1 mod 3}, of the same shape.
        count: Number of elements.

    Raises:
        ProtocolError: The arrays are not uint64 planes of this count.
    """

    own: Planes
    next: Planes
    count: int

    __array_ufunc__: ClassVar[None] = None  # as in RepShare

    def __post_init__(self) -> None:
        _check_planes(self.own, self.count)
        _check_planes(self.next, self.count)
        if self.own.shape != self.next.shape:
            raise ProtocolError(
                f"the two halves of a boolean share have {len(self.own)} and {len(self.next)} planes: "
                "they are not halves of one share"
            )

    def __repr__(self) -> str:
        return f"BitShare(planes={self.planes}, count={self.count})"

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError(
            "shares cannot be compared, equal secrets have different shares; compare after reveal"
        )

    __hash__ = None  # type: ignore[assignment]  # what cannot be compared cannot be a key

    def __bool__(self) -> NoReturn:
        raise TypeError("a share is neither true nor false: nobody knows its secret; reveal it first")

    @property
    def planes(self) -> int:
        """Number of bit planes."""
        return len(self.own)

    def __xor__(self, other: BitShare) -> BitShare:
        if self.count != other.count or self.planes != other.planes:
            raise UsageError(f"{self!r} and {other!r} cannot be combined bit by bit")
        return BitShare(self.own ^ other.own, self.next ^ other.next, self.count)

    def __getitem__(self, planes: int | slice) -> BitShare:
        """Return some of the planes; one number gives a share of that single plane.

        Raises:
            IndexError: There is no plane of that number.
        """
        if isinstance(planes, int):
            plane = range(self.planes)[planes]  # an IndexError if there is no such plane
            planes = slice(plane, plane + 1)
        return BitShare(self.own[planes], self.next[planes], self.count)

    def xor_public(self, party_id: int, bits: Planes) -> BitShare:
        """XOR public planes into the secret: they go into b_0, which parties 0 and 2 hold.

        Args:
            party_id: The id of the party that holds this share, 0 to 2.
            bits: Public planes of the same shape; the planes dimension may be 1.

        Raises:
            UsageError: The party id is not 0 to 2, or the number of planes does not fit.
            ProtocolError: The planes do not fit this count.
        """
        check_party(party_id)
        _check_planes(bits, self.count)
        if len(bits) not in {1, self.planes}:
            raise UsageError(f"{len(bits)} public planes do not fit a share of {self.planes}")
        own = self.own ^ bits if party_id == 0 else self.own
        following = self.next ^ bits if party_id == PARTIES - 1 else self.next
        return BitShare(own, following, self.count)


def share(bits: Planes, count: int, stream: KeyedStream) -> tuple[BitShare, BitShare, BitShare]:
    """Split bit planes into the shares of three parties.

    Args:
        bits: uint64, shape [planes, ceil(count / 64)], as ``pack_bits`` makes them.
        count: Number of elements.
        stream: Source of b_0 and b_1, which no party may know; it moves by 2 * bits.size words.

    Returns:
        The shares of parties 0, 1 and 2.

    Raises:
        ProtocolError: The planes do not fit the count.

    Security: each party's pair is uniform whatever the bits are; any two parties can reconstruct.
    """
    _check_planes(bits, count)
    b_0 = _as_planes(stream.words(bits.shape, RING64))
    b_1 = _as_planes(stream.words(bits.shape, RING64))
    b_2 = bits ^ b_0 ^ b_1
    return BitShare(b_0, b_1, count), BitShare(b_1, b_2, count), BitShare(b_2, b_0, count)


def reconstruct(shares: Sequence[BitShare]) -> Planes:
    """Join the shares of parties 0, 1 and 2, in this order, into bit planes.

    Raises:
        UsageError: There are not three shares.
        ProtocolError: Two parties disagree on a part that both hold.
    """
    if len(shares) != PARTIES:
        raise UsageError(f"a boolean secret is reconstructed from {PARTIES} shares, got {len(shares)}")
    for i, (this, following) in enumerate(zip(shares, [*shares[1:], shares[0]], strict=True)):
        if this.count != following.count or not np.array_equal(this.next, following.own):
            j = (i + 1) % PARTIES
            raise ProtocolError(
                f"parties {i} and {j} hold different copies of part {j}; the secret is not reconstructed"
            )
    return shares[0].own ^ shares[1].own ^ shares[2].own


def pack_bits(words: RingArray, planes: int) -> Planes:
    """Slice ring elements into bit planes, with a compiled kernel.

    Args:
        words: Ring elements, shape [n].
        planes: Number of planes, 1 to k; bits above are left out.

    Returns:
        uint64, shape [planes, ceil(n / 64)], plane 0 the lowest bit; padding bits are 0.

    Raises:
        UsageError: ``words`` is not one-dimensional, or the number of planes does not fit its ring.
        InputError: ``words`` does not hold ring elements.
    """
    _check_cut(words, planes)
    from fedsec.sharing import _compiled  # noqa: PLC0415 - numba is loaded at the first call, not at import

    sliced: Planes = np.empty((planes, _lane_words(words.size)), dtype=np.uint64)
    _compiled.slice_bits(np.ascontiguousarray(words), sliced)
    return sliced


def pack_bits_plain(words: RingArray, planes: int) -> Planes:
    """Slice with numpy: the reference that ``pack_bits`` is tested against, with the same arguments."""
    _check_cut(words, planes)
    sliced = np.zeros((planes, 8 * _lane_words(words.size)), dtype=np.uint8)
    for p in range(planes):
        octets = np.packbits((words >> words.dtype.type(p)).astype(np.uint8) & 1, bitorder="little")
        sliced[p, : octets.size] = octets
    return _as_planes(sliced.view("<u8"))


def unpack_bits(bits: Planes, count: int, ring: Ring = RING64) -> RingArray:
    """Join bit planes into ring elements; bits above the last plane are 0.

    Args:
        bits: uint64, shape [planes, ceil(count / 64)].
        count: Number of elements.
        ring: Ring of the result, of at least as many bits as there are planes.

    Returns:
        Ring elements, shape [count].

    Raises:
        ProtocolError: The planes do not fit the count.
        UsageError: There are more planes than the ring has bits.
    """
    _check_planes(bits, count)
    if len(bits) > ring.bits:
        raise UsageError(f"{len(bits)} bit planes do not fit the {ring.bits}-bit ring")
    if not len(bits):
        return np.zeros(count, dtype=ring.dtype)
    octets = np.ascontiguousarray(bits, dtype="<u8").view(np.uint8)
    digits = (np.unpackbits(row, count=count, bitorder="little").astype(ring.dtype) for row in octets)
    words = next(digits)
    for p, row in enumerate(digits, start=1):
        words |= row << ring.dtype.type(p)
    return words


def _check_cut(words: RingArray, planes: int) -> None:
    ring = ring_of(words)
    if words.ndim != 1 or not 1 <= planes <= ring.bits:
        raise UsageError(
            f"1 to {ring.bits} bit planes are cut from a flat array, "
            f"got {planes} planes and shape {words.shape}"
        )


def _lane_words(count: int) -> int:
    return -(-count // LANES)


def _as_planes(words: RingArray) -> Planes:
    return words.astype(np.uint64, copy=False)


def _check_planes(bits: Planes, count: int) -> None:
    if bits.dtype != np.uint64 or bits.ndim != 2 or bits.shape[1] != _lane_words(count):
        raise ProtocolError(
            f"bit planes of {count} elements are uint64 of shape [planes, {_lane_words(count)}], "
            f"got {bits.dtype} of shape {bits.shape}"
        )
