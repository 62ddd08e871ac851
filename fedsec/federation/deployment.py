"""Where the aggregators are and who the Flower server is, from what a user hands to the strategy."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from fedsec.cluster.keys import SERVER
from fedsec.errors import UsageError
from fedsec.transport import ClusterFile, Identity


class RunningCluster(Protocol):
    """Anything that knows its cluster file and who works with it, such as a started ``fedsec.Cluster``."""

    @property
    def file(self) -> Path:
        """Path of the cluster file."""
        ...

    def identity(self, name: str) -> Path:
        """Return the identity file of that name."""
        ...


Aggregators = ClusterFile | Path | str | RunningCluster
"""A running cluster, the path of a cluster file, or a loaded one."""


def cluster_file(aggregators: Aggregators) -> ClusterFile:
    """Return the loaded cluster file.

    Raises:
        UsageError: It cannot be read, or the cluster is not started.
    """
    if isinstance(aggregators, ClusterFile):
        return aggregators
    path = aggregators if isinstance(aggregators, str | Path) else aggregators.file
    return ClusterFile.load(Path(path))


def server_identity(given: Identity | Path | str | None, aggregators: Aggregators) -> Identity:
    """Return the server's identity: the given one, or the one that lies with the cluster.

    Raises:
        UsageError: There is none; the text says where it is looked for.
    """
    if isinstance(given, Identity):
        return given
    if given is not None:
        return Identity.load(Path(given))
    if isinstance(aggregators, ClusterFile):
        raise UsageError("expected identity=..., the server's PEM file: a loaded cluster file has no folder")
    if not isinstance(aggregators, str | Path):
        return Identity.load(aggregators.identity(SERVER))
    folder = Path(aggregators).parent
    places = [folder / f"{SERVER}.pem", folder / "keys" / f"{SERVER}.pem"]
    for path in places:
        if path.is_file():
            return Identity.load(path)
    raise UsageError(f"no identity of the Flower server: expected identity=..., {places[0]} or {places[1]}")
