"""A hospital's account of itself as a whole: what it pins in its trust file, and what it has spent of it.

Kept on its own disk over all runs, apart from the account of its records: the adjacency is another one.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from fedsec.aggregation.announcement import Announcement
from fedsec.aggregation.noise.planning import sum_of
from fedsec.errors import TrustError
from fedsec.privacy.accounting import rounded_up
from fedsec.privacy.hospital_budget import HospitalBudget
from fedsec.privacy.ledger import DurableSumLedger
from fedsec.privacy.skellam_accounting import epsilon_of_sums, merged

if TYPE_CHECKING:
    from fedsec.aggregation.trust import TrustLimits

_PINS = ("hospital_epsilon", "hospital_noise_multiplier", "hospital_colluding")
_NEXT_TO_NOTHING = 100.0
"""An epsilon of one round above which its noise protects from nothing worth the name."""

_log = logging.getLogger(__name__)


class HospitalAccount:
    """What rounds with noise cost one hospital.

    Args:
        limits: What it pins.
        folder: Its durable state.
    """

    def __init__(self, limits: TrustLimits, folder: Path) -> None:
        self._limits = limits
        self._ledger = DurableSumLedger(folder)
        self._budget = None
        if limits.hospital_epsilon:
            self._budget = HospitalBudget(limits.hospital_epsilon, limits.hospital_delta, self._ledger)

    @property
    def limited(self) -> bool:
        """Whether all rounds together are kept within a pinned epsilon."""
        return self._budget is not None

    def require(self, announcement: Announcement, *, submitted: bool) -> None:
        """Check before training that a round is within what is pinned; nothing is spent yet.

        Args:
            announcement: The round.
            submitted: Whether an upload to it is recorded: a retry of it costs nothing.

        Raises:
            TrustError: It has no noise, or too little, or would cost more than is left. Nothing was sent.
        """
        pinned = [name for name in _PINS if getattr(self._limits, name)]
        if not pinned:
            return
        noise, words = announcement.encoding.noise, announcement.layout.update_words
        if noise is None:
            raise TrustError(
                f"{announcement.id} opens its sum without noise, and this hospital's trust file pins"
                f" {pinned[0]} = {getattr(self._limits, pinned[0]):g}: a training round has to announce"
                " noise (RoundPlan.privacy), and the server evaluates on data of its own; nothing was sent"
            )
        colluding = self._limits.hospital_colluding or noise.aggregators - 1
        if noise.colluding < colluding:
            raise TrustError(
                f"the noise of {announcement.id} protects from {noise.colluding} colluding aggregators, this"
                f" hospital's trust file asks for {colluding}; nothing was sent"
            )
        if noise.multiplier(words) < self._limits.hospital_noise_multiplier:
            raise TrustError(
                f"the noise multiplier of {announcement.id} is {noise.multiplier(words):.4g}, this hospital's"
                f" trust file asks for {self._limits.hospital_noise_multiplier:g} or more; nothing was sent"
            )
        if self._budget is None or submitted:
            return
        if not self._budget.affordable(sum_of(noise, words)):
            report = self._budget.report()
            raise TrustError(
                f"with {announcement.id} this hospital would exceed what its trust file pins, epsilon"
                f" {self._limits.hospital_epsilon:g} at delta {report.delta:g}: earlier rounds cost"
                f" {rounded_up(report.epsilon)}; nothing was sent"
            )

    def charge(self, announcement: Announcement) -> None:
        """Record what a round costs, durably, before anything of it leaves; a second time costs nothing.

        Raises:
            UsageError: It would exceed what is pinned. Nothing was sent.
            StateError: The disk does not take it. Nothing was sent.
        """
        noise = announcement.encoding.noise
        if noise is None:
            return
        words, label = announcement.layout.update_words, announcement.digest.hex()
        one, delta = sum_of(noise, words), self._limits.hospital_delta
        if self._budget is None:
            spent = epsilon_of_sums(merged(self._ledger.charge(label, one, lambda spent: None)), delta)
        else:
            spent = self._budget.charge(label, one).epsilon
        alone = epsilon_of_sums([one], delta)
        _log.log(
            logging.WARNING if alone > _NEXT_TO_NOTHING else logging.INFO,
            "%s: noise multiplier %.3g, epsilon %s for this whole hospital at delta %g; %s with all noisy"
            " rounds before",
            announcement.id,
            noise.multiplier(words),
            rounded_up(alone),
            delta,
            rounded_up(spent),
        )
