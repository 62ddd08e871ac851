"""A Keras model, split into shares over the parties of a cluster and served by them.

No cryptography is needed here, and none is in sight::

    with fedsec.Cluster.local() as cluster:
        with fedsec.share("short-conv-mnist.keras", cluster) as shared:
            shared.serve(num_requests=3)
            print(fedsec.Client.connect(cluster).predict(image))
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from fedsec.errors import PeerLostError, ServiceEndedError, UsageError
from fedsec.lab.offer import Offer, noise_of, usual_reveal
from fedsec.lab.rundir import RunFolder
from fedsec.lab.sealed import load_sealed
from fedsec.nn import Plan, Reveal, Weights, load_weights
from fedsec.serving.messages import ID_BYTES, Mode, Status
from fedsec.serving.owner import Owner
from fedsec.serving.sealed import SealedModel
from fedsec.transport import ClusterFile, Identity, Meter

if TYPE_CHECKING:
    import keras

FRACTION_BITS = 16


class HasFile(Protocol):
    """Anything that knows its cluster file and its owner's identity, such as a ``fedsec.Cluster``."""

    @property
    def file(self) -> Path:
        """The cluster file."""
        ...

    def identity(self, name: str) -> Path:
        """Return the identity file of that name."""
        ...


class SharedModel:
    """A model of which each party holds shares; made by :func:`share`.

    The parameters stay in this process as well: the parties hold shares in memory only, so that their owner
    has to share anew when one of them was lost. Those of a sealed model are nowhere but at the parties, who
    keep its state on disk.

    Attributes:
        plan: The public plan: layers, shapes, proven ranges.
        offer: What ``serve`` has granted.
    """

    def __init__(self, owner: Owner, plan: Plan, cluster: ClusterFile, identity: Identity) -> None:
        self.plan = plan
        self._owner = owner
        self._cluster = cluster
        self._identity = identity
        self._model: bytes | None = None
        self._content: Weights | SealedModel = []
        self.offer = Offer()
        self._services: list[bytes] = []

    @property
    def meter(self) -> Meter:
        """Counts what the owner sent and received."""
        return self._owner.meter

    def hand_out(self, content: Weights | SealedModel, model_id: bytes | None = None) -> None:
        """Give each party its shares of the parameters, or name their sealed state; :func:`share` has."""
        if isinstance(content, SealedModel):
            self._model = self._owner.share_sealed(content, model_id=model_id)
        else:
            self._model = self._owner.share(self.plan, content, model_id=model_id)
        self._content = content

    def clear(self) -> None:
        """End whatever the owner serves with these parties, and let them drop its models."""
        self._owner.stop()
        for model in {model for status in self._owner.statuses() for model in status.models}:
            self._owner.forget(model)

    def serve(
        self,
        num_requests: int | None = None,
        *,
        quota: int | None = None,
        reveals: Reveal | Sequence[Reveal] | None = None,
        mode: Mode = "dealt",
        label_epsilon: float | None = None,
        identity_epsilon: float | None = None,
        total_epsilon: float | None = None,
    ) -> None:
        """Begin to answer private predictions; returns as soon as users can ask.

        Args:
            num_requests: Images to answer, after which the service ends by itself. A batch of three
                counts three. Without it the service goes on until ``stop``.
            quota: Images that one certificate may ask for; no limit by default.
            reveals: What users may ask for: ``logits``, ``probabilities``, ``label``, ``top3``, or several.
                Logits by default; labels if they are noisy, and then nothing else may be.
            mode: ``dealt``, with randomness prepared while the parties are idle, or ``plain``.
            label_epsilon: Answer labels by randomised response, each of differential privacy of at most
                this epsilon; up to 10. A model that was trained with differential privacy needs none.
            identity_epsilon: What all answers to one certificate may spend together; no limit by default.
            total_epsilon: What all answers may spend together; no limit by default.

        Raises:
            UsageError: It is served already, a number is below 1, a reveal or mode is none, or there is no
                such noise or limit.
            UnsupportedModelError: The model has no such answer, for example no classes.
            PeerLostError: A party was lost; the text names it.
        """
        noise = noise_of(label_epsilon, identity_epsilon, total_epsilon)
        offered = usual_reveal(noise) if reveals is None else reveals
        several = (offered,) if isinstance(offered, str) else tuple(offered)
        self.serve_offer(
            Offer(num_requests=num_requests, quota=quota, reveals=several, mode=mode, noise=noise)
        )

    def serve_offer(self, offer: Offer) -> None:
        """Begin to answer; as ``serve``, which makes an offer of its arguments."""
        self.offer = offer
        self._begin(answered=0)

    def _begin(self, answered: int) -> None:
        offer = self.offer
        service = os.urandom(ID_BYTES)
        # Before it is asked for: whatever comes back, the service may have begun and answered.
        self._services.append(service)
        self._owner.serve(
            offer.num_requests,
            service_id=service,
            quota=offer.quota,
            mode=offer.mode,
            reveals=offer.reveals,
            noise=offer.noise,
            answered=answered,
        )

    def resume(self) -> int | None:
        """Serve on after a party was lost and has come back.

        The parties get a fresh splitting of the model under its old id and link up with fresh keys; nothing
        of the lost session is used again. Quotas go on; ``num_requests`` counts what was answered before.

        Returns:
            How many images were answered before it went on; None if that was all, and it has ended.

        Raises:
            UsageError: It was not served before.
            PeerLostError: A party is still lost, or again; this may be called again.
        """
        if self._model is None or not self._services:
            raise UsageError("expected a model that was served before")
        self._owner.close()
        self._owner = Owner(self._cluster.computing, self._identity)
        self._owner.stop()
        self._owner.forget(self._model)
        answered = max(self._owner.answered(service) for service in self._services)
        if self.offer.num_requests is not None and answered >= self.offer.num_requests:
            return None
        self.hand_out(self._content, self._model)
        self._begin(answered)
        # Those before it are counted in it.
        del self._services[:-1]
        return answered

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait until the service has ended by itself.

        Args:
            timeout_s: How long; for ever by default.

        Returns:
            How many images were answered.

        Raises:
            DeadlineError: It still runs after ``timeout_s``.
            PeerLostError: A party was lost; the text names it.
        """
        return self.last_status(timeout_s).answered

    def last_status(self, timeout_s: float | None = None) -> Status:
        """Wait like ``wait``, and return how the service has ended."""
        return self._owner.wait(timeout_s)

    def stop(self) -> None:
        """End the service if it runs, let the parties drop their shares, and disconnect.

        May be called twice. A party that is gone is no error: parties hold shares in memory only.
        """
        self._owner.close()
        self._content = []
        model, self._model = self._model, None
        if model is None:
            return
        # Over new connections: a signal may have come while an answer was due on the old ones.
        with (
            contextlib.suppress(PeerLostError, ServiceEndedError),
            Owner(self._cluster.computing, self._identity) as owner,
        ):
            owner.stop()
            owner.forget(model)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def share(
    model: keras.Model | Path | str,
    cluster: HasFile | Path | str,
    identity: Path | str | None = None,
    *,
    replace: bool = False,
) -> SharedModel:
    """Split a trained model over the three computing parties of a running cluster.

    A run keeps the id of its model, so that its users' quotas go on when it is shared again.

    Args:
        model: A Keras Sequential model, a ``.keras`` or ``.h5`` file, or the folder of a run. A run is
            served from its plan, without loading TensorFlow. Of a run with ``reveal_to = "nobody"`` the
            parties take the model out of their own sealed states, so they must be those of the training.
        cluster: A running ``fedsec.Cluster``, or a cluster file whose parties run elsewhere.
        identity: The owner's identity; a ``fedsec.Cluster`` that made its own keys knows it.
        replace: End first whatever the owner serves with these parties, and let them drop its models: what
            an owner's process that has died left behind.

    Returns:
        The shared model, not served yet.

    Raises:
        UnsupportedModelError: A layer or a range cannot be served; the text names it and what to do.
        UsageError: A file is missing, nobody said who the owner is, or the parties hold this run's model.
        TrustError, PeerLostError: A party is not the pinned one, or cannot be reached.
    """
    plan, content = _content_of(model)
    file, own = _cluster(cluster, identity)
    shared = SharedModel(Owner(file.computing, own), plan, file, own)
    try:
        if replace:
            shared.clear()
        shared.hand_out(content, _model_id(model))
    except BaseException:
        shared.stop()
        raise
    return shared


def _model_id(model: object) -> bytes | None:
    """Return a run's own id for its model; other models get a fresh one each time."""
    if isinstance(model, Path | str) and Path(model).is_dir():
        return RunFolder.open(model).model_id()
    return None


def _content_of(model: keras.Model | Path | str) -> tuple[Plan, Weights | SealedModel]:
    """Return the plan of a model with its parameters, or with where they lie if nobody has them."""
    if isinstance(model, Path | str) and Path(model).is_dir():
        folder = RunFolder.open(model)
        if folder.sealed.is_file():
            sealed = load_sealed(folder)
            return sealed.plan, sealed
    return plan_of(model)


def plan_of(model: keras.Model | Path | str) -> tuple[Plan, Weights]:
    """Return the plan of a model and its parameters in the plan's order.

    Args:
        model: As for :func:`share`.

    Raises:
        UnsupportedModelError: A layer or a range cannot be served.
        UsageError: A file is missing or is no model, or it is the run of a model that nobody has,
            or a study.
    """
    if isinstance(model, Path | str) and Path(model).is_dir():
        folder = RunFolder.open(model)
        if folder.sealed.is_file():
            raise UsageError(
                f'{model} is a run with reveal_to = "nobody": its parameters are only at the parties'
            )
        if not folder.plan.is_file():
            folder.refuse_a_study()
            raise UsageError(f"{model} has no {folder.plan.name}: its training did not finish")
        plan = Plan.load(folder.plan)
        return plan, load_weights(folder.weights, plan)
    # Only Keras models need TensorFlow: a run is served without loading it.
    from fedsec.learning.export import export  # noqa: PLC0415 - as said above
    from fedsec.learning.saved import load_keras  # noqa: PLC0415 - as said above

    return export(load_keras(model) if isinstance(model, Path | str) else model, FRACTION_BITS)


def _cluster(cluster: HasFile | Path | str, identity: Path | str | None) -> tuple[ClusterFile, Identity]:
    if isinstance(cluster, Path | str):
        if identity is None:
            raise UsageError("a cluster file does not say who the owner is: give the owner's identity too")
        return ClusterFile.load(Path(cluster)), Identity.load(Path(identity))
    return ClusterFile.load(cluster.file), Identity.load(Path(identity or cluster.identity("owner")))
