"""The server side in one line: ``SecureAggregation(FedAvg(...), aggregators=...)``.

The wrapper signs one announcement a round, sends it with the messages of the inner strategy, and asks the
aggregators for the average of the included hospitals. The inner strategy gets one reply that holds it, so
neither it nor the ServerApp ever has a single hospital's update, weight or metric.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict, UserConfig
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedsec.aggregation.announcement import SESSION_BYTES, Announcement, Member, RoundId
from fedsec.aggregation.collector import Collector, RoundResult
from fedsec.aggregation.sealed.terms import SealedAt
from fedsec.errors import RoundAbortedError, UsageError
from fedsec.federation.compatibility import check_strategy, common_content
from fedsec.federation.deployment import Aggregators, cluster_file, server_identity
from fedsec.federation.exchange import OpenRound, Phase, SecureRound
from fedsec.federation.hospital_level import HospitalLevelRun
from fedsec.federation.plan import RoundPlan, announce_round
from fedsec.federation.records import (
    ANNOUNCEMENT_KEY,
    RECORD,
    SIGNATURE_KEY,
    STORED,
    WEIGHTED_BY_KEY,
    array_names,
    config_items,
    numpy_of,
    one_reply,
    only_arrays,
    status_of,
)
from fedsec.federation.sealed import SealedRun
from fedsec.transport import Deadline, Identity, Meter

__all__ = ["Phase", "SecureAggregation", "SecureRound"]

_log = logging.getLogger(__name__)


class SecureAggregation(Strategy):
    """A Flower strategy that wraps another and lets it see averages only.

    Args:
        inner: A strategy that uses only the weighted mean: FedAvg, FedProx, FedAvgM, FedAdam, FedAdagrad,
            FedYogi, or one of your own. Those that need single updates are refused by name.
        aggregators: A running ``fedsec.Cluster``, or the path of a cluster file, or a loaded one.
        identity: The Flower server's identity (object or PEM path); hospitals pin its key. When missing, it
            is the cluster's own, or ``server.pem`` in the folder of the cluster file or in ``keys/`` there.
        plan: The public constants of the rounds.
        run_config: The run config of the ServerApp's context. Hospitals compare it with their own, so it
            must be given when the app has one.
        on_round: Called with a :class:`SecureRound` after each secured exchange.

    Raises:
        UsageError: The inner strategy, the cluster file or the identity does not fit.
    """

    def __init__(
        self,
        inner: Strategy,
        aggregators: Aggregators,
        identity: Identity | Path | str | None = None,
        *,
        plan: RoundPlan | None = None,
        run_config: UserConfig | None = None,
        on_round: Callable[[SecureRound], None] | None = None,
    ) -> None:
        check_strategy(inner)
        self.inner = inner
        self.plan = plan or RoundPlan()
        self._cluster = cluster_file(aggregators)
        self._identity = server_identity(identity, aggregators)
        if self._cluster.server != self._identity.public_key:
            raise UsageError(
                f"the cluster file pins another server key than that of '{self._identity.name}': hospitals "
                "and aggregators would refuse every round"
            )
        self._run_config = dict(run_config or {})
        self._on_round = on_round
        self.meter = Meter()
        """Counts the bytes between the ServerApp and the aggregators."""
        self._collector = Collector(self._cluster.parties, self._identity, meter=self.meter)
        self._session = b""
        self._position = -1
        self._open: OpenRound | None = None
        self._sealed = SealedRun(self.plan, self._cluster, inner)
        self._private = HospitalLevelRun(self.plan, self._cluster, inner)

    @property
    def sealed(self) -> SealedAt | None:
        """Where the model is when it stays in shares; None when ``plan.reveal_to`` is "server"."""
        return self._sealed.last

    @property
    def epsilon(self) -> float | None:
        """What the rounds so far tell at most about any whole hospital; None without ``plan.privacy``."""
        return self._private.epsilon

    def close(self) -> None:
        """Close the connections to the aggregators."""
        self._collector.close()

    def start(  # noqa: PLR0917 - the signature is Flower's
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run all rounds as Flower does, but wait for replies no longer than uploads are open.

        Aggregators keep a sum for a while after uploads close; a hospital that never answers Flower must
        not make the server come for it too late.

        Raises:
            UsageError: The model stays in shares, and ``evaluate_fn`` is to evaluate it here.
        """
        self._sealed.begin(num_rounds, evaluated_here=evaluate_fn is not None)
        self._private.begin(num_rounds)
        return super().start(
            grid,
            initial_arrays,
            num_rounds,
            min(timeout, self.plan.upload_seconds),
            train_config,
            evaluate_config,
            evaluate_fn,
        )

    def summary(self) -> None:
        """Log what is secured, then the inner strategy's own summary."""
        parties = ", ".join(party.name for party in self._cluster.parties)
        _log.info(
            "secure aggregation over %s; at least %d hospitals a sum; metrics opened after training: %s, "
            "after evaluation: %s",
            parties,
            self.plan.minimum_cohort,
            ", ".join(self.plan.train_metrics) or "none",
            ", ".join(self.plan.evaluate_metrics) or "none",
        )
        self.inner.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the inner strategy's messages, each with the round's signed announcement.

        Raises:
            UsageError: The inner strategy sends hospitals different contents, an array cannot be averaged, or
                the strategy samples fewer hospitals than a sum must have.
            PeerLostError: An aggregator cannot be reached; the text names it.
        """
        messages = self.inner.configure_train(server_round, arrays, config, grid)
        return self._announce("train", server_round, list(messages), grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Hand the inner strategy the opened average as its only reply.

        Returns:
            What the inner strategy makes of it; ``(None, None)``, which leaves the model as it is, when the
            round was aborted or had fewer hospitals than the minimum cohort.
        """
        opened, result = self._collect("train", server_round, replies)
        if opened is None or result is None:
            return None, None
        if opened.announcement.sealed is not None:
            return self._initial_again(opened, server_round, result)
        averaged = opened.moved(result.arrays)
        reply = one_reply(opened.order, (opened.record_name, averaged), self._numbers(result))
        return self.inner.aggregate_train(server_round, [reply])

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the inner strategy's messages, if any, each with an announcement for metrics only."""
        if not self._sealed.can_be_evaluated():
            _log.info("evaluation round %d: the last model is closed, nobody evaluates it", server_round)
            return []
        messages = self.inner.configure_evaluate(server_round, arrays, config, grid)
        return self._announce("evaluate", server_round, list(messages), grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Hand the inner strategy the averaged metrics as its only reply; None when the round was aborted."""
        opened, result = self._collect("evaluate", server_round, replies)
        if opened is None or result is None:
            return None
        reply = one_reply(opened.order, None, self._numbers(result))
        return self.inner.aggregate_evaluate(server_round, [reply])

    def _announce(
        self, phase: Phase, server_round: int, messages: list[Message], grid: Grid
    ) -> list[Message]:
        self._open = None
        if not messages or not self._enough(phase, server_round, len(messages), grid):
            return []
        content = common_content(messages, phase)
        given = only_arrays(content)
        if given is None:
            raise UsageError(
                f"{type(self.inner).__name__} sends another content than one ArrayRecord and ConfigRecords"
            )
        opened = self._open_round(phase, server_round, messages[0], given)
        if refusal := self._private.charge(opened.announcement):
            self._nobody_asked(phase, server_round, refusal)
            return []
        deadline = Deadline.after(self.plan.collect_seconds)
        signed = self._collector.announce(opened.announcement, deadline, list(opened.base.values()))
        ours = ConfigRecord(
            {
                ANNOUNCEMENT_KEY: signed.payload,
                SIGNATURE_KEY: signed.signature,
                WEIGHTED_BY_KEY: self._weighted_by,
            }
        )
        for message in messages:
            # Strategies share one RecordDict among messages: it is left as it was.
            message.content = RecordDict({**content, RECORD: ours})
            message.metadata.ttl = min(message.metadata.ttl, self.plan.upload_seconds)
        self._open = opened
        return messages

    def _enough(self, phase: Phase, server_round: int, asked: int, grid: Grid) -> bool:
        """Say whether so many hospitals can make a sum; if not, nobody is asked to train for nothing.

        Raises:
            UsageError: Enough are connected, and the strategy's own sampling leaves too few.
        """
        fewest = self.plan.minimum_cohort
        if asked >= fewest:
            return True
        connected = len(list(grid.get_node_ids()))
        if connected >= fewest:
            raise UsageError(
                f"the strategy asks {asked} of {connected} hospitals, and a sum has at least {fewest}: raise "
                f"its fraction_{phase} or min_{phase}_nodes"
            )
        why = f"{connected} hospitals are connected, a sum has at least {fewest}"
        self._nobody_asked(phase, server_round, why)
        return False

    def _nobody_asked(self, phase: Phase, server_round: int, why: str) -> None:
        aborted = f"{why}; nobody was asked"
        _log.warning("%s round %d has no average, the model stays: %s", phase, server_round, aborted)
        self._report(SecureRound(server_round=server_round, phase=phase, aborted=aborted))

    def _open_round(
        self, phase: Phase, server_round: int, order: Message, given: tuple[str, ArrayRecord]
    ) -> OpenRound:
        record_name, record = given
        base = {name: numpy_of(array) for name, array in record.items()}
        round_id = RoundId(self._session_for(phase, server_round), server_round, phase)
        announcement = announce_round(
            self.plan,
            round_id,
            sealed=self._sealed.part_of(round_id),
            noise=self._private.noise(phase, base.values()),
            cluster=self._cluster,
            recipient=Member(self._identity.name, self._identity.public_key),
            arrays=dict(zip(array_names(record_name, record), base.values(), strict=True)),
            config=config_items(order.content.config_records, self._run_config, self._weighted_by),
        )
        if phase == "evaluate" and not announcement.metrics:
            _log.warning(
                "evaluation round %d opens no metric: name them in RoundPlan.evaluate_metrics, or set "
                "fraction_evaluate=0.0",
                server_round,
            )
        return OpenRound(announcement, order, record_name, base)

    def _session_for(self, phase: Phase, server_round: int) -> bytes:
        """Return the session of this exchange; a new one when the rounds count from 1 again."""
        position = 2 * server_round + (phase == "evaluate")
        if position <= self._position or not self._session:
            self._session = os.urandom(SESSION_BYTES)
        self._position = position
        return self._session

    def _collect(
        self, phase: Phase, server_round: int, replies: Iterable[Message]
    ) -> tuple[OpenRound | None, RoundResult | None]:
        opened, self._open = self._open, None
        statuses = Counter(status_of(reply) for reply in replies)
        if opened is None:
            return None, None
        started = time.perf_counter()
        result, aborted = None, ""
        try:
            result = self._collector.collect(opened.announcement, Deadline.after(self.plan.collect_seconds))
        except RoundAbortedError as error:
            aborted = str(error) + self._sealed.aborted(opened.announcement.id, statuses)
            _log.warning("%s round %d has no average, the model stays: %s", phase, server_round, aborted)
        else:
            aborted = self._noted(opened.announcement, result)
        _log.info("%s round %d: %d hospitals stored an upload", phase, server_round, statuses[STORED])
        self._report(
            SecureRound(
                server_round=server_round,
                phase=phase,
                statuses=dict(statuses),
                result=result,
                aborted=aborted,
                seconds=time.perf_counter() - started,
            )
        )
        return opened, result

    def _noted(self, announcement: Announcement, result: RoundResult) -> str:
        """Note what came of a round for the sealed model, if there is one; return why it stays as it is."""
        if announcement.sealed is None or announcement.phase != "train":
            return ""
        aborted = self._sealed.took(announcement.sealed, result)
        if aborted:
            _log.warning("train round %d: %s", announcement.round, aborted)
        return aborted

    def _initial_again(
        self, opened: OpenRound, server_round: int, result: RoundResult
    ) -> tuple[ArrayRecord, MetricRecord | None]:
        """Return the initial parameters, all that the ServerApp has of a sealed model, and the metrics."""
        initial = opened.unmoved()
        reply = one_reply(opened.order, (opened.record_name, initial), self._numbers(result))
        _, metrics = self.inner.aggregate_train(server_round, [reply])
        return initial, metrics

    def _report(self, done: SecureRound) -> None:
        if self._on_round is not None:
            self._on_round(done)

    @property
    def _weighted_by(self) -> str:
        return str(getattr(self.inner, "weighted_by_key", "num-examples"))

    def _numbers(self, result: RoundResult) -> dict[str, float]:
        return {self._weighted_by: result.total_weight, **result.metrics}
