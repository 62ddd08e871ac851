"""``fedsec bench aggregate``: what a round of secure aggregation costs, beside plain FedAvg, in one run.

Aggregators are real processes over mutual TLS; all hospitals and the ServerApp are in this process, on the
in-process grid, one hospital after the other. The plain references run on the same grid with the same app:
``flower`` has no wire at all, ``wired`` sends every reply over the same channels to one process that
averages. The three take turns.
"""

from __future__ import annotations

import logging
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedsec.aggregation.trust import TrustLimits
from fedsec.bench.aggregate_planned import planned
from fedsec.bench.aggregate_ways import (
    CLIP,
    AveragedElsewhere,
    ConnectedMod,
    Fixed,
    OverTls,
    Taken,
    Way,
    fed_avg,
)
from fedsec.bench.machine import machine
from fedsec.bench.service import cpu_seconds, peak_mib, resident_mib
from fedsec.bench.timing import Timing
from fedsec.bench.workers import Worker
from fedsec.cluster.cluster import Cluster
from fedsec.cluster.keys import make_local_keys
from fedsec.federation.plan import RoundPlan
from fedsec.federation.strategy import SecureAggregation
from fedsec.transport import ClusterFile, Deadline, Endpoint, Identity, Meter

AVERAGER, AVERAGER_NAME = "fedsec.bench.aggregate_averager", "averager"
PARTIES = 3
_OPEN_S = 120.0
_WAYS = ("flower", "wired", "secure")

Say = Callable[[str], None]
Size = tuple[int, int]
"""Hospitals and parameters."""


@dataclass(frozen=True, slots=True)
class Effort:
    """What is measured.

    Attributes:
        sizes: Hospitals and parameters of the rounds that are compared with the references.
        turns: The three ways take turns so often, at each size, after one round that is not counted.
        hospitals: Numbers of hospitals for the fit, each with ``grown_parameters``.
        grown_parameters: Parameters for that fit.
        parameters: Numbers of parameters for the other fit, each with ``grown_hospitals``.
        grown_hospitals: Hospitals for that fit.
    """

    sizes: tuple[Size, ...]
    turns: int
    hospitals: tuple[int, ...]
    grown_parameters: int
    parameters: tuple[int, ...]
    grown_hospitals: int


FULL = Effort(
    sizes=((100, 1_000_000), (1000, 100_000)),
    turns=3,
    hospitals=(10, 30, 100, 300, 1000),
    grown_parameters=100_000,
    parameters=(10_000, 100_000, 300_000, 1_000_000, 2_000_000),
    grown_hospitals=10,
)
QUICK = Effort(
    sizes=((10, 1_000_000), (100, 100_000)),
    turns=2,
    hospitals=(10, 30, 100),
    grown_parameters=10_000,
    parameters=(10_000, 100_000, 1_000_000),
    grown_hospitals=10,
)


def bench_aggregate(effort: Effort, say: Say) -> dict[str, Any]:
    """Measure everything and return it as what JSON can hold.

    Args:
        effort: What is measured.
        say: Hears what is being measured.

    Raises:
        FedsecError: A process was lost, or a round has no result.
    """
    _allow_connections()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    most = max(effort.grown_hospitals, *effort.hospitals, *(hospitals for hospitals, _ in effort.sizes))
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedsec-bench-")))
        say(f"{PARTIES} aggregators over TLS, keys for {most} hospitals, and the process that averages")
        site = stack.enter_context(_site(work, most))
        results: dict[str, Any] = {"machine": machine(), "clip": CLIP}
        say(f"opening {PARTIES * most} connections")
        results["opening"] = site.open()
        results["sizes"] = []
        for hospitals, parameters in effort.sizes:
            say(f"{hospitals} hospitals, {parameters} parameters: plain, plain over TLS and secure in turns")
            results["sizes"].append(_compared(site, (hospitals, parameters), effort.turns))
        say("growth with hospitals and with parameters")
        results["growth"] = {
            "hospitals": _grown(site, [(one, effort.grown_parameters) for one in effort.hospitals]),
            "parameters": _grown(site, [(effort.grown_hospitals, one) for one in effort.parameters]),
        }
        results["planner"] = planned()
        return results


class Site:
    """The processes, and all hospitals with their connections.

    Args:
        cluster: The aggregators.
        averager: The process that averages.
        endpoint: Where the averager listens.
    """

    def __init__(self, cluster: Cluster, averager: Worker, endpoint: Endpoint) -> None:
        self.cluster, self._averager, self._endpoint = cluster, averager, endpoint
        self.file = ClusterFile.load(cluster.file)
        self.names = sorted(self.file.hospitals)
        self.server = Identity.load(cluster.identity("server"))
        self.trust = [cluster.trust_file(name) for name in self.names]
        self.meter, self.plain_meter = Meter(), Meter()
        self.mod = ConnectedMod()
        self._links = self.mod.prepare(self.trust, self.meter)
        identities = [Identity.load(cluster.identity(name)) for name in self.names]
        self._wired = OverTls(endpoint, identities, self.plain_meter)

    def open(self) -> dict[str, Any]:
        """Open every hospital's connections; processor time at both ends of those to aggregators."""
        deadline = Deadline.after(_OPEN_S)
        before, own = self.aggregator_cpu_s(), time.process_time()
        for links in self._links:
            links.connect(deadline)
        count = len(self._links) * len(self.file.parties)
        own, after = time.process_time() - own, self.aggregator_cpu_s()
        for links in self._wired.links:
            links.connect(deadline)
        return {
            "connections": count,
            "hospital_ms": own / count * 1e3,
            "aggregator_ms": (after - before) / count * 1e3,
        }

    def way(self, name: str, fixed: Fixed) -> Way:
        """Return one of the three ways for rounds of this size."""
        if name == "flower":
            return Way(fixed, fed_avg())
        if name == "wired":
            strategy = AveragedElsewhere(self._endpoint, self.server)
            return Way(fixed, strategy, [self._wired])
        names = self.names[: fixed.hospitals]
        cluster = replace(self.file, hospitals={one: self.file.hospitals[one] for one in names})
        secure = SecureAggregation(fed_avg(), cluster, self.server, plan=plan_of(fixed))
        return Way(fixed, secure, [self.mod], self.trust[: fixed.hospitals])

    def aggregator_cpu_s(self) -> float:
        """Return the processor time of all aggregators so far."""
        return sum(cpu_seconds(pid) for pid in self.cluster.pids().values())

    def averager_cpu_s(self) -> float:
        """Return the processor time of the averaging process so far."""
        return cpu_seconds(self._averager.pid)

    def memory(self) -> dict[str, dict[str, float]]:
        """Return the largest resident memory that each aggregator ever had, and what it has now, in MiB."""
        pids = self.cluster.pids()
        return {name: {"peak": peak_mib(pid), "now": resident_mib(pid)} for name, pid in pids.items()}

    def close(self) -> None:
        """Close every connection."""
        self.mod.close()
        for links in self._wired.links:
            links.close()


def plan_of(fixed: Fixed) -> RoundPlan:
    """Return the public constants of rounds with fixed vectors."""
    return RoundPlan(
        clip=CLIP, largest_weight=fixed.largest_weight, smallest_mean_weight=fixed.mean_weight, ring_bits=32
    )


@contextmanager
def _site(work: Path, hospitals: int) -> Iterator[Site]:
    limits = TrustLimits(largest_weight=100, smallest_largest_weight=1)
    with Cluster.local(work, PARTIES, hospitals, limits=limits) as cluster, Worker(AVERAGER) as averager:
        keys = make_local_keys(cluster.folder / "keys", [AVERAGER_NAME], 0)
        path = keys.identity(AVERAGER_NAME)
        port = averager.ask("listen", identity=str(path))
        endpoint = Endpoint(AVERAGER_NAME, "127.0.0.1", port, Identity.load(path).public_key)
        site = Site(cluster, averager, endpoint)
        try:
            yield site
        finally:
            site.close()


def _compared(site: Site, size: Size, turns: int) -> dict[str, Any]:
    fixed = Fixed(*size)
    with ExitStack() as stack:
        ways = {name: stack.enter_context(closing(site.way(name, fixed))) for name in _WAYS}
        return _in_turns(site, ways, size, turns)


def _in_turns(site: Site, ways: Mapping[str, Way], size: Size, turns: int) -> dict[str, Any]:
    hospitals, parameters = size
    for way in ways.values():
        way.round()
    taken: dict[str, list[Taken]] = {name: [] for name in _WAYS}
    sent = {"wired": -site.plain_meter.sent_bytes, "secure": -site.meter.sent_bytes}
    cpu = {"wired": 0.0, "secure": 0.0}
    for _ in range(turns):
        for name, way in ways.items():
            before = {"wired": site.averager_cpu_s(), "secure": site.aggregator_cpu_s()}
            taken[name].append(way.round())
            after = {"wired": site.averager_cpu_s(), "secure": site.aggregator_cpu_s()}
            if name in cpu:
                cpu[name] += after[name] - before[name]
    sent = {
        "wired": sent["wired"] + site.plain_meter.sent_bytes,
        "secure": sent["secure"] + site.meter.sent_bytes,
    }
    each = hospitals * turns
    return {
        "hospitals": hospitals,
        "parameters": parameters,
        "wall": {name: Timing.of([one.wall_s for one in rounds]).summary() for name, rounds in taken.items()},
        "answering": {
            name: Timing.of([one.hospitals_s for one in rounds]).summary() for name, rounds in taken.items()
        },
        "hospital_cpu_ms": {
            name: float(np.median([one.cpu_s for one in rounds])) / hospitals * 1e3
            for name, rounds in taken.items()
        },
        "other_end_cpu_ms": {name: seconds / each * 1e3 for name, seconds in cpu.items()},
        "sent_bytes": {"flower": 4 * parameters, **{name: count / each for name, count in sent.items()}},
        "error": {name: max(one.error for one in rounds) for name, rounds in taken.items()},
        "memory_mib": site.memory(),
    }


def _grown(site: Site, sizes: Sequence[Size]) -> dict[str, Any]:
    """Return the shorter of two secure rounds of each size."""
    seconds = []
    for hospitals, parameters in sizes:
        with closing(site.way("secure", Fixed(hospitals, parameters))) as way:
            seconds.append(min(way.round().wall_s for _ in range(2)))
    return {"sizes": [list(size) for size in sizes], "seconds": seconds}


def _allow_connections() -> None:
    """A thousand hospitals have six thousand descriptors in this process."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
