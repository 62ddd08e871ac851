"""The server's side of noise nobody holds: how much each round has, and when a run has to stop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy.typing as npt
from flwr.serverapp.strategy import Strategy

from fedsec.aggregation.announcement import Announcement, Phase
from fedsec.aggregation.noise.planning import plan_noise, sum_of
from fedsec.aggregation.noise.terms import Noise
from fedsec.errors import UsageError
from fedsec.federation.plan import RoundPlan
from fedsec.privacy.accounting import rounded_up
from fedsec.privacy.skellam_accounting import SkellamSum, epsilon_of_sums, merged
from fedsec.transport import ClusterFile

EVALUATION_REFUSED = (
    "hospitals evaluate nothing in rounds with noise: the metrics that they would open have none. Set the"
    " strategy's fraction_evaluate to 0.0 and give start() an evaluate_fn with data of the server's own"
)


class HospitalLevelRun:
    """The rounds of one strategy under ``plan.privacy``; without it there is no noise and nothing to spend.

    Args:
        plan: The public constants of the rounds.
        cluster: The aggregators, and how many hospitals there are.
        inner: The strategy.

    Raises:
        UsageError: The plan or the strategy would open something without noise.
    """

    def __init__(self, plan: RoundPlan, cluster: ClusterFile, inner: Strategy) -> None:
        self._plan = plan
        self._aggregators, self._hospitals = len(cluster.parties), len(cluster.hospitals)
        self._rounds: int | None = None
        self._noise: Noise | None = None
        self._spent: list[SkellamSum] = []
        if plan.privacy is not None:
            _check(plan, inner)

    def begin(self, rounds: int) -> None:
        """Note how many rounds the target is for."""
        self._rounds = rounds

    @property
    def epsilon(self) -> float | None:
        """What the rounds that were announced cost any hospital, at most; None without noise."""
        privacy = self._plan.privacy
        return None if privacy is None else epsilon_of_sums(self._spent, privacy.delta)

    def noise(self, phase: Phase, arrays: Iterable[npt.NDArray[Any]]) -> Noise | None:
        """Return the noise of a training round, the same in every round.

        Args:
            phase: What is announced.
            arrays: The model's arrays.

        Raises:
            UsageError: Hospitals are to evaluate, or a target epsilon needs the number of rounds, and it is
                not known.
            RangeError: So much noise does not fit the ring.
        """
        privacy = self._plan.privacy
        if privacy is None:
            return None
        if phase == "evaluate":
            raise UsageError(EVALUATION_REFUSED)
        if self._noise is None:
            if privacy.target_epsilon is not None and self._rounds is None:
                raise UsageError("target_epsilon needs the number of rounds: use the strategy's start()")
            self._noise = plan_noise(
                privacy,
                words=sum(array.size for array in arrays),
                rounds=self._rounds or 1,
                hospitals=self._hospitals,
                aggregators=self._aggregators,
                ring_bits=self._plan.ring_bits,
            )
        return self._noise

    def charge(self, announcement: Announcement) -> str:
        """Count a round before it is announced: what hospitals then upload to it cannot be taken back.

        Returns:
            Why it would exceed the target and is not to be announced, or an empty text.
        """
        noise, privacy = announcement.encoding.noise, self._plan.privacy
        if noise is None or privacy is None:
            return ""
        after = merged([*self._spent, sum_of(noise, announcement.layout.update_words)])
        epsilon = epsilon_of_sums(after, privacy.delta)
        if privacy.target_epsilon is not None and epsilon > privacy.target_epsilon:
            return (
                f"the budget is spent: one more round would make epsilon {rounded_up(epsilon)} at delta"
                f" {privacy.delta:g} for a whole hospital, and the target is {privacy.target_epsilon:g}"
            )
        self._spent = after
        return ""


def _check(plan: RoundPlan, inner: Strategy) -> None:
    if plan.weights != "equal":
        raise UsageError(
            f"RoundPlan.privacy needs weights='equal', got '{plan.weights}': a number of examples would be"
            " opened without noise"
        )
    if plan.train_metrics or plan.evaluate_metrics:
        raise UsageError("RoundPlan.privacy opens no metrics, which have no noise: name none in the plan")
    if plan.reveal_to != "server":
        raise UsageError(
            f"RoundPlan.privacy and reveal_to = '{plan.reveal_to}' do not go together: noise is for an"
            " average that is opened"
        )
    if getattr(inner, "fraction_evaluate", 0.0):
        raise UsageError(EVALUATION_REFUSED)
