"""What a gate of dealt mode is: its dealt arrays and masks, the dealer's side, the evaluators' side."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from math import prod

from fedsec.mpc.costs import Cost
from fedsec.mpc.party import Layout
from fedsec.ring import Ring, RingArray

DEALER, FIRST, SECOND = 0, 1, 2
"""Ids of the dealer and of the two evaluators."""

Masks = tuple[RingArray, RingArray]
"""The parts of a mask that evaluators 1 and 2 know, as the dealer knows both."""

Material = tuple[RingArray, ...]
"""What an evaluator keeps of a gate until it is run; images along the first axis of each array."""

Rounds = Generator[RingArray, RingArray, RingArray]
"""A computation of an evaluator: what it yields goes to the other one, what comes back is the other's array,
of the same shape and ring. One yield is one round."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The arrays that a gate needs for one image.

    Attributes:
        dealt: Secrets of the dealer, additively shared between the evaluators.
        masks: Masks of what the evaluators open, each the sum of a part of evaluator 1 and one of evaluator
            2. The last one masks the gate's result, unless the result stays in additive shares.
        joint: Random words that no party knows: each is the sum of three parts, one from the stream of each
            pair. The dealer knows two of them, an evaluator the third and one of the two.
    """

    dealt: tuple[Layout, ...] = ()
    masks: tuple[Layout, ...] = ()
    joint: tuple[Layout, ...] = ()

    def __add__(self, other: Fields) -> Fields:
        """Return the fields of both, one after the other."""
        return Fields(self.dealt + other.dealt, self.masks + other.masks, self.joint + other.joint)

    @property
    def dealt_bytes(self) -> int:
        """Bytes that the dealer sends for one image."""
        return sum(layout.size_bytes for layout in self.dealt)

    @property
    def mask_bytes(self) -> int:
        """Bytes that each evaluator sends for one image: every mask covers one message."""
        return sum(layout.size_bytes for layout in self.masks)


class Gate(ABC):
    """A step that communicates, on inputs of fixed shapes.

    A value x is held as m + r modulo 2^k: both evaluators hold the masked value m, the dealer holds the mask
    r = r_1 + r_2, evaluator j holds r_j. Masks are streams, fixed before the masked value exists; the last
    gate may leave its result as additive shares of the evaluators instead (``final``).

    Attributes:
        party_id: 0 is the dealer, 1 and 2 are the evaluators.
        fields: What one image needs.
        rounds: Number of online rounds.
        shape: Shape of the result, without the batch.
        ring: Ring of the result.
        final: Whether the result stays in additive shares.
    """

    def __init__(self, party_id: int, fields: Fields, rounds: int, result: Layout, *, final: bool) -> None:
        """Fix what a subclass has worked out; without ``final`` a mask and a round for the result are added.

        Args:
            party_id: Id of the party that holds this gate.
            fields: What one image needs beside the mask of the result.
            rounds: Online rounds beside the opening of the result.
            result: Shape without the batch, and ring.
            final: See above.
        """
        self.party_id = party_id
        self.fields = fields if final else fields + Fields(masks=(result,))
        self.rounds = rounds if final else rounds + 1
        self.shape, self.ring, self.final = result.shape, result.ring, final

    @abstractmethod
    def deal(
        self, r: Sequence[RingArray], shares: Sequence[RingArray], masks: Sequence[Masks]
    ) -> RingArray | None:
        """Prepare as the dealer.

        Args:
            r: Masks of the inputs, [N, *shape].
            shares: For each dealt field evaluator 1's share, [N, *shape of the field], uniform. Must be
                overwritten by the secret minus it: that is what evaluator 2 gets.
            masks: Both parts of each mask; before them, of each joint word the two parts that it knows.

        Returns:
            The mask of the result, or None if the gate is final.
        """

    def prepare(
        self, r: Sequence[RingArray], shares: Sequence[RingArray], masks: Sequence[RingArray]
    ) -> tuple[Material, RingArray | None]:
        """Prepare as an evaluator, before inputs exist; by default shares and masks are only kept.

        Args:
            r: This evaluator's parts of the masks of the inputs.
            shares: Its shares of the dealt fields.
            masks: Its parts of the masks; before them, of each joint word the part of both evaluators.

        Returns:
            What ``run`` needs, and this evaluator's part of the mask of the result, None if it is final.
        """
        return (*shares, *masks), None if self.final else masks[-1]

    @abstractmethod
    def run(self, m: Sequence[RingArray], material: Material) -> Rounds:
        """Compute as an evaluator.

        Args:
            m: The masked inputs, which this gate may not change.
            material: What ``prepare`` returned, of as many images.

        Returns:
            The masked result; if the gate is final, this evaluator's additive share.
        """

    def cost(self, images: int) -> Cost:
        """Return the cost of preparing and running.

        The dealer sends when preparing only, in one round if anything is dealt; the evaluators send when
        running only.
        """
        online = images * self.fields.mask_bytes
        dealt = images * self.fields.dealt_bytes
        return Cost(self.rounds + (dealt > 0), (dealt, online, online))

    def result_mask(self, masks: Sequence[Masks]) -> RingArray | None:
        """Return the dealer's mask of the result, the last of all; None if the gate is final."""
        return None if self.final else masks[-1][0] + masks[-1][1]

    def opened(self, share: RingArray, material: Material) -> Rounds:
        """Open an additive share of the result under its mask, the last of the material; overwrites it.

        A final gate's share is returned as it is.
        """
        if self.final:
            return share
        share -= material[-1]
        theirs = yield share
        return theirs + share


def flat(words: RingArray) -> RingArray:
    """View [N, ...] as contiguous [N, count]."""
    return words.reshape(len(words), -1)


def count_of(shape: tuple[int, ...]) -> int:
    """Return the number of elements of a shape."""
    return prod(shape)


def layout(ring: Ring, *shape: int) -> Layout:
    """Return the layout of one image's array."""
    return Layout(shape, ring)
