"""A cluster of parties: started here, or named where they run; watched and stopped."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from fedsec.aggregation.trust import TrustLimits
from fedsec.cluster.addresses import listen, wait_for_port
from fedsec.cluster.keys import OWNER, LocalKeys, identity_path, make_local_keys, numbered, write_trust_files
from fedsec.cluster.process import PartyProcess
from fedsec.errors import FedsecError, UsageError
from fedsec.transport import (
    ClusterFile,
    Deadline,
    Endpoint,
    Identity,
    MeterReading,
    PartyConfig,
    connect,
    read_meter,
)
from fedsec.transport.cluster_file import is_loopback
from fedsec.transport.party_config import STATE_LOCK

READY_S = 20.0
"""Seconds until every party must accept connections; one takes about 0.5 s on an idle machine."""
STOP_S = 8.0
"""Seconds between SIGTERM and SIGKILL: a party first answers what it has accepted, for up to 3 s."""
ALIVE_S = 3.0
"""Seconds in which a party that is well completes a handshake."""
LOCALHOST = "127.0.0.1"
PARTY_COMMAND = (sys.executable, "-m", "fedsec", "party")
Address = tuple[str, str, int]
"""Name, host and port of a party; port 0 takes a free one."""


class Cluster:
    """The parties of one deployment, with the folder that holds what they need.

    ::

        with Cluster.local() as cluster:
            ...                                         # three parties run on this machine

        Cluster([("alice", "127.0.0.1", 4000), ("bob", "10.0.0.2", 4000), ("carol", "10.0.0.3", 4000)],
                folder="consortium")                    # alice is started here, the others elsewhere

    ``start`` makes the keys that are missing and the cluster file, starts every party whose host is this
    machine's loopback, and waits until all parties accept connections. Parties at other hosts are started
    there with ``fedsec party``.

    Args:
        parties: Name, host and port of 2 to 7 parties, in order; the first three compute predictions.
        folder: Keeps keys, files, state and logs; without it a temporary one, removed by ``stop``.
        hospitals: How many hospitals get keys and trust files.
        minimum_cohort: Fewest hospitals in a sum, enforced by each party and each hospital.
        limits: What hospitals admit otherwise; by default what is usual for this cluster.
        command: How a party is started; for tests.
        insecure_plaintext: For measuring what TLS costs: all parties are on this machine, and after the
            handshake shares go in the clear. Every connection says so.
    """

    def __init__(
        self,
        parties: Sequence[Address],
        folder: Path | str | None = None,
        *,
        hospitals: int = 0,
        minimum_cohort: int = 3,
        limits: TrustLimits | None = None,
        command: Sequence[str] = PARTY_COMMAND,
        insecure_plaintext: bool = False,
    ) -> None:
        self._parties = tuple(parties)
        self._folder = None if folder is None else Path(folder).resolve()
        self._temporary = folder is None
        self._hospitals = hospitals
        self._minimum_cohort = minimum_cohort
        self._limits = limits
        self._command = tuple(command)
        self._insecure_plaintext = insecure_plaintext
        self._file: Path | None = None
        self._keys: LocalKeys | None = None
        self._processes: dict[str, PartyProcess] = {}

    @classmethod
    def local(
        cls,
        folder: Path | str | None = None,
        parties: int = 3,
        hospitals: int = 0,
        ports: Sequence[int] | None = None,
        *,
        minimum_cohort: int = 3,
        limits: TrustLimits | None = None,
        command: Sequence[str] = PARTY_COMMAND,
        insecure_plaintext: bool = False,
    ) -> Self:
        """Return a cluster whose parties all run on this machine; see the class for the arguments.

        Args:
            folder: Keeps keys, files, state and logs; without it a temporary one, removed by ``stop``.
            parties: How many parties.
            hospitals: How many hospitals get keys and trust files.
            ports: One port a party; free ones by default.
            minimum_cohort: Fewest hospitals in a sum.
            limits: What hospitals admit otherwise.
            command: How a party is started; for tests.
            insecure_plaintext: For measuring what TLS costs; see the class.

        Raises:
            UsageError: The number of ports is not that of parties.
        """
        names = numbered("party", parties)
        if ports is not None and len(ports) != parties:
            raise UsageError(f"expected {parties} ports, one a party, got {len(ports)}")
        addresses = [
            (name, LOCALHOST, port) for name, port in zip(names, ports or [0] * parties, strict=True)
        ]
        return cls(
            addresses,
            folder,
            hospitals=hospitals,
            minimum_cohort=minimum_cohort,
            limits=limits,
            command=command,
            insecure_plaintext=insecure_plaintext,
        )

    @classmethod
    def from_file(cls, path: Path | str) -> Self:
        """Return the cluster of a cluster file, whose parties run already; ``start`` only looks for them.

        Identities are looked for in ``keys/`` beside the file.
        """
        path = Path(path).resolve()
        cluster = cls([], path.parent)
        cluster._file = path
        return cluster

    @property
    def folder(self) -> Path:
        """The folder with keys, files, state and logs.

        Raises:
            UsageError: It is a temporary one, and the cluster is not started.
        """
        if self._folder is None:
            raise UsageError(
                "expected a started cluster: without a folder of its own it has none before start()"
            )
        return self._folder

    @property
    def file(self) -> Path:
        """The cluster file; written by ``start``."""
        return self._file or self.folder / "cluster.toml"

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The parties as in the cluster file."""
        return ClusterFile.load(self.file).parties

    @property
    def keys(self) -> LocalKeys:
        """Keys, hospital names and trust files.

        Raises:
            UsageError: The cluster was not started by us, or not yet.
        """
        if self._keys is None:
            raise UsageError("expected a cluster that start() has made keys for")
        return self._keys

    def identity(self, name: str) -> Path:
        """Return the identity file of that name: a party, a hospital, ``server``, ``owner`` or ``user``.

        Raises:
            UsageError: There is none; the text names those that are there.
        """
        return identity_path(self.folder / "keys", name)

    def trust_file(self, hospital: str) -> Path:
        """Return the trust file of a hospital."""
        return self.keys.trust_file(hospital)

    def start(self) -> Self:
        """Start the local parties and wait until all accept connections.

        Raises:
            UsageError: The cluster runs already, a port is taken, or files do not fit.
            PeerLostError: A party ended, or one elsewhere cannot be reached; the text names it.
            DeadlineError: A party did not get ready within 20 s.
                After any error nothing runs any more.
        """
        if self._processes:
            raise UsageError("expected a cluster that does not run; it was started already")
        atexit.register(self.stop)
        try:
            if self._file is None:
                self._launch()
            deadline = Deadline.after(READY_S)
            for process in self._processes.values():
                process.wait_ready(deadline)
            self._reach_others(deadline)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> dict[str, int]:
        """End the local parties: SIGTERM, 8 seconds, SIGKILL; a temporary folder is removed.

        May be called at any time and again.

        Returns:
            The exit code of each party that was started, negative for a signal.
        """
        atexit.unregister(self.stop)
        processes, self._processes = self._processes, {}
        for process in processes.values():
            process.ask_to_end()
        patience = time.monotonic() + STOP_S
        codes = {name: process.end(patience - time.monotonic()) for name, process in processes.items()}
        if self._temporary and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = self._keys = None
        return {name: code for name, code in codes.items() if code is not None}

    def watch(self) -> None:
        """Look whether every local party still runs.

        Raises:
            PeerLostError: One ended; the text names it, with the end of its log.
        """
        for process in self._processes.values():
            process.check()

    def revive(self) -> list[str]:
        """Start every local party again that has ended, or that does not answer, at its old address.

        One that does not answer is killed first; a party keeps its durable state and loses what it held in
        memory: shares of models, and its sessions.

        Returns:
            The names of those that were started.

        Raises:
            PeerLostError: One ended again at once; the text names it, with the end of its log.
            DeadlineError: One did not get ready within 20 s.
            UsageError: Another process has taken its port.
        """
        lost = [endpoint for endpoint in self.endpoints if self._is_lost(endpoint)]
        for endpoint in lost:
            self._processes[endpoint.name].end(0.0)
            self._start(endpoint.name, listen(endpoint.name, endpoint.host, endpoint.port))
        deadline = Deadline.after(READY_S)
        for endpoint in lost:
            self._processes[endpoint.name].wait_ready(deadline)
        return [endpoint.name for endpoint in lost]

    def _is_lost(self, endpoint: Endpoint) -> bool:
        """Say whether a party that was started here has ended, or completes no handshake."""
        process = self._processes.get(endpoint.name)
        if process is None or process.exit_code() is not None:
            return process is not None
        try:
            connect(endpoint, Identity.load(self.identity(OWNER)), deadline=Deadline.after(ALIVE_S)).close()
        except FedsecError:
            return True
        return False

    def pids(self) -> dict[str, int]:
        """Return the process id of each local party that was started."""
        return {name: process.pid for name, process in self._processes.items() if process.pid is not None}

    def meters(self, timeout_s: float = 10.0) -> dict[str, MeterReading]:
        """Ask every party what has passed its channels, as the owner of the models.

        Raises:
            PeerLostError: A party does not answer; the text names it.
        """
        owner = Identity.load(self.identity(OWNER))
        deadline = Deadline.after(timeout_s)
        readings = {}
        for endpoint in self.endpoints:
            with connect(endpoint, owner, deadline=deadline) as channel:
                readings[endpoint.name] = read_meter(channel, deadline)
        return readings

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _launch(self) -> None:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="fedsec-")).resolve()
        self._refuse_running()
        names = [name for name, _host, _port in self._parties]
        self._keys = make_local_keys(self._folder / "keys", names, self._hospitals)
        with contextlib.ExitStack() as sockets:
            listeners = {
                name: sockets.enter_context(listen(name, host, port))
                for name, host, port in self._parties
                if is_loopback(host)
            }
            self._write_files(listeners)
            for name, listener in listeners.items():
                self._start(name, listener)

    def _refuse_running(self) -> None:
        """Raise before the cluster file is written: users find the parties that run already by it."""
        for name, _host, _port in self._parties:
            with contextlib.suppress(FileNotFoundError), self._lock_path(name).open("rb") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise UsageError(
                        f"the parties of {self.folder} run already: `fedsec status {self.folder}` tells how"
                        " they are; stop them before they are started again"
                    ) from None

    def _start(self, name: str, listener: socket.socket) -> None:
        process = self._processes[name] = PartyProcess(name, self.folder / "logs" / f"{name}.log")
        process.start([*self._command, "--config", str(self._config_path(name))], listener)

    def _write_files(self, listeners: dict[str, socket.socket]) -> None:
        addresses = {
            name: (host, listeners[name].getsockname()[1] if name in listeners else port)
            for name, host, port in self._parties
        }
        cluster = self.keys.cluster_file(addresses, insecure_plaintext=self._insecure_plaintext)
        cluster.save(self.file)
        limits = self._limits or TrustLimits(
            fewest_aggregators=len(self._parties), minimum_cohort=self._minimum_cohort
        )
        write_trust_files(self.keys, cluster, limits)
        for name, (host, port) in addresses.items():
            path = self._config_path(name)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            PartyConfig(
                name=name,
                identity=self.identity(name),
                cluster=self.file,
                state=path.parent / "state",
                host=host,
                port=port,
                minimum_cohort=self._minimum_cohort,
                reveal_to=limits.reveal_to if self._limits else PartyConfig.reveal_to,
            ).save(path)

    def _config_path(self, name: str) -> Path:
        return self.folder / "parties" / name / "party.toml"

    def _lock_path(self, name: str) -> Path:
        return self._config_path(name).parent / "state" / STATE_LOCK

    def _reach_others(self, deadline: Deadline) -> None:
        others = [endpoint for endpoint in self.endpoints if endpoint.name not in self._processes]
        for endpoint in others:
            # That someone listens is enough here: every connection that follows pins name, role and key.
            wait_for_port(endpoint, deadline)
