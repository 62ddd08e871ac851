"""The server's side of a model that it never has: which state a round begins from, and what came of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from flwr.serverapp.strategy import FedAvg, Strategy

from fedsec.aggregation.announcement import RoundId
from fedsec.aggregation.collector import RoundResult
from fedsec.aggregation.sealed.terms import SEALED_FRACTION_BITS, Sealed, SealedAt
from fedsec.errors import FedsecError, UsageError
from fedsec.federation.plan import RoundPlan
from fedsec.federation.records import STORED
from fedsec.sharing.replicated import PARTIES
from fedsec.transport import ClusterFile

_log = logging.getLogger(__name__)


class SealedRun:
    """The sealed rounds of one run of a strategy; without ``reveal_to`` in the plan there are none.

    Args:
        plan: The public constants of the rounds.
        cluster: The parties; the first three compute.
        inner: The strategy.

    Raises:
        UsageError: There are fewer than three parties, or the strategy needs the average in the clear.
    """

    def __init__(self, plan: RoundPlan, cluster: ClusterFile, inner: Strategy) -> None:
        self._plan = plan
        self._parties = tuple(party.name for party in cluster.parties[:PARTIES])
        self._rounds: int | None = None
        self._last = SealedAt(b"", 0, closed=False)
        self._before: SealedAt | None = None
        if not self.active:
            return
        if len(self._parties) < PARTIES:
            raise UsageError(
                f"reveal_to = '{plan.reveal_to}' needs three computing parties, the cluster file has "
                f"{len(self._parties)}"
            )
        check_takes_the_mean(inner, plan.reveal_to)

    @property
    def active(self) -> bool:
        """Whether the model stays in shares."""
        return self._plan.reveal_to != "server"

    @property
    def last(self) -> SealedAt | None:
        """The newest state of the model; None without sealed rounds, or before the first."""
        return self._last if self.active and self._last.session else None

    def begin(self, rounds: int, *, evaluated_here: bool) -> None:
        """Note how many rounds there are.

        Raises:
            UsageError: The ServerApp wants to evaluate a model that it does not have.
        """
        self._rounds = rounds
        if self.active and evaluated_here:
            raise UsageError(
                f"with reveal_to = '{self._plan.reveal_to}' the ServerApp has no model: leave "
                "`evaluate_fn` out and let the hospitals evaluate (fraction_evaluate, and the metrics in "
                "RoundPlan.evaluate_metrics)"
            )

    def part_of(self, round_id: RoundId) -> Sealed | None:
        """Return the sealed part of a round's announcement; None when its average goes to the server.

        Raises:
            UsageError: Which round is the last is not known, and the last is to be kept closed.
        """
        if not self.active:
            return None
        if self._last.session != round_id.session:
            self._last, self._before = SealedAt(round_id.session, 0, closed=False), None
        closes = False
        if self._plan.reveal_to == "nobody" and round_id.phase == "train":
            if self._rounds is None:
                raise UsageError(
                    "reveal_to = 'nobody' needs the number of rounds: use the strategy's start()"
                )
            closes = round_id.round == self._rounds
        serves = self._plan.serves if closes else b""
        return Sealed(self._parties, SEALED_FRACTION_BITS, self._last.number, closes, serves)

    def can_be_evaluated(self) -> bool:
        """Whether hospitals can have the newest state, to evaluate it."""
        return not self._last.closed

    def took(self, sealed: Sealed, result: RoundResult) -> str:
        """Note what came of a training round; return why its update was thrown away, or an empty text."""
        if result.state is None:
            return f"the update was thrown away, the sealed model stays: {result.not_sealed}"
        session = self._last.session
        self._before = SealedAt(session, sealed.base, closed=False)
        self._last = SealedAt(session, result.state, closed=sealed.keep_closed)
        return ""

    def aborted(self, round_id: RoundId, statuses: Mapping[str, int]) -> str:
        """Go back one state when hospitals did not take the newest; return that as a text, or an empty one.

        A client that lies can bring a state out of its range, which nobody sees but the hospitals that fetch
        it. They answer as if training had failed; if it had, one good update is lost.

        Args:
            round_id: The round that was aborted.
            statuses: How many hospitals answered with each status.
        """
        taken, failed = statuses.get(STORED, 0), statuses.get(FedsecError.code, 0)
        if self._before is None or round_id.phase != "train" or not failed:
            return ""
        if taken >= self._plan.minimum_cohort:
            return ""
        number = self._last.number
        self._last, self._before = self._before, None
        return f"; the sealed model goes back from state {number} to state {self._last.number}"


def check_takes_the_mean(strategy: Strategy, reveal_to: str) -> None:
    """Refuse a strategy whose step on the server is another than taking the mean.

    Raises:
        UsageError: Names the strategy and the reason.
    """
    wrapped = isinstance(getattr(strategy, "strategy", None), Strategy)
    if wrapped or getattr(type(strategy), "aggregate_train", None) is not FedAvg.aggregate_train:
        raise UsageError(
            f"{type(strategy).__name__} needs the average in the clear, and with reveal_to = '{reveal_to}' "
            "no server has it: strategies whose server step is the plain mean work, FedAvg and FedProx"
        )
