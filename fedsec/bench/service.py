"""What is measured: three party processes that serve a model, and the process that asks them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedsec.bench.workers import Worker
from fedsec.cluster.cluster import PARTY_COMMAND, Cluster
from fedsec.lab.memory import peak_memory, resident_memory
from fedsec.lab.share import SharedModel, share
from fedsec.nn import REVEALS, Reveal
from fedsec.nn.engine import Mode

WAN_COMMAND = (sys.executable, "-m", "fedsec.bench.wan")
ASKER = "fedsec.bench.asker"
_MEBI = 1 << 20


@dataclass(frozen=True, slots=True)
class Service:
    """A served model.

    Attributes:
        asker: The client's process, connected.
        cluster: The three party processes.
        shared: The owner's handle.
    """

    asker: Worker
    cluster: Cluster
    shared: SharedModel

    def times(self, count: int, images: int = 1, reveal: Reveal = "logits") -> list[float]:
        """Return wall times of requests at the client, in seconds."""
        seconds: list[float] = self.asker.ask("times", count=count, images=images, reveal=reveal)
        return seconds

    def rate(self, count: int, images: int = 1, reveal: Reveal = "logits") -> float:
        """Return images a second of requests one after the other."""
        return float(self.asker.ask("rate", count=count, images=images, reveal=reveal))

    def memory(self) -> dict[str, float]:
        """Return the resident memory of each party in MiB."""
        return {name: resident_mib(pid) for name, pid in self.cluster.pids().items()}

    def cpu_seconds(self) -> dict[str, float]:
        """Return the processor time that each party and the client have used so far."""
        pids = {**self.cluster.pids(), "client": self.asker.pid}
        return {name: cpu_seconds(pid) for name, pid in pids.items()}

    def party_bytes(self) -> dict[str, int]:
        """Return the payload bytes that each party has sent to the other parties so far, by its meter."""
        names = {endpoint.name for endpoint in self.cluster.endpoints}
        return {
            name: sum(counts[1] for peer, counts in reading.by_peer.items() if peer in names)
            for name, reading in self.cluster.meters().items()
        }


@contextmanager
def parties(
    folder: Path, *, insecure_plaintext: bool = False, one_way_ms: float | None = None
) -> Iterator[Cluster]:
    """Start three parties on this machine.

    Args:
        folder: Gets their keys, state and logs.
        insecure_plaintext: Without TLS after the handshake.
        one_way_ms: Behind relays that hold every byte back by so many milliseconds.
    """
    command = PARTY_COMMAND if one_way_ms is None else (*WAN_COMMAND, "--delay-ms", str(one_way_ms))
    with Cluster.local(folder, command=command, insecure_plaintext=insecure_plaintext) as cluster:
        yield cluster


@contextmanager
def served(
    run: Path,
    cluster: Cluster,
    *,
    mode: Mode = "dealt",
    reveals: Sequence[Reveal] = REVEALS,
    label_epsilon: float | None = None,
) -> Iterator[Service]:
    """Serve a run's model and connect a client process to it."""
    with share(run, cluster) as shared, Worker(ASKER) as asker:
        shared.serve(mode=mode, reveals=reveals, label_epsilon=label_epsilon)
        asker.ask("connect", cluster=str(cluster.file), identity=str(cluster.identity("user")))
        yield Service(asker, cluster, shared)
        asker.ask("close")


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process in MiB, as the kernel counts it."""
    return _mib(resident_memory(pid))


def peak_mib(pid: int) -> float:
    """Return the largest resident memory that a process ever had, in MiB."""
    return _mib(peak_memory(pid))


def _mib(size: int | None) -> float:
    return float("nan") if size is None else size / _MEBI


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process, of all its threads, in user and system mode."""
    # The clock of clock_getcpuclockid(3). What /proc says is counted in ticks of 10 ms.
    return time.clock_gettime((~pid << 3) | 2)


def an_image(
    after: Mapping[str, float], before: Mapping[str, float], images: int, unit: float = 1.0
) -> dict[str, float]:
    """Return what was added to each count, an image and in units of ``unit``, and the sum."""
    each = {name: (after[name] - before[name]) / images / unit for name in after}
    return {**each, "all": sum(each.values())}
