"""Linear layers with a secret kernel, and the re-masking of inputs: one round each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedsec.mpc.dealt.gates import DEALER, FIRST, Fields, Gate, Masks, Material, Rounds
from fedsec.mpc.party import Layout
from fedsec.ring import Ring, RingArray
from fedsec.sharing.replicated import RepShare

Product = Callable[[RingArray, RingArray], RingArray]
"""A product of [N, *input shape] and a kernel, linear in both, as a new array [N, *output shape]."""


class LinearGate(Gate):
    """z = x * w + b for any bilinear product, with w and b in a replicated sharing.

    With x = m_x + r_x and w = m_w + r_w, where m_w = w_2 is known to both evaluators and r_w = w_0 + w_1 to
    the dealer,

        x * w  =  m_x * (m_w + r_w)  +  r_x * m_w  +  r_x * r_w

    The last product is dealt, r_xj * m_w is worked out by evaluator j ahead, and of the first, evaluator 1
    forms m_x * (m_w + w_1) and evaluator 2 m_x * w_0.
    """

    def __init__(
        self,
        party_id: int,
        product: Product,
        kernel: RepShare,
        bias: RepShare,
        shape: tuple[int, ...],
        *,
        ring: Ring,
        final: bool = False,
    ) -> None:
        """Take this party's parts of the kernel.

        Args:
            party_id: Id of this party.
            product: The bilinear map.
            kernel: This party's share of w, in this ring or a larger one.
            bias: Its share of b, shape [last axis of z].
            shape: Shape of z without the batch.
            ring: Ring of x and z.
            final: Whether z stays in additive shares.
        """
        self._product = product
        own, following = (part.astype(ring.dtype) for part in (kernel.own, kernel.next))
        b_own, b_next = (part.astype(ring.dtype) for part in (bias.own, bias.next))
        if party_id == FIRST:
            # w_1 and w_2: m_w + w_1 is what the masked input is multiplied with.
            self._kernel, self._ahead, self._bias = own + following, following, b_own + b_next
        elif party_id == DEALER:
            self._kernel, self._ahead, self._bias = own + following, own, b_own
        else:
            # w_2 and w_0.
            self._kernel, self._ahead, self._bias = following, own, b_next
        result = Layout(shape, ring)
        super().__init__(party_id, Fields((result,)), 0, result, final=final)

    def deal(
        self, r: Sequence[RingArray], shares: Sequence[RingArray], masks: Sequence[Masks]
    ) -> RingArray | None:
        """Prepare as the dealer: deal r_x * r_w."""
        product = self._product(r[0], self._kernel)
        product -= shares[0]
        shares[0][...] = product
        return self.result_mask(masks)

    def prepare(
        self, r: Sequence[RingArray], shares: Sequence[RingArray], masks: Sequence[RingArray]
    ) -> tuple[Material, RingArray | None]:
        """Work out all that does not depend on m_x, minus the mask of z."""
        offset = self._product(r[0], self._ahead)
        offset += shares[0]
        offset += self._bias
        if self.final:
            return (offset,), None
        offset -= masks[0]
        return (offset,), masks[0]

    def run(self, m: Sequence[RingArray], material: Material) -> Rounds:
        """Multiply with this evaluator's part of the kernel and open."""
        share = self._product(m[0], self._kernel)
        share += material[0]
        if self.final:
            return share
        # One round: z under its mask, which is part of the offset.
        theirs = yield share
        return theirs + share


class InputGate(Gate):
    """Move a user's replicated share under a mask of the streams; its own may come from anywhere.

    ``run`` takes the additive shares x_1 + x_2 of evaluator 1 and x_0 of evaluator 2, so that whatever bytes
    a user sends are a sharing of something.
    """

    def __init__(self, party_id: int, source: Layout) -> None:
        """Take shape without the batch, and ring."""
        super().__init__(party_id, Fields(), 0, source, final=False)

    def deal(
        self, r: Sequence[RingArray], shares: Sequence[RingArray], masks: Sequence[Masks]
    ) -> RingArray | None:
        """Return the mask."""
        return self.result_mask(masks)

    def run(self, m: Sequence[RingArray], material: Material) -> Rounds:
        """Open additive shares under the mask, which are not changed."""
        share = m[0] - material[0]
        theirs = yield share
        return theirs + share
