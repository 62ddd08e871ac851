"""Serve a model from the command line: with parties started here, or with standing ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsec.cluster.cluster import Cluster
from fedsec.lab.experiment import local_cluster
from fedsec.lab.images import SIDE
from fedsec.lab.keeping import Say, keep
from fedsec.lab.offer import Offer
from fedsec.lab.rundir import RunFolder
from fedsec.lab.share import SharedModel, plan_of, share
from fedsec.mpc.randomised_response import ResponseLaw
from fedsec.nn import Plan, Reveal, save_weights
from fedsec.scenario import Scenario
from fedsec.serving.messages import LabelNoise


def serve_here(model: Path, offer: Offer, *, runs: Path, ports: Sequence[int] | None = None, say: Say) -> int:
    """Start parties on this machine, serve a model, and stop them when it is done.

    A run's parties get the keys they had in training. A Keras file gets a run folder of its own. A party that
    dies is started again, and the service goes on.

    Args:
        model: The folder of a run, or a ``.keras`` or ``.h5`` file.
        offer: What users are granted; without a number of images the service goes on until a signal.
        runs: Where the folder for a Keras file goes.
        ports: One port for each party; free ones by default.
        say: Hears where to ask.

    Returns:
        How many images were answered.

    Raises:
        UsageError: There is no such model, or a port is taken.
        UnsupportedModelError: The model cannot be served; nothing was started.
        PeerLostError: A party dies again and again; the text names it.
    """
    folder = RunFolder.open(model) if model.is_dir() else _folder_of_keras(model, runs)
    cluster = _cluster_of(folder, ports)
    with cluster, share(folder.path, cluster) as shared:
        for party in cluster.endpoints:
            say(f"{party.name} listens at {party.address}")
        asking = _Asking(f"fedsec predict {folder.path}", *folder.credentials("user"))
        return _serve(shared, offer, asking, say, cluster)


def serve_at(
    model: Path, cluster: Path, identity: Path, offer: Offer, *, replace: bool = False, say: Say
) -> int:
    """Serve a model with parties that already run, on whatever hosts; they go on afterwards.

    A party that is lost is waited for, and the service goes on when it is back.

    Args:
        model: The folder of a run, or a ``.keras`` or ``.h5`` file.
        cluster: The cluster file.
        identity: The owner's identity.
        offer: What users are granted; without a number of images the service goes on until a signal.
        replace: End first whatever the owner serves there.
        say: Hears where to ask.

    Returns:
        How many images were answered.

    Raises:
        TrustError, PeerLostError: A party is not the pinned one, or cannot be reached.
    """
    with share(model, cluster, identity, replace=replace) as shared:
        user = Path("USER.pem")
        asking = _Asking(f"fedsec predict --cluster {cluster} --identity {user}", cluster, user)
        return _serve(shared, offer, asking, say)


@dataclass(frozen=True, slots=True)
class _Asking:
    """How a user asks.

    Attributes:
        command: The command without what it asks about.
        cluster: The cluster file.
        user: The user's identity.
    """

    command: str
    cluster: Path
    user: Path

    def example(self, shape: tuple[int, ...], reveal: Reveal) -> str:
        """Return a command that asks, or a call in Python if the command cannot read such images."""
        logits = reveal == "logits"
        if shape == (SIDE, SIDE, 1):
            return f"{self.command} --test-index 0 1 2" + ("" if logits else f" --reveal {reveal}")
        credentials = f'"{self.cluster}", "{self.user}"'
        wanted = "images" if logits else f'images, "{reveal}"'
        return f"in Python: fedsec.Client.connect({credentials}).predict({wanted})"


def _serve(
    shared: SharedModel, offer: Offer, asking: _Asking, say: Say, cluster: Cluster | None = None
) -> int:
    shared.serve_offer(offer)
    for line in _about_noise(offer.noise, shared.plan):
        say(line)
    end = "until Ctrl-C" if offer.num_requests is None else f"{offer.num_requests} image(s)"
    say(f"serving {end}, revealing {' or '.join(offer.reveals)}; to ask:")
    reveal = "logits" if "logits" in offer.reveals else offer.reveals[0]
    say(f"  {asking.example(shared.plan.input_shape, reveal)}")
    return keep(shared, say, cluster)


def _about_noise(noise: LabelNoise | None, plan: Plan) -> list[str]:
    """Say what noisy answers cost, what may be spent, and what that does and does not protect."""
    if noise is None:
        return []
    law = ResponseLaw.of(plan.output_shape[-1], noise.epsilon)
    limits = {"a certificate": noise.identity_epsilon, "all users together": noise.total_epsilon}
    told = [
        f"{whose} {'without limit' if limit is None else f'{limit:g}'}" for whose, limit in limits.items()
    ]
    return [
        f"labels are noisy: epsilon {law.epsilon:g} an image; {law.truth:.1%} are the model's own",
        f"  answers add up; may spend: {', '.join(told)}",
        "  a run's folder keeps its sums; a .keras file begins at zero whenever it is served",
        "  hides the model and its training data from who asks, and nothing else",
        "  a model trained with differential privacy needs no such noise",
    ]


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
