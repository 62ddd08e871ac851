"""The main of a party process: one port, one identity, one folder of state, clean ends.

A party aggregates hospitals' updates and, if it is one of the first three of its cluster, computes
predictions. It loads neither TensorFlow nor Flower, and never reads a model file.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from fedsec.aggregation.service import AggregatorService
from fedsec.errors import TrustError, UsageError
from fedsec.party.state import claim_state
from fedsec.party.throttle import Throttle
from fedsec.serving.parts import PARTIES
from fedsec.serving.prediction import PredictionService
from fedsec.transport import ClusterFile, Identity, Meter, PartyConfig, Role, meter_route
from fedsec.transport.server import Server
from fedsec.transport.service import Route

logger = logging.getLogger(__name__)

Service = AggregatorService | PredictionService

_OPEN_FILES = 8192
"""A connection takes up to two descriptors, a part on disk one: several times the server's own limits."""


def run(config: PartyConfig, listen_fd: int | None = None, watch_stdin: bool = False) -> int:
    """Be a party until SIGTERM, SIGINT, or the launcher is gone; the process is to exit afterwards.

    Prints one JSON line ``{"ready": <port>, "name": <name>}`` on standard output when it accepts
    connections; logs go to standard error.

    Args:
        config: the party's settings.
        listen_fd: descriptor of a bound and listening socket, from a launcher; otherwise the party
            listens at ``config.host`` and ``config.port``.
        watch_stdin: end when standard input closes.

    Returns:
        Exit code 0 after a clean end.

    Raises:
        UsageError: a file is missing, or the cluster file does not name this party.
        TrustError: identity and cluster file do not fit together.
        StateError: the state folder is damaged, readable for others, or used by another process.
    """
    _keep_secrets_in_memory()
    _do_without_scipy()
    _log_to_stderr(config)
    _allow_connections()
    identity, cluster = Identity.load(config.identity), ClusterFile.load(config.cluster)
    check_place(config.name, identity, cluster)
    bell = _bell_on_signals()
    with ExitStack() as stack:
        claim_state(config.state, stack)
        meter = Meter()
        services = services_of(config, identity, cluster, meter)
        server = Server(
            _listener(config, listen_fd),
            identity,
            routes_of(services, meter),
            meter=meter,
            admit=cluster.admit,
            insecure_plaintext=cluster.insecure_plaintext,
        )
        # Left in reverse order: the services end while their links, which the server knows, still work.
        stack.callback(server.stop)
        for service in services:
            stack.callback(service.stop)
        for service in services:
            if isinstance(service, AggregatorService):
                service.start()
        server.start()
        _say_ready(server.port, config.name)
        _wait_for_end(bell, watch_stdin)
        logger.info("%s ends", config.name)
    # Python takes its handlers away while it exits: a second signal would then look like a crash.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return 0


def check_place(name: str, identity: Identity, cluster: ClusterFile) -> None:
    """Check that this identity is the party that the cluster file expects under this name.

    Raises:
        UsageError: the cluster file does not name the party.
        TrustError: the identity has another role, name or key than expected.
    """
    pinned = cluster.party(name)
    if (identity.role, identity.name) != (Role.PARTY, name):
        raise TrustError(f"expected the identity of party {name}, got {identity.role} {identity.name}")
    if identity.public_key != pinned.public_key:
        raise TrustError(
            f"the cluster file pins another key for {name} than its identity has: nobody would talk to it; "
            "take the cluster file that was made with this identity"
        )


def services_of(config: PartyConfig, identity: Identity, cluster: ClusterFile, meter: Meter) -> list[Service]:
    """Return what this party does; nothing runs yet.

    Raises:
        StateError: the state folder is damaged.
    """
    both = (_aggregator(config, identity, cluster, meter), _prediction(config, identity, cluster, meter))
    return [service for service in both if service is not None]


def routes_of(services: Sequence[Service], meter: Meter) -> list[Route]:
    """Return every request that a party answers at its one port, and for whom."""
    return [meter_route(meter), *(route for service in services for route in service.routes())]


def _aggregator(
    config: PartyConfig, identity: Identity, cluster: ClusterFile, meter: Meter
) -> AggregatorService | None:
    """Return the aggregation service; without a Flower server in the cluster file there is none."""
    if cluster.server is None:
        return None
    return AggregatorService(
        identity,
        cluster,
        config.state,
        minimum_cohort=config.minimum_cohort,
        reveal_to=config.reveal_to,
        meter=meter,
    )


def _prediction(
    config: PartyConfig, identity: Identity, cluster: ClusterFile, meter: Meter
) -> PredictionService | None:
    """Return the prediction service of one of the first three parties; further ones only aggregate."""
    computing = cluster.parties[:PARTIES]
    if len(computing) < PARTIES or config.name not in {party.name for party in computing}:
        return None
    return PredictionService(identity, computing, config.state, meter=meter)


def _keep_secrets_in_memory() -> None:
    """Let no crash write shares and keys into a core file."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def _do_without_scipy() -> None:
    """Let numba not find scipy, if it is installed: numba's first kernel would import it for its BLAS.

    No kernel of ours calls that; it would cost each party 0.2 s of its start and 17 MB.
    """
    if "scipy" not in sys.modules:
        sys.modules["scipy"] = None  # type: ignore[assignment]  # as the import system documents it


def _allow_connections() -> None:
    """Raise the soft limit of open files, often 1024: the server's limit of connections is to decide."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _OPEN_FILES and soft != resource.RLIM_INFINITY:
        most = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _log_to_stderr(config: PartyConfig) -> None:
    """Send this process' log to standard error, one line an event."""
    logging.basicConfig(
        stream=sys.stderr,
        level=config.log_level.upper(),
        format=f"%(asctime)s {config.name} %(levelname)s %(name)s: %(message)s",
    )
    # The server's lines are caused by peers, each refused request by one.
    logging.getLogger(Server.__module__).addFilter(Throttle())


def _bell_on_signals() -> int:
    """Return a descriptor that becomes readable when SIGTERM or SIGINT comes.

    The kernel may hand a signal to any thread, for example right after SIGCONT, and Python's own handlers
    run when the main thread next does something: one that sleeps on a lock would never notice.
    """
    bell, striker = os.pipe()
    os.set_blocking(striker, False)
    signal.set_wakeup_fd(striker, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    return bell


def _wait_for_end(bell: int, watch_stdin: bool) -> None:
    """Return when a signal has come, or standard input closes because the launcher has died."""
    watched = [bell, 0] if watch_stdin else [bell]
    while True:
        ready, _, _ = select.select(watched, [], [])
        # What a launcher writes to standard input means nothing; only its end does.
        if bell in ready or not os.read(0, 4096):
            return


def _listener(config: PartyConfig, listen_fd: int | None) -> socket.socket:
    """Return a listening socket: the launcher's, or one at the configured address."""
    try:
        if listen_fd is not None:
            return socket.socket(fileno=listen_fd)
        return socket.create_server((config.host, config.port), backlog=1024)
    except OSError as error:
        where = f"descriptor {listen_fd}" if listen_fd is not None else f"{config.host}:{config.port}"
        raise UsageError(f"{config.name} cannot listen at {where}: {error.strerror}") from error


def _say_ready(port: int, name: str) -> None:
    """Tell whoever started this process that it accepts connections."""
    sys.stdout.write(json.dumps({"ready": port, "name": name}) + "\n")
    sys.stdout.flush()
    logger.info("%s accepts connections on port %d", name, port)
