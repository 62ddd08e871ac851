"""What the user's end makes of the answer: three shares joined, and read as what was revealed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedsec.errors import ProtocolError
from fedsec.nn import Plan, Reveal, decode_output
from fedsec.ring import RING64, RingArray

Values = npt.NDArray[np.float64] | npt.NDArray[np.int64]
"""Logits or probabilities, float64 [N, classes]; labels, int64 [N]; the three best labels, int64 [N, 3]."""


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """How answers that reveal one thing look.

    Attributes:
        reveal: what is revealed.
        head: the plan whose output is the answer.
        classes: how many labels there are.
    """

    reveal: Reveal
    head: Plan
    classes: int

    @classmethod
    def of(cls, plan: Plan, reveal: Reveal, label_epsilon: float | None = None) -> AnswerForm:
        """Return the form for a model, whose labels may be noisy."""
        return cls(reveal, plan.with_head(reveal, label_epsilon), plan.output_shape[-1])

    def size_bytes(self, images: int) -> int:
        """Bytes of one party's share of the answers."""
        return images * int(np.prod(self.head.output_shape)) * RING64.element_bytes

    def join(self, shares: Iterable[bytes | bytearray], images: int) -> Values:
        """Add the parties' shares up and read the sum.

        Raises:
            ProtocolError: the sum is no label: the shares do not belong together.
        """
        total: RingArray = np.zeros((images, *self.head.output_shape), dtype=RING64.dtype)
        for share in shares:
            total += np.frombuffer(share, dtype=RING64.dtype).reshape(total.shape)
        if self.reveal in {"logits", "probabilities"}:
            return decode_output(self.head, total)
        # Small whole numbers: exact, without any fraction bits.
        if (total >= self.classes).any():
            raise ProtocolError(
                f"expected labels below {self.classes}, got something else: the parties' shares do not "
                "belong together; the answer is thrown away"
            )
        labels = total.astype(np.int64)
        return labels[:, 0] if self.reveal == "label" else labels
