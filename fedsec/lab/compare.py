"""The same scenario twice, plain and secured, from the same seed: what security costs, and what it changes.

Each side runs in a process of its own, one after the other, so that neither finds the other's memory or
TensorFlow's first steps already there. The secure side's observer also tells, round by round, how far the
opened average is from the plain mean of the very same updates.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedsec.cluster.cluster import Cluster
from fedsec.cluster.process import ChildProcess
from fedsec.errors import FedsecError, StateError, UsageError
from fedsec.lab.experiment import local_cluster
from fedsec.lab.handover import Handover
from fedsec.lab.memory import peak_memory
from fedsec.lab.plan import round_plan
from fedsec.lab.progress import Reporter
from fedsec.lab.result import RoundReport
from fedsec.lab.rundir import RunFolder
from fedsec.scenario import Scenario
from fedsec.transport import Deadline

START_S = 120.0
"""Seconds until the first round begins: a process loads TensorFlow and the images."""
_SLACK_S = 120.0
_END_S = 5.0
_LOOK_S = 0.1
MEASURES = "measures.json"
SIDE_COMMAND = (sys.executable, "-m", "fedsec.lab.compare_side")
BOTH_ROLES = "hospitals and server"
"""The in-process engine runs them in one process, whose memory cannot be told apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SideResult:
    """One side of a comparison.

    Attributes:
        rounds: One report a round.
        traffic: ``sent_bytes`` and ``received_bytes`` by role, over Flower and over channels together.
        upload_bytes: What a hospital sends in a round, the mean of all that answered.
        seconds: Wall time of all rounds, central evaluation included.
        client_seconds: Of that, inside the hospitals' apps.
        memory: Peak resident bytes by process; None where the kernel does not say.
        memory_before: Of the hospitals and the server before the first round: TensorFlow and the images.
    """

    rounds: tuple[RoundReport, ...]
    traffic: Mapping[str, Mapping[str, int]]
    upload_bytes: float
    seconds: float
    client_seconds: float
    memory: Mapping[str, int | None]
    memory_before: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Both sides.

    Attributes:
        folder: Where everything is.
        scenario: What was run.
        plain: Flower's strategy and the apps as they are.
        secure: The same with the two lines.
        seconds: Wall time of the whole.
    """

    folder: RunFolder
    scenario: Scenario
    plain: SideResult
    secure: SideResult
    seconds: float

    @property
    def within_bound(self) -> bool:
        """Whether every opened average is as near to the plain mean of the same updates as was stated."""
        return all(
            one.difference is not None and one.error_bound is not None and one.difference <= one.error_bound
            for one in self.secure.rounds
            if one.included
        )

    def summary(self) -> dict[str, Any]:
        """Return everything as values that JSON can hold; the same as ``summary.json``."""
        return {
            "run": str(self.folder.path),
            "scenario": self.scenario.name,
            "within_bound": self.within_bound,
            "plain": asdict(self.plain),
            "secure": asdict(self.secure),
            "seconds": self.seconds,
        }


def run_comparison(
    scenario: Scenario, *, runs: Path | str = "runs", reporter: Reporter | None = None
) -> Comparison:
    """Run a scenario plain and secured and measure both.

    Args:
        scenario: What to run.
        runs: Folder in which the comparison gets a folder of its own.
        reporter: Hears how far it is; nobody by default.

    Raises:
        UsageError: Nobody opens the scenario's averages, or they have noise: there is nothing to compare.
        FedsecError: As ``run_scenario`` raises. No process is left behind.
    """
    if scenario.aggregation.reveal_to != "server":
        raise UsageError(
            f"aggregation.reveal_to = '{scenario.aggregation.reveal_to}': the average that would be compared"
            " is never opened to the server; take 'server'"
        )
    if scenario.hospital_level:
        raise UsageError(
            "privacy.level = 'hospital': the noise of the aggregators is in every opened average, so none of"
            " them is the plain mean; compare with privacy.target_epsilon=0, or run both for their accuracy"
        )
    started, reporter = time.monotonic(), reporter or Reporter()
    folder = RunFolder.create(Path(runs), f"compare-{scenario.name}")
    folder.scenario.write_text(scenario.to_toml(), encoding="utf-8")
    reporter.begin(f"keys and {scenario.aggregation.aggregators} parties")
    with local_cluster(folder, scenario) as cluster:
        reporter.step(f"run {folder.name}")
        plain = _Runner(folder, scenario, reporter, "plain").run()
        secure = _Runner(folder, scenario, reporter, "secure", cluster).run()
    comparison = Comparison(
        folder=folder, scenario=scenario, plain=plain, secure=secure, seconds=time.monotonic() - started
    )
    try:
        text = json.dumps(comparison.summary(), indent=1)
        folder.summary.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise StateError(f"cannot write {folder.summary}: {error.strerror}") from error
    # Matplotlib takes half a second to load.
    from fedsec.lab.compare_figure import draw_comparison  # noqa: PLC0415 - as said above

    draw_comparison(plain.rounds, secure.rounds, folder.comparison_figure)
    return comparison


class _Runner:
    """Starts the process of one side, follows it and reads what it measured."""

    def __init__(
        self,
        folder: RunFolder,
        scenario: Scenario,
        reporter: Reporter,
        side: str,
        cluster: Cluster | None = None,
    ) -> None:
        self._folder, self._scenario, self._reporter = folder, scenario, reporter
        self._side, self._cluster = side, cluster
        self._handover = Handover(folder.path / side)
        self._rounds: list[RoundReport] = []

    def run(self) -> SideResult:
        """Run the side to its end, or end it.

        Raises:
            PeerLostError: The process, or a party, ended.
            DeadlineError: A round did not end in time.
        """
        self._handover.folder.mkdir(parents=True)
        self._reporter.begin(f"training, {self._side}", self._scenario.training.rounds)
        process = ChildProcess(f"the {self._side} side", self._folder.logs / f"{self._side}-output.log")
        command = [*SIDE_COMMAND, str(self._folder.path), self._side]
        try:
            process.run(command)
            self._follow(process)
        finally:
            process.ask_to_end()
            process.end(_END_S)
        return self._result()

    def _follow(self, process: ChildProcess) -> None:
        plan, deadline, ended = round_plan(self._scenario), Deadline.after(START_S), False
        while not ended:
            # Asked first: what has ended has written everything before.
            ended = self._handover.ended
            for report in self._handover.rounds(len(self._rounds)):
                self._rounds.append(report)
                self._folder.append("round", {"side": self._side, **asdict(report)})
                self._reporter.step(f"{report.accuracy:.2%} on the test images")
                deadline = Deadline.after(plan.upload_seconds + plan.collect_seconds + _SLACK_S)
            if not ended:
                process.check()
                deadline.remaining(f"the {self._side} side in round {len(self._rounds) + 1}")
            if self._cluster is not None:
                self._cluster.watch()
            time.sleep(_LOOK_S)
        self._handover.check()

    def _result(self) -> SideResult:
        try:
            measures = json.loads((self._handover.folder / MEASURES).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FedsecError(f"the {self._side} side left no measures: {error}") from error
        flower = measures["flower"]
        traffic = {
            "hospitals": _joined(
                measures["hospitals"],
                {"sent_bytes": flower["received_bytes"], "received_bytes": flower["sent_bytes"]},
            ),
            "server": _joined(measures["server"], flower),
        }
        memory: dict[str, int | None] = {BOTH_ROLES: measures["memory_bytes"]}
        if self._cluster is not None:
            for name, reading in self._cluster.meters().items():
                traffic[name] = {"sent_bytes": reading.sent_bytes, "received_bytes": reading.received_bytes}
            memory.update({name: peak_memory(pid) for name, pid in self._cluster.pids().items()})
        return SideResult(
            rounds=tuple(self._rounds),
            traffic=traffic,
            upload_bytes=traffic["hospitals"]["sent_bytes"] / max(1, measures["answered"]),
            seconds=sum(report.seconds for report in self._rounds),
            client_seconds=measures["client_seconds"],
            memory=memory,
            memory_before=measures["memory_before_bytes"],
        )


def _joined(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: one[name] + other[name] for name in ("sent_bytes", "received_bytes")}
