"""Serve a model from the command line: with parties started here, or with standing ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fedsec.cluster.cluster import Cluster
from fedsec.errors import PeerLostError
from fedsec.lab.experiment import local_cluster
from fedsec.lab.rundir import RunFolder
from fedsec.lab.share import SharedModel, plan_of, share
from fedsec.nn import save_weights
from fedsec.scenario import Scenario

Say = Callable[[str], None]


def serve_here(
    model: Path, num_requests: int | None, *, runs: Path, ports: Sequence[int] | None = None, say: Say
) -> int:
    """Start parties on this machine, serve a model, and stop them when it is done.

    A run's parties get the keys they had in training. A Keras file gets a run folder of its own.

    Args:
        model: The folder of a run, or a ``.keras`` or ``.h5`` file.
        num_requests: Images to answer; without it until a signal.
        runs: Where the folder for a Keras file goes.
        ports: One port for each party; free ones by default.
        say: Hears where to ask.

    Returns:
        How many images were answered.

    Raises:
        UsageError: There is no such model, or a port is taken.
        UnsupportedModelError: The model cannot be served; nothing was started.
        PeerLostError: A party died; the text names it.
    """
    folder = RunFolder.open(model) if model.is_dir() else _folder_of_keras(model, runs)
    cluster = _cluster_of(folder, ports)
    with cluster, share(folder.path, cluster) as shared:
        for party in cluster.endpoints:
            say(f"{party.name} listens at {party.address}")
        try:
            return _serve(shared, num_requests, f"fedsec predict {folder.path}", say)
        except PeerLostError:
            # If it is one of ours that died, the end of its log says more.
            cluster.watch()
            raise


def serve_at(model: Path, cluster: Path, identity: Path, num_requests: int | None, *, say: Say) -> int:
    """Serve a model with parties that already run, on whatever hosts; they go on afterwards.

    Args:
        model: The folder of a run, or a ``.keras`` or ``.h5`` file.
        cluster: The cluster file.
        identity: The owner's identity.
        num_requests: Images to answer; without it until a signal.
        say: Hears where to ask.

    Returns:
        How many images were answered.

    Raises:
        TrustError, PeerLostError: A party is not the pinned one, or cannot be reached.
    """
    with share(model, cluster, identity) as shared:
        return _serve(shared, num_requests, f"fedsec predict --cluster {cluster} --identity USER.pem", say)


def _serve(shared: SharedModel, num_requests: int | None, ask: str, say: Say) -> int:
    shared.serve(num_requests)
    say(f"serving {'until Ctrl-C' if num_requests is None else f'{num_requests} image(s)'}; to ask:")
    say(f"  {ask} --test-index 0 1 2")
    return shared.wait()


def _folder_of_keras(model: Path, runs: Path) -> RunFolder:
    """Make a folder with the plan and parameters of a Keras file, to be served like a run."""
    plan, parameters = plan_of(model)
    folder = RunFolder.create(runs, "serve")
    plan.save(folder.plan)
    save_weights(folder.weights, parameters)
    return folder


def _cluster_of(folder: RunFolder, ports: Sequence[int] | None) -> Cluster:
    if folder.scenario.is_file():
        return local_cluster(folder, Scenario.load(folder.scenario), ports)
    return Cluster.local(folder.path, ports=ports)
