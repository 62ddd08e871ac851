"""One experiment while it runs: its folder, its parties, and what has been measured so far."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsec.aggregation.trust import TrustLimits
from fedsec.cluster.cluster import Cluster
from fedsec.errors import PeerLostError, RoundAbortedError, StateError
from fedsec.lab.plan import round_plan
from fedsec.lab.progress import Reporter
from fedsec.lab.result import HospitalEpsilon, PredictionReport, RoundReport, RunResult, WholeHospital
from fedsec.lab.rundir import RunFolder
from fedsec.scenario import Scenario
from fedsec.transport import MeterReading


@dataclass(slots=True, kw_only=True, eq=False)
class Experiment:
    """A run in progress; the steps of ``fedsec.lab`` add to it.

    Attributes:
        scenario: What is run.
        folder: Where its files go.
        cluster: Its parties, running.
        reporter: Hears how far it is.
        rounds: Reports of the rounds so far.
        traffic: Bytes by role, of all roles but the parties, which count for themselves.
        prediction: Private predictions, once asked.
        privacy: What each hospital's records cost, with differential privacy.
        whole_hospital: What each hospital as a whole has spent, where the aggregators added noise.
        started: ``time.monotonic`` at the start.
    """

    scenario: Scenario
    folder: RunFolder
    cluster: Cluster
    reporter: Reporter
    rounds: list[RoundReport] = field(default_factory=list)
    traffic: dict[str, Counter[str]] = field(default_factory=dict)
    prediction: PredictionReport | None = None
    privacy: tuple[HospitalEpsilon, ...] = ()
    whole_hospital: WholeHospital | None = None
    started: float = field(default_factory=time.monotonic)

    def count(self, traffic: Mapping[str, Counter[str]]) -> None:
        """Add bytes by role."""
        for role, counted in traffic.items():
            self.traffic.setdefault(role, Counter()).update(counted)

    def finish(self) -> RunResult:
        """Read the parties' meters, store the summary and return it.

        Raises:
            PeerLostError: A party died; the text names it.
            StateError: The summary cannot be written.
        """
        self.cluster.watch()
        readings = self.cluster.meters()
        by_party = {
            name: {"sent_bytes": reading.sent_bytes, "received_bytes": reading.received_bytes}
            for name, reading in readings.items()
        }
        result = RunResult(
            folder=self.folder,
            scenario=self.scenario,
            rounds=tuple(self.rounds),
            traffic={**by_party, **{role: dict(counted) for role, counted in self.traffic.items()}},
            seen={name: _received(reading) for name, reading in readings.items()},
            seconds=time.monotonic() - self.started,
            prediction=self.prediction,
            privacy=self.privacy,
            whole_hospital=self.whole_hospital,
        )
        self.folder.append("traffic", {"traffic": result.traffic, "seen": result.seen})
        _write_json(self.folder.summary, result.summary())
        return result


@contextmanager
def running(scenario: Scenario, runs: Path, reporter: Reporter) -> Iterator[Experiment]:
    """Make a run folder with keys, start the parties, and stop them whatever happens.

    Raises:
        StateError: The folder cannot be made.
        PeerLostError: A party does not start; the text names it.
    """
    started = time.monotonic()
    folder = RunFolder.create(runs, scenario.name)
    folder.scenario.write_text(scenario.to_toml(), encoding="utf-8")
    reporter.begin(f"keys and {scenario.aggregation.aggregators} parties")
    cluster = local_cluster(folder, scenario)
    with log_to(folder.own_log, "fedsec"), cluster:
        reporter.step(f"run {folder.name}")
        try:
            yield Experiment(
                scenario=scenario, folder=folder, cluster=cluster, reporter=reporter, started=started
            )
        except (PeerLostError, RoundAbortedError):
            # If one of our parties died, how it ended and the end of its log say more.
            cluster.watch()
            raise


def local_cluster(folder: RunFolder, scenario: Scenario, ports: Sequence[int] | None = None) -> Cluster:
    """Return a run's cluster, not started; keys that the folder has are used again.

    Args:
        folder: The run's folder.
        scenario: Says how many parties and hospitals there are, and what they admit.
        ports: One port for each party; free ones by default.

    Raises:
        UsageError: The number of ports is not that of parties.
    """
    settings, plan, privacy = scenario.aggregation, round_plan(scenario), scenario.privacy
    clip = privacy.l2_norm_clip if scenario.hospital_level else settings.clip
    return Cluster.local(
        folder.path,
        settings.aggregators,
        scenario.hospitals.count,
        ports,
        minimum_cohort=settings.minimum_cohort,
        limits=TrustLimits(
            minimum_cohort=settings.minimum_cohort,
            largest_weight=plan.largest_weight,
            smallest_largest_weight=plan.largest_weight,
            largest_clip=clip,
            smallest_clip=clip,
            # A model for nobody comes out of a last round in the larger ring.
            ring_bits=(32, 64) if settings.reveal_to == "nobody" else (settings.ring_bits,),
            reveal_to=(settings.reveal_to,),
            weights=(plan.weights,),
            metrics={**plan.train_metrics, **plan.evaluate_metrics},
            hospital_epsilon=privacy.target_epsilon if scenario.hospital_level else 0.0,
            hospital_delta=privacy.delta,
            hospital_colluding=privacy.colluding_aggregators if scenario.hospital_level else 0,
        ),
    )


@contextmanager
def log_to(path: Path, name: str) -> Iterator[None]:
    """Send what a package logs in this process to a file, and nowhere else.

    Args:
        path: The file; lines are added.
        name: The package, imported already: Flower adds a handler of its own to its logger on import.
    """
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger(name)
    before = logger.handlers, logger.propagate, logger.level
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before[:2]
        logger.setLevel(before[2])
        handler.close()


def _received(reading: MeterReading) -> dict[str, tuple[int, int]]:
    """Return, by kind, how many messages a party received and their bytes."""
    return {kind: (counts[2], counts[3]) for kind, counts in reading.by_label.items() if counts[2]}


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    try:
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise StateError(f"cannot write {path}: {error.strerror}") from error
