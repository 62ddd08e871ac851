"""What a hospital as a whole may tell by the sums it contributes to, and what it has told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedsec.errors import UsageError
from fedsec.privacy.accounting import rounded_up
from fedsec.privacy.ledger import SumLedger
from fedsec.privacy.skellam_accounting import SkellamSum, epsilon_of_sums, merged, rounds_within

_ASSUMPTIONS = (
    "for one whole hospital whose contributions are replaced by zeros; who takes part is public, and no more"
    " aggregators collude than the noise was planned for"
)


@dataclass(frozen=True, slots=True)
class SumsReport:
    """What sums have cost so far.

    Attributes:
        epsilon: Of all of them together.
        delta: At which it holds.
        sums: The rounds that were recorded, those of one kind in one entry.
        assumptions: What the number rests on, in words.
    """

    epsilon: float
    delta: float
    sums: tuple[SkellamSum, ...]
    assumptions: str

    def __str__(self) -> str:
        """Return the claim, rounded up, and its assumptions."""
        return f"epsilon {rounded_up(self.epsilon)} at delta {self.delta:g}: {self.assumptions}"


class HospitalBudget:
    """Keeps one hospital's contributions within a target; what has been spent never comes back.

    Args:
        target_epsilon: Everything together stays within it, above 0.
        delta: At which epsilon is stated, above 0 and below 1.
        ledger: Holds what was spent.

    Raises:
        UsageError: An argument is out of range.
    """

    def __init__(self, target_epsilon: float, delta: float, ledger: SumLedger) -> None:
        if not 0 < target_epsilon < math.inf:
            raise UsageError(f"target_epsilon is above 0 and finite, got {target_epsilon}")
        if not 0 < delta < 1:
            raise UsageError(f"delta is above 0 and below 1, got {delta}")
        self.target_epsilon, self.delta = target_epsilon, delta
        self._ledger = ledger

    def charge(self, label: str, one: SkellamSum) -> SumsReport:
        """Record a sum, durably, before anything is contributed to it.

        Args:
            label: Names the release, such as the digest of a round's announcement. A label that was recorded
                costs nothing again.
            one: What is opened.

        Returns:
            What was spent so far, with this sum.

        Raises:
            UsageError: It would exceed the target; nothing was recorded and nothing may be sent.
            StateError: The account cannot be written, or the label was recorded for another sum.
        """

        def check(spent: Sequence[SkellamSum]) -> None:
            cost = epsilon_of_sums(merged([*spent, one]), self.delta)
            if cost > self.target_epsilon:
                before = epsilon_of_sums(merged(spent), self.delta)
                raise UsageError(
                    f"this round would make epsilon {rounded_up(cost)} at delta {self.delta:g} for this"
                    f" hospital as a whole, which has spent {rounded_up(before)} of the"
                    f" {self.target_epsilon:g} that it allows: it takes part no more in this way, and nothing"
                    " was sent"
                )

        return self._reported(self._ledger.charge(label, one, check))

    def affordable(self, one: SkellamSum) -> int:
        """Return how many rounds like one can still be charged, up to a million."""
        return rounds_within(self.target_epsilon, self.delta, one, self._ledger.spent())

    def report(self) -> SumsReport:
        """Return what was spent so far."""
        return self._reported(self._ledger.spent())

    def _reported(self, spent: Sequence[SkellamSum]) -> SumsReport:
        sums = tuple(merged(spent))
        return SumsReport(epsilon_of_sums(sums, self.delta), self.delta, sums, _ASSUMPTIONS)
