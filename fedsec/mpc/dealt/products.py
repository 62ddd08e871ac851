"""Products of two masked values, element by element, in one round."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsec.errors import UsageError
from fedsec.mpc.dealt.gates import FIRST, Fields, Gate, Masks, Material, Rounds
from fedsec.mpc.party import Layout
from fedsec.ring import RingArray


class MultiplyGate(Gate):
    """z = x * y, broadcast as numpy does; fraction bits add.

    With x = m_x + r_x and y = m_y + r_y,

        x * y  =  m_x * m_y + m_x * r_y + m_y * r_x + r_x * r_y

    The last product is dealt. The two in the middle are linear in what evaluator j knows of the masks, and
    evaluator 1 adds the first.
    """

    def __init__(self, party_id: int, x: Layout, y: Layout, *, final: bool = False) -> None:
        """Take the factors' layouts.

        Args:
            party_id: Id of this party.
            x: Shape without the batch, and ring of the one factor.
            y: Of the other one.
            final: Whether z stays in additive shares.

        Raises:
            UsageError: The rings differ, or the shapes do not broadcast.
        """
        try:
            shape = np.broadcast_shapes(x.shape, y.shape)
        except ValueError as error:
            raise UsageError(f"factors of shapes {x.shape} and {y.shape} do not broadcast") from error
        if x.ring != y.ring:
            raise UsageError(f"factors are of one ring, got {x.ring} and {y.ring}")
        # Broadcasting adds axes in front; those of the batch must stay in front of them.
        self._shapes = [(1,) * (len(shape) - len(factor.shape)) + factor.shape for factor in (x, y)]
        result = Layout(shape, x.ring)
        super().__init__(party_id, Fields((result,)), 0, result, final=final)

    def deal(
        self, r: Sequence[RingArray], shares: Sequence[RingArray], masks: Sequence[Masks]
    ) -> RingArray | None:
        """Deal r_x * r_y."""
        r_x, r_y = self._aligned(r)
        np.subtract(r_x * r_y, shares[0], out=shares[0])
        return self.result_mask(masks)

    def prepare(
        self, r: Sequence[RingArray], shares: Sequence[RingArray], masks: Sequence[RingArray]
    ) -> tuple[Material, RingArray | None]:
        """Keep the masks of both factors, and the share of their product minus the mask of z."""
        if self.final:
            return (*r, shares[0]), None
        return (*r, shares[0] - masks[0]), masks[0]

    def run(self, m: Sequence[RingArray], material: Material) -> Rounds:
        """Multiply and open."""
        m_x, m_y = self._aligned(m)
        r_x, r_y = self._aligned(material[:2])
        factor = r_y + m_y if self.party_id == FIRST else r_y
        share = m_x * factor
        share += m_y * r_x
        share += material[2]
        if self.final:
            return share
        # One round: z under its mask, which is part of what was kept.
        theirs = yield share
        return theirs + share

    def _aligned(self, words: Sequence[RingArray]) -> tuple[RingArray, RingArray]:
        x, y = (part.reshape(len(part), *shape) for part, shape in zip(words, self._shapes, strict=True))
        return x, y
