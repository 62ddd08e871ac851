"""Ask for private predictions: what ``fedsec predict`` does."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsec.errors import PeerLostError, ServiceEndedError
from fedsec.lab.images import Images
from fedsec.lab.rundir import RunFolder
from fedsec.nn import Reveal
from fedsec.serving.client import Client
from fedsec.serving.messages import LabelNoise

_LOOK_S = 0.2


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What a user learns from private predictions.

    Attributes:
        reveal: What was asked for.
        values: As reconstructed by this process, one row an image: logits or probabilities of all classes,
            float64; or indices of classes, int64: one for ``label``, three for ``top3``.
        seconds: From the first byte to the last answer, connecting not included.
        sent_bytes: Payload bytes this process sent, by its channels' meter.
        received_bytes: Payload bytes it received.
        noise: How noisy the labels are; None if they are the model's own.
    """

    reveal: Reveal
    values: npt.NDArray[Any]
    seconds: float
    sent_bytes: int
    received_bytes: int
    noise: LabelNoise | None = None

    @property
    def labels(self) -> list[int]:
        """The class of each image; of several that are equally likely the one with the lowest index."""
        if self.reveal in {"label", "top3"}:
            return [int(label) for label in self.values[:, 0]]
        return [int(label) for label in self.values.argmax(axis=-1)]

    def summary(self) -> dict[str, Any]:
        """Return everything as values that JSON can hold."""
        values: dict[str, Any] = {} if self.reveal == "label" else {self.reveal: self.values.tolist()}
        if self.noise is not None:
            values["label_epsilon"] = self.noise.epsilon
        return {
            "reveal": self.reveal,
            "labels": self.labels,
            **values,
            "seconds": self.seconds,
            "sent_bytes": self.sent_bytes,
            "received_bytes": self.received_bytes,
        }


def run_credentials(path: Path) -> tuple[Path, Path]:
    """Return the cluster file and the user's identity of a local run; nothing else of it is read.

    Raises:
        UsageError: If there is no run in ``path``, or it has no cluster or no user.
    """
    return RunFolder.open(path).credentials("user")


def predict(
    cluster: Path, identity: Path, images: Images, *, reveal: Reveal | None = None, wait_s: float = 0.0
) -> Answers:
    """Ask the three parties of a cluster; the images leave this process in shares only.

    Args:
        cluster: The cluster file.
        identity: The user's identity.
        images: Shape [N, *input shape], in the range of the served plan.
        reveal: What to ask for; by default logits, or what the service allows instead.
        wait_s: How long to wait for a service that is only just being started.

    Raises:
        FedsecError: As ``Client.connect`` and ``Client.predict`` raise.
    """
    with _connected(cluster, identity, wait_s) as client:
        if reveal is None:
            reveal = "logits" if "logits" in client.reveals else client.reveals[0]
        started = time.perf_counter()
        values = client.predict(images, reveal)
        seconds = time.perf_counter() - started
        rows = np.reshape(values, (len(images), -1))
        meter = client.meter
        return Answers(reveal, rows, seconds, meter.sent_bytes, meter.received_bytes, client.noise)


def _connected(cluster: Path, identity: Path, wait_s: float) -> Client:
    end = time.monotonic() + wait_s
    while True:
        try:
            # The file is read anew each time: a service that starts writes its ports into it.
            return Client.connect(cluster, identity)
        except (PeerLostError, ServiceEndedError) as error:
            if time.monotonic() >= end:
                raise type(error)(
                    f"{error}. Is the model being served? `fedsec serve` starts that"
                ) from error
            time.sleep(_LOOK_S)
