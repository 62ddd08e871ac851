"""One report a round, joined from what the strategy and the evaluation say, and a simulation's observer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from fedsec.errors import RoundAbortedError
from fedsec.federation.observer import SimulationObserver, largest_difference, plain_mean
from fedsec.federation.plan import RoundPlan
from fedsec.federation.strategy import SecureRound
from fedsec.lab.result import RoundReport


class Rounds:
    """Joins what the strategy, the observer and the evaluation say of a round into one report.

    Args:
        names: The hospitals' names in the order of their numbers.
        report: Called with each round's report.
        plan: The public constants of the rounds. When the model stays in shares the hospitals evaluate it.
        observer: Knows the plain updates, where all hospitals share this process; None elsewhere.
    """

    def __init__(
        self,
        names: Sequence[str],
        report: Callable[[RoundReport], None],
        plan: RoundPlan,
        observer: SimulationObserver | None = None,
    ) -> None:
        self._names = names
        # An average with noise is not that of the plain updates: there is nothing to compare.
        self._observer = observer if plan.privacy is None else None
        self._sealed = plan.reveal_to != "server"
        self._equal = plan.weights == "equal"
        self._report = report
        self._last: RoundReport | None = None
        self._averages = 0
        self._secure: SecureRound | None = None
        self._started = time.monotonic()

    def secured(self, secure: SecureRound) -> None:
        """Keep what the strategy knows until the round is evaluated, by the server or by the hospitals."""
        if secure.phase == "train":
            self._flush()
            self._secure = secure
        elif self._sealed and secure.result is not None:
            metrics = secure.result.metrics
            self.evaluated(secure.server_round, metrics["loss"], metrics["accuracy"])

    def _flush(self) -> None:
        """Report a round of a sealed model that nobody evaluated."""
        if self._sealed and self._secure is not None:
            self.evaluated(self._secure.server_round, None, None)

    def evaluated(self, number: int, loss: float | None, accuracy: float | None) -> None:
        """Report the round; the evaluation before the first one only starts the clock."""
        seconds, self._started = time.monotonic() - self._started, time.monotonic()
        secure, self._secure = self._secure, None
        if number == 0 or secure is None:
            return
        result = None if secure.aborted else secure.result
        self._averages += result is not None
        self._last = RoundReport(
            round=number,
            accuracy=accuracy,
            loss=loss,
            included=len(result.included) if result else 0,
            names=tuple(sorted(result.included)) if result else (),
            hospitals=len(self._names),
            difference=self._difference(secure),
            error_bound=result.error_bound if result else None,
            seconds=seconds,
            statuses=secure.statuses,
            aborted=secure.aborted,
        )
        self._report(self._last)

    def check(self) -> None:
        """Raise if the whole training made no average: the model would be the initial one."""
        self._flush()
        if self._last is not None and not self._averages:
            raise RoundAbortedError(
                f"none of {self._last.round} rounds ended with an average. In the last one"
                f" {self._last.aborted or 'nobody uploaded'}; hospitals answered {dict(self._last.statuses)}"
            )

    def _difference(self, secure: SecureRound) -> float | None:
        if self._observer is None:
            return None
        seen = self._observer.take()
        if secure.result is None or not secure.result.arrays:
            return None
        included = set(secure.result.included)
        updates = [update for hospital, update in seen.items() if self._names[hospital] in included]
        return largest_difference(secure.result.arrays, plain_mean(updates, equal=self._equal))
