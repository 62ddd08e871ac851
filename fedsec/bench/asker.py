"""The client of the benchmark: a process of its own, as a user's is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from fedsec.bench.timing import rate, timed
from fedsec.bench.workers import answer_requests
from fedsec.errors import UsageError
from fedsec.nn import Reveal
from fedsec.serving.client import Client, Images
from fedsec.transport import ClusterFile, Identity


def pictures(shape: tuple[int, ...], low: float, high: float) -> Images:
    """Return images in the given range. Nothing here depends on what they show, so they show no noise."""
    grey = np.arange(math.prod(shape)) * 37 % 256 / 255.0
    images: Images = (low + (high - low) * grey).reshape(shape)
    return images


class Asker:
    """One connected client and what the benchmark lets it do."""

    def __init__(self) -> None:
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """The connected client.

        Raises:
            UsageError: It is not connected.
        """
        if self._client is None:
            raise UsageError("expected a client that was connected first")
        return self._client

    def connect(self, cluster: str, identity: str) -> None:
        """Connect, in place of any connection before."""
        self.close()
        self._client = Client.connect(ClusterFile.load(Path(cluster)), Identity.load(Path(identity)))

    def close(self) -> None:
        """Leave the service, if there is one."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def times(self, count: int, images: int = 1, reveal: Reveal = "logits") -> list[float]:
        """Return the wall time of each of ``count`` requests, in seconds."""
        batch = self._batch(images)
        return timed(lambda: self.client.predict(batch, reveal), count)

    def rate(self, count: int, images: int = 1, reveal: Reveal = "logits") -> float:
        """Return the images a second of ``count`` requests one after the other."""
        batch = self._batch(images)
        return rate(lambda: self.client.predict(batch, reveal), count, images)

    def traffic(self) -> dict[str, Any]:
        """Return what passed this client's connections."""
        return self.client.meter.snapshot()

    def _batch(self, images: int) -> Images:
        plan = self.client.plan
        return pictures((images, *plan.input_shape), plan.input_low, plan.input_high)


def main() -> None:
    """Answer until the benchmark closes our standard input."""
    asker = Asker()
    answer_requests(
        {
            "connect": asker.connect,
            "close": asker.close,
            "times": asker.times,
            "rate": asker.rate,
            "traffic": asker.traffic,
        }
    )
    asker.close()


if __name__ == "__main__":
    main()
