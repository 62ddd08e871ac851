"""The inputs of a protocol example: what is secret, how it is shared, and which values it takes.

A view check repeats a protocol step in many independent *lanes* at once: the lanes are the first axis of
every input that varies (of a bit sharing, the elements).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedsec.errors import UsageError
from fedsec.ring import RING64, KeyedStream, Ring, RingArray
from fedsec.sharing.boolean import LANES, BitShare, pack_bits
from fedsec.sharing.replicated import RepShare

PARTIES = 3
Row = np.ndarray[Any, np.dtype[np.uint64]]


@dataclass(frozen=True, slots=True, eq=False)
class Dealt:
    """One input of one protocol call: the secret and the three components whose sum (or XOR) it is."""

    plain: RingArray
    components: tuple[RingArray, RingArray, RingArray]


class Input(ABC):
    """How one argument of a protocol is drawn and shared."""

    @abstractmethod
    def deal(self, lanes: int, ring: Ring, stream: KeyedStream, place: int | None) -> Dealt:
        """Draw the secret and its components.

        Args:
            lanes: Number of lanes.
            ring: Ring of the session.
            stream: Source of the values and of the sharing.
            place: Position among the inputs if edge values are to be mixed in, so that each meets each.
        """

    @abstractmethod
    def repeat(self, dealt: Dealt, kinds: int, lanes: int) -> Dealt:
        """Copy each lane of an input of ``kinds`` lanes into a run of lanes: same secret, same components.

        Args:
            dealt: An input of ``kinds`` lanes.
            kinds: How many; a divisor of ``lanes``.
            lanes: Lanes of the result; its first ``lanes / kinds`` are all the first of ``dealt``.
        """

    @abstractmethod
    def share(self, dealt: Dealt, party_id: int, lanes: int) -> object:
        """Return what one party passes to the protocol."""

    def knowledge(self, dealt: Dealt, lanes: int) -> list[Row]:
        """Return bits of all components and of each two's sum; a message must be a coin beside them.

        The sum of all three is the secret. Sums of two are what one party works with, and their bits do not
        follow from the components' but by carries.
        """
        parts = dealt.components
        sums = [self.join(parts[i], parts[(i + 1) % PARTIES]) for i in range(PARTIES)]
        return [row for words in (*parts, *sums) for row in rows_of(words, lanes, self.known_bits)]

    def join(self, first: RingArray, second: RingArray) -> RingArray:
        """Return the sum of two components."""
        return np.asarray(first + second)

    @property
    def known_bits(self) -> int:
        """Number of low bits of each word that are given away in ``knowledge``."""
        return 1


@dataclass(frozen=True)
class Secret(Input):
    """A secret array, shared replicated: a ``RepShare`` argument.

    Attributes:
        shape: Shape of one lane.
        low: Smallest value as a signed integer; the ring's smallest if not given.
        high: Largest value; the ring's largest if not given.
        fraction_bits: Fraction bits of the share.
        per_lane: Whether each lane has a value of its own; weights, for example, do not.
        window_bits: Low bits of each component that messages may depend on beyond sums, for bitwise
            protocols.
        edges: Further values that must be met in the value check, beside the ends, 0, 1 and -1.
    """

    shape: tuple[int, ...] = ()
    low: int | None = None
    high: int | None = None
    fraction_bits: int = 0
    per_lane: bool = True
    window_bits: int = 1
    edges: Sequence[int] = field(default=())

    def deal(self, lanes: int, ring: Ring, stream: KeyedStream, place: int | None) -> Dealt:
        """Draw values in the range and split them."""
        shape = (lanes, *self.shape) if self.per_lane else self.shape
        low, high = self._range(ring)
        words = stream.words(shape, ring)
        span = high - low + 1
        plain = words if span == ring.modulus else np.asarray(words % ring.dtype.type(span))
        plain = np.asarray(plain + ring.dtype.type(low % ring.modulus))
        if place is not None and self.per_lane:
            self._mix_edges_in(plain, ring, place)
        first, second = stream.words(shape, ring), stream.words(shape, ring)
        return Dealt(plain, (first, second, np.asarray(plain - first - second)))

    def repeat(self, dealt: Dealt, kinds: int, lanes: int) -> Dealt:
        """Copy each lane into a run of lanes."""
        if not self.per_lane:
            return dealt
        plain, first, second, third = (
            np.repeat(array, lanes // kinds, axis=0) for array in (dealt.plain, *dealt.components)
        )
        return Dealt(plain, (first, second, third))

    def share(self, dealt: Dealt, party_id: int, lanes: int) -> object:
        """Return a party's replicated share."""
        parts = dealt.components
        return RepShare(parts[party_id], parts[(party_id + 1) % PARTIES], self.fraction_bits)

    def knowledge(self, dealt: Dealt, lanes: int) -> list[Row]:
        """Return bits of all components and their sums; nothing where all lanes have the same."""
        return super().knowledge(dealt, lanes) if self.per_lane else []

    @property
    def known_bits(self) -> int:
        """Number of low bits that are given away."""
        return self.window_bits

    def _range(self, ring: Ring) -> tuple[int, int]:
        half = ring.modulus // 2
        low = -half if self.low is None else self.low
        high = half - 1 if self.high is None else self.high
        if not -half <= low <= high < half:
            raise UsageError(f"values from {low} to {high} do not fit the {ring.bits}-bit ring")
        return low, high

    def _mix_edges_in(self, plain: RingArray, ring: Ring, place: int) -> None:
        low, high = self._range(ring)
        values = [v for v in (low, high, 0, 1, -1, low + 1, high - 1, *self.edges) if low <= v <= high]
        edges = np.array([v % ring.modulus for v in dict.fromkeys(values)], dtype=ring.dtype)
        # Lane i takes digit ``place`` of i in base len(edges): every combination over the inputs occurs.
        lanes = np.arange(len(plain) // 2)
        plain[lanes] = edges[lanes // len(edges) ** place % len(edges)].reshape(-1, *[1] * (plain.ndim - 1))


@dataclass(frozen=True)
class Additive(Secret):
    """A secret array of which each party holds one summand: a plain array argument."""

    def share(self, dealt: Dealt, party_id: int, lanes: int) -> object:
        """Return a party's summand."""
        return dealt.components[party_id]


@dataclass(frozen=True)
class Bits(Input):
    """Secret bit planes over the lanes, shared by XOR: a ``BitShare`` argument.

    Attributes:
        planes: Number of planes.
    """

    planes: int = 1

    def deal(self, lanes: int, ring: Ring, stream: KeyedStream, place: int | None) -> Dealt:
        """Draw planes and split them."""
        shape = (self.planes, -(-lanes // LANES))
        plain, first, second = (stream.words(shape, RING64).astype(np.uint64, copy=False) for _ in range(3))
        return Dealt(plain, (first, second, plain ^ first ^ second))

    def repeat(self, dealt: Dealt, kinds: int, lanes: int) -> Dealt:
        """Copy each element's bits into a run of lanes."""
        plain, first, second, third = (
            _repeated_bits(planes, kinds, lanes) for planes in (dealt.plain, *dealt.components)
        )
        return Dealt(plain, (first, second, third))

    def join(self, first: RingArray, second: RingArray) -> RingArray:
        """Return the XOR of two components."""
        return first ^ second

    def share(self, dealt: Dealt, party_id: int, lanes: int) -> object:
        """Return a party's boolean share."""
        own, following = dealt.components[party_id], dealt.components[(party_id + 1) % PARTIES]
        return BitShare(own.astype(np.uint64), following.astype(np.uint64), lanes)


def _repeated_bits(planes: RingArray, kinds: int, lanes: int) -> RingArray:
    octets = np.ascontiguousarray(planes).view(np.uint8)
    bits = np.unpackbits(octets, axis=1, count=kinds, bitorder="little")
    return np.packbits(np.repeat(bits, lanes // kinds, axis=1), axis=1, bitorder="little").view(np.uint64)


def are_planes(words: RingArray, lanes: int) -> bool:
    """Return whether an array holds bit planes over the lanes, or over some elements a lane."""
    if words.ndim != 2 or words.dtype != np.uint64 or lanes in words.shape or not words.size:
        return False
    lane_words: int = words.shape[1]
    return lane_words * LANES % lanes == 0


def by_planes(words: RingArray, lanes: int) -> RingArray:
    """Return bit planes as [planes, lanes / 64].

    Planes over more elements than lanes, with the lanes last, give one for each element of a lane.
    """
    return words.reshape(-1, lanes // LANES)


def by_lanes(words: RingArray, lanes: int) -> RingArray:
    """Return an array with an axis of the lanes, the first if there are more, as [lanes, words a lane].

    Raises:
        UsageError: The array's size is no multiple of the lanes: it cannot be told which part belongs to
            which.
    """
    if words.size % lanes:
        raise UsageError(
            f"an array of {words.shape} does not fall into {lanes} lanes; give inputs whose first axis runs "
            "along everything that the protocol sends"
        )
    if lanes in words.shape[1:]:
        words = np.moveaxis(words, words.shape.index(lanes), 0)
    return words.reshape(lanes, -1)


def rows_of(words: RingArray, lanes: int, low_bits: int = 1) -> list[Row]:
    """Return bits of an array as packed rows, one row a bit, one bit of it a lane.

    Bit planes over the lanes give all their planes. Of other arrays, whose first axis is the lanes, each word
    gives its ``low_bits`` lowest bits, on which only low bits of operands have an influence, and its two
    highest, which signs and carries depend on.

    Raises:
        UsageError: The array's size is no multiple of the lanes.
    """
    if are_planes(words, lanes):
        return list(by_planes(words, lanes).astype(np.uint64, copy=False))
    bits = 8 * words.dtype.itemsize
    places = sorted({*range(min(low_bits, bits)), bits - 2, bits - 1})
    rows: list[Row] = []
    for column in np.ascontiguousarray(by_lanes(words, lanes).T):
        planes = pack_bits(column, bits)
        rows.extend(planes[place] for place in places)
    return rows
