"""The user's end: an image goes out in shares, the answer comes back in shares.

The client speaks to each party itself, over a connection of its own, under its own certificate:
no other process ever holds what two parties get.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from fedsec.errors import InputError, ProtocolError, UsageError
from fedsec.nn import Plan, decode_output, encode_input
from fedsec.ring import RingArray
from fedsec.serving import parts
from fedsec.serving.asking import Ask, ask_each, connect_all
from fedsec.serving.limits import most_images
from fedsec.serving.messages import ID_BYTES, Answer, Describe, Description, Query
from fedsec.serving.weights import plan_from_wire
from fedsec.transport import ClusterFile, Deadline, Identity, Meter, SocketChannel

CONNECT_S = 15.0
ANSWER_S = 60.0
"""Longest wait for one answer; the parties give up well before and say why."""

Images = npt.NDArray[np.floating]
Logits = npt.NDArray[np.float64]


class HasFile(Protocol):
    """Anything that knows where its cluster file is, such as a started cluster."""

    @property
    def file(self) -> Path:
        """Path of the cluster file."""
        ...


class Client:
    """A connection to the three parties that serve one model; made by :meth:`connect`.

    Attributes:
        plan: the public plan of the served model.
        meter: counts the bytes of this client's three connections.
    """

    def __init__(self, channels: Sequence[SocketChannel], service: bytes, plan: Plan, meter: Meter) -> None:
        self.plan = plan
        self.meter = meter
        self._channels = tuple(channels)
        self._service = service

    @classmethod
    def connect(
        cls,
        cluster: ClusterFile | HasFile | str | os.PathLike[str],
        identity: Identity | str | os.PathLike[str] | None = None,
        *,
        timeout_s: float = CONNECT_S,
    ) -> Client:
        """Connect to all three parties and check that they describe the same model.

        Args:
            cluster: the cluster file, its path, or a running cluster.
            identity: the user's identity or its path; may be left out only for a cluster that keeps
                its user's identity itself (``fedsec.Cluster.local()``).
            timeout_s: for connecting to all three.

        Raises:
            TrustError: a party is not the pinned one, or refuses this certificate.
            PeerLostError: a party cannot be reached; the text names it.
            ServiceEndedError: no model is served (any more).
            ProtocolError: the parties describe different models.
        """
        file = _cluster_file(cluster)
        own = _identity(cluster, identity)
        deadline, meter = Deadline.after(timeout_s), Meter()
        channels = connect_all(file.computing, own, deadline, meter)
        try:
            asks = [Ask(Describe())] * len(channels)
            told = [reply for reply, _ in ask_each(channels, asks, Description, deadline)]
            plan = _agreed_plan(told, [channel.peer.name for channel in channels])
        except BaseException:
            _close(channels)
            raise
        return cls(channels, told[0].service, plan, meter)

    def predict(
        self, images: npt.ArrayLike, reveal: str = "logits", *, timeout_s: float = ANSWER_S
    ) -> Logits:
        """Ask for a private prediction.

        Each image counts as one request. More than 128 images, or fewer of a model with large layers, go
        out as several requests, one after the other; if a later one fails, the earlier ones are charged.

        Args:
            images: one image, or a batch of them, floats in the range of the plan; a last dimension
                of 1 may be left out.
            reveal: ``"logits"``. ``"label"`` needs the largest logit found inside the protocol, which the
                parties cannot do yet.
            timeout_s: longest wait for one answer of up to 128 images.

        Returns:
            Logits, float64, shape [N, classes] (N = 1 for a single image).

        Raises:
            InputError: shape, dtype or values do not fit; nothing was sent.
            UsageError: ``reveal`` is not possible; nothing was sent.
            ServiceEndedError: the service has answered its number or was stopped.
            PeerLostError, DeadlineError: a party was lost; the text names it. Connect again afterwards.
        """
        if reveal != "logits":
            raise UsageError(
                f"reveal={reveal!r} is not possible: the parties can only open all logits so far. The label "
                "alone needs the argmax inside the protocol; taking it from opened logits would only look "
                "private"
            )
        words = encode_input(self.plan, as_batch(images, self.plan))
        most = most_images(self.plan)
        batches = [words[start : start + most] for start in range(0, len(words), most)]
        return np.concatenate([self._ask(batch, timeout_s) for batch in batches])

    def _ask(self, words: RingArray, timeout_s: float) -> Logits:
        """Send one request of up to 128 encoded images and join the three shares of its answer."""
        query = Query(service=self._service, request=os.urandom(ID_BYTES), images=len(words))
        total = np.zeros((len(words), *self.plan.output_shape), dtype=words.dtype)
        asks = [Ask(query, body, total.nbytes) for body in parts.split(words.reshape(-1))]
        replies = ask_each(self._channels, asks, Answer, Deadline.after(timeout_s))
        expected = Answer(
            request=query.request, images=len(words), fraction_bits=self.plan.output_fraction_bits
        )
        for channel, (answer, body) in zip(self._channels, replies, strict=True):
            if answer != expected or len(body) != total.nbytes:
                raise ProtocolError(
                    f"{channel.peer.name} answered another request, size or encoding than was asked: "
                    "the answer is thrown away"
                )
            total += np.frombuffer(body, dtype=total.dtype).reshape(total.shape)
        return decode_output(self.plan, total)

    def close(self) -> None:
        """Close the three connections. May be called twice."""
        _close(self._channels)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def as_batch(images: npt.ArrayLike, plan: Plan) -> Images:
    """Return one image or many as [N, *input_shape].

    Raises:
        InputError: shape or dtype do not fit, or a value is NaN or infinite. The range is checked where
            the images are encoded.
    """
    array = np.asarray(images)
    if array.dtype.kind != "f":
        raise InputError(
            f"expected images of a floating dtype in [{plan.input_low:g}, {plan.input_high:g}], got "
            f"{array.dtype}: scale them as in training, for example images.astype('float32') / 255"
        )
    shape = plan.input_shape
    short = shape[:-1] if shape[-1] == 1 else shape
    if array.shape in {shape, short}:
        array = array.reshape(1, *shape)
    elif array.shape[1:] == short:
        array = array.reshape(len(array), *shape)
    if array.shape[1:] != shape or len(array) == 0:
        raise InputError(
            f"expected one image of shape {shape} or a batch [N, ...] of them, got shape {np.shape(images)}; "
            "nothing was sent"
        )
    if not np.isfinite(array).all():
        raise InputError("expected finite pixels, got NaN or infinity; nothing was sent")
    return array


def _cluster_file(cluster: ClusterFile | HasFile | str | os.PathLike[str]) -> ClusterFile:
    """Return the cluster file behind whatever names it."""
    if isinstance(cluster, ClusterFile):
        return cluster
    if isinstance(cluster, str | os.PathLike):
        return ClusterFile.load(Path(cluster))
    return ClusterFile.load(Path(cluster.file))


def _identity(cluster: object, identity: Identity | str | os.PathLike[str] | None) -> Identity:
    """Return the user's identity, from a local cluster's folder if it was left out."""
    if isinstance(identity, Identity):
        return identity
    if identity is not None:
        return Identity.load(Path(identity))
    keeper = getattr(cluster, "identity", None)
    if not callable(keeper):
        raise UsageError(
            "expected the user's identity file beside the cluster: who asks? `fedsec keys` makes one"
        )
    kept = keeper("user")
    return kept if isinstance(kept, Identity) else Identity.load(Path(kept))


def _agreed_plan(told: Sequence[Description], names: Sequence[str]) -> Plan:
    """Return the plan that all three parties describe.

    Raises:
        ProtocolError: they do not describe the same service, model and plan, or the plan is damaged.
    """
    for name, description in zip(names, told, strict=True):
        same = hmac.compare_digest(description.digest, told[0].digest) and description.plan == told[0].plan
        if not same or (description.service, description.model) != (told[0].service, told[0].model):
            raise ProtocolError(
                f"{name} describes another model or service than {names[0]}; no image was sent: "
                "the owner has to share one model with all three"
            )
    return plan_from_wire(told[0].plan, told[0].digest)


def _close(channels: Sequence[SocketChannel]) -> None:
    """Close all connections."""
    for channel in channels:
        channel.close()
