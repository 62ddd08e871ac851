"""The user's end: an image goes out in shares, the answer comes back in shares.

The client speaks to each party itself, over a connection of its own, under its own certificate:
no other process ever holds what two parties get.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, cast

import numpy as np
import numpy.typing as npt

from fedsec.errors import InputError, PeerLostError, ProtocolError, ServiceEndedError, UsageError
from fedsec.nn import Plan, Reveal, encode_input
from fedsec.ring import RingArray
from fedsec.serving import parts
from fedsec.serving.answers import AnswerForm, Values
from fedsec.serving.asking import Ask, ask_each, connect_all
from fedsec.serving.limits import most_images
from fedsec.serving.messages import ID_BYTES, Answer, Describe, Description, LabelNoise, Mode, Query
from fedsec.serving.weights import plan_from_wire
from fedsec.transport import ClusterFile, Deadline, Endpoint, Identity, Meter, SocketChannel

CONNECT_S = 15.0
ANSWER_S = 60.0
"""Longest wait for one answer; the parties give up well before and say why."""

Images = npt.NDArray[np.floating]


class HasFile(Protocol):
    """Anything that knows where its cluster file is, such as a started cluster."""

    @property
    def file(self) -> Path:
        """Path of the cluster file."""
        ...


@dataclass(frozen=True)
class _Service:
    """The three connections, and what all three parties say that they serve."""

    channels: tuple[SocketChannel, ...]
    told: Description

    @cached_property
    def plan(self) -> Plan:
        return plan_from_wire(self.told.plan, self.told.digest)

    @cached_property
    def most_images(self) -> int:
        return most_images(self.plan, self.told.reveals, self.label_epsilon)

    @cached_property
    def forms(self) -> dict[Reveal, AnswerForm]:
        return {reveal: AnswerForm.of(self.plan, reveal, self.label_epsilon) for reveal in self.told.reveals}

    @property
    def label_epsilon(self) -> float | None:
        return None if self.told.noise is None else self.told.noise.epsilon

    def close(self) -> None:
        for channel in self.channels:
            channel.close()


class Client:
    """A connection to the three parties that serve one model; made by :meth:`connect`.

    When a party is lost or the service ends, the next question connects again, and goes on if the same model
    is served by then.

    Attributes:
        meter: counts the bytes of this client's connections.
    """

    def __init__(
        self, parties: Sequence[Endpoint], identity: Identity, *, timeout_s: float = CONNECT_S
    ) -> None:
        """Connect to the three parties; :meth:`connect` is the usual way."""
        self.meter = Meter()
        self._parties = tuple(parties)
        self._identity = identity
        self._timeout_s = timeout_s
        self._stale = False
        self._served = _open(self._parties, identity, Deadline.after(timeout_s), self.meter)

    @classmethod
    def connect(
        cls,
        cluster: ClusterFile | HasFile | str | os.PathLike[str],
        identity: Identity | str | os.PathLike[str] | None = None,
        *,
        timeout_s: float = CONNECT_S,
    ) -> Self:
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
        return cls(file.computing, _identity(cluster, identity), timeout_s=timeout_s)

    @property
    def _service(self) -> bytes:
        return self._served.told.service

    @property
    def plan(self) -> Plan:
        """The public plan of the served model."""
        return self._served.plan

    @property
    def reveals(self) -> tuple[Reveal, ...]:
        """What may be asked for; the owner has decided it."""
        return self._served.told.reveals

    @property
    def mode(self) -> Mode:
        """How the parties compute."""
        return self._served.told.mode

    @property
    def noise(self) -> LabelNoise | None:
        """How noisy labels are, and what may be spent on them; None if they are told as they are."""
        return self._served.told.noise

    def predict(
        self, images: npt.ArrayLike, reveal: Reveal = "logits", *, timeout_s: float = ANSWER_S
    ) -> Values:
        """Ask for a private prediction.

        Each image counts as one request. More than 128 images, or fewer of a model with large layers, go
        out as several requests, one after the other; if a later one fails, the earlier ones are charged.

        Args:
            images: one image, or a batch of them, floats in the range of the plan; a last dimension
                of 1 may be left out.
            reveal: ``"logits"``; ``"probabilities"``; ``"label"``, the most likely class alone; or
                ``"top3"``, the three most likely ones in order. The parties compute exactly this, and open
                nothing else. Where there is ``noise`` a label is by chance another one, anew each time.
            timeout_s: longest wait for one answer of up to 128 images.

        Returns:
            Logits or probabilities, float64, shape [N, classes] (N = 1 for a single image); labels, int64,
            shape [N] for ``"label"`` and [N, 3] for ``"top3"``.

        Raises:
            InputError: shape, dtype or values do not fit; nothing was sent.
            UsageError: the owner does not offer ``reveal``; nothing was sent.
            ServiceEndedError: the service has answered its number, has spent all its epsilon, or was stopped.
            TrustError: this certificate has asked for as much as it may.
            PeerLostError, DeadlineError: a party was lost; the text names it. The next call connects again.
            ProtocolError: the answer is none, or another model is served by now.
        """
        if self._stale:
            self._connect_again()
        form = self._served.forms.get(reveal)
        if form is None:
            raise UsageError(
                f"reveal={reveal!r} is not offered: the owner of this model allows "
                f"{', '.join(self.reveals)}; nothing was sent"
            )
        words = encode_input(self.plan, as_batch(images, self.plan))
        most = self._served.most_images
        try:
            if len(words) <= most:
                return self._ask(words, form, timeout_s)
            starts = range(0, len(words), most)
            answers = [self._ask(words[start : start + most], form, timeout_s) for start in starts]
        except (PeerLostError, ServiceEndedError):
            self._stale = True
            raise
        return cast("Values", np.concatenate(answers))

    def _connect_again(self) -> None:
        """Connect to what is served now, if it is the same model."""
        old = self._served
        old.close()
        deadline = Deadline.after(self._timeout_s)
        new = _open(self._parties, self._identity, deadline, self.meter)
        terms = ((told.model, told.digest, told.noise) for told in (new.told, old.told))
        if len(set(terms)) > 1:
            new.close()
            raise ProtocolError(
                "another model is served now, or with other noise: connect anew if you want to ask it"
            )
        self._served, self._stale = new, False

    def _ask(self, words: RingArray, form: AnswerForm, timeout_s: float) -> Values:
        """Send one request of up to 128 encoded images and join the three shares of its answer."""
        channels, images = self._served.channels, len(words)
        query = Query(
            service=self._service,
            request=os.urandom(ID_BYTES),
            images=images,
            reveal=form.reveal,
        )
        size = form.size_bytes(images)
        asks = [Ask(query, body, size) for body in parts.split(words.reshape(-1))]
        replies = ask_each(channels, asks, Answer, Deadline.after(timeout_s))
        expected = Answer(
            request=query.request,
            images=images,
            fraction_bits=form.head.output_fraction_bits,
            reveal=form.reveal,
        )
        for channel, (answer, body) in zip(channels, replies, strict=True):
            if answer != expected or len(body) != size:
                raise ProtocolError(
                    f"{channel.peer.name} answered another request, size or encoding than was asked: "
                    "the answer is thrown away"
                )
        return form.join([body for _, body in replies], images)

    def close(self) -> None:
        """Close the three connections. May be called twice."""
        self._served.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open(parties: Sequence[Endpoint], identity: Identity, deadline: Deadline, meter: Meter) -> _Service:
    """Connect to every party and have it describe what is served."""
    channels = connect_all(parties, identity, deadline, meter)
    try:
        asks = [Ask(Describe())] * len(channels)
        told = [reply for reply, _ in ask_each(channels, asks, Description, deadline)]
        _check_same(told, [channel.peer.name for channel in channels])
        service = _Service(channels, told[0])
        # A damaged plan, or one that cannot reveal what is offered, is refused here.
        _ = service.forms
    except BaseException:
        for channel in channels:
            channel.close()
        raise
    return service


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


def _check_same(told: Sequence[Description], names: Sequence[str]) -> None:
    """Check that all three parties describe the same service, model and plan.

    Raises:
        ProtocolError: they do not.
    """
    for name, description in zip(names, told, strict=True):
        if description != told[0]:
            raise ProtocolError(
                f"{name} describes another model or service than {names[0]}; no image was sent: "
                "the owner has to share one model with all three"
            )
