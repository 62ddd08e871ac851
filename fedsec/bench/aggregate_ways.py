"""Three ways through one round of the same app: Flower alone, the same over TLS, and secured.

The app returns fixed vectors, so that nothing but the round is measured. All three run on the same grid in
this process, and all three must give the mean that numpy gives.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp.strategy import FedAvg, Strategy

from fedsec.aggregation.client import HospitalClient
from fedsec.aggregation.links import TlsLinks
from fedsec.aggregation.trust import TrustFile
from fedsec.bench.aggregate_averager import ARRAY, MOST_BYTES, PlainMean, PlainReply, PlainTaken
from fedsec.errors import ProtocolError
from fedsec.federation.grid import InProcessGrid, node_configs
from fedsec.federation.mod import SecureAggregationMod
from fedsec.federation.strategy import SecureAggregation
from fedsec.ring import KEY_BYTES, RING32
from fedsec.ring.streams import KeyedStream
from fedsec.transport import Deadline, Endpoint, Identity, Meter

CLIP = 1.0
_WAIT_S = 120.0
_VECTORS = 8
_TURNS = itertools.count(1)
_PARTITION = "partition-id"

Floats = npt.NDArray[np.floating[Any]]


class Fixed:
    """What each hospital returns: one of a few vectors within the clip, and a count of examples.

    Args:
        hospitals: How many.
        parameters: Elements of the one array.
    """

    def __init__(self, hospitals: int, parameters: int) -> None:
        self.hospitals, self.parameters = hospitals, parameters
        # The same in every run, so that what is measured does not move with them.
        words = KeyedStream(bytes(KEY_BYTES)).words((_VECTORS, parameters), RING32)
        self._vectors = ((words / 2.0**31 - 1.0) * CLIP).astype(np.float32)

    def vary(self) -> None:
        """Change one element of each vector: no hospital sends the same update in two rounds."""
        self._vectors[:, 0] = next(_TURNS) / 2.0**20

    @property
    def model(self) -> ArrayRecord:
        """The model that the server sends: zeros, so that a vector is its own update."""
        return ArrayRecord({ARRAY: Array(np.zeros(self.parameters, np.float32))})

    def vector(self, hospital: int) -> Floats:
        """Return what a hospital returns."""
        vector: Floats = self._vectors[hospital % _VECTORS]
        return vector

    def examples(self, hospital: int) -> int:
        """Return its count of examples: 50 to 99, so that no mean weight is far from the largest."""
        return 50 + hospital * 7 % 50

    @property
    def largest_weight(self) -> int:
        """The largest count of examples."""
        return max(self.examples(one) for one in range(self.hospitals))

    @property
    def mean_weight(self) -> float:
        """The mean count of examples."""
        return float(np.mean([self.examples(one) for one in range(self.hospitals)]))

    def mean(self) -> Floats:
        """Return the weighted mean in float64."""
        weights = np.zeros(_VECTORS)
        for one in range(self.hospitals):
            weights[one % _VECTORS] += self.examples(one)
        # Not a matrix product: threads of its library would spin while the next round is measured.
        mean: Floats = np.zeros(self.parameters)
        for weight, vector in zip(weights / weights.sum(), self._vectors, strict=True):
            mean += weight * vector.astype(np.float64)
        return mean

    def app(self, mods: Sequence[Any] = ()) -> ClientApp:
        """Return the ClientApp of all hospitals."""
        app = ClientApp(mods=list(mods))

        @app.train()
        def train(message: Message, context: Context) -> Message:
            hospital = int(context.node_config[_PARTITION])
            content = RecordDict(
                {
                    "arrays": ArrayRecord({ARRAY: Array(self.vector(hospital))}),
                    "metrics": MetricRecord({"num-examples": self.examples(hospital)}),
                }
            )
            return Message(content, reply_to=message)

        return app


@dataclass(frozen=True, slots=True)
class Taken:
    """What one round took.

    Attributes:
        wall_s: From the first message to the average.
        cpu_s: Processor time of this process while the hospitals answered.
        hospitals_s: Wall time until the last hospital had answered.
        error: Largest difference of an element of the mean from numpy's.
    """

    wall_s: float
    cpu_s: float
    hospitals_s: float
    error: float


class Way:
    """One of the three ways, ready for rounds.

    Args:
        fixed: What hospitals return.
        strategy: The ServerApp's strategy.
        mods: The ClientApp's mods.
        trust: Trust files of the hospitals, if there are any.
    """

    def __init__(
        self, fixed: Fixed, strategy: Strategy, mods: Sequence[Any] = (), trust: Sequence[Path] | None = None
    ) -> None:
        self._fixed, self._strategy = fixed, strategy
        self._app = fixed.app(mods)
        self._nodes = node_configs(fixed.hospitals, trust)
        self._round = 0

    def close(self) -> None:
        """Close the connections of the ServerApp, if it has any."""
        if isinstance(self._strategy, SecureAggregation | AveragedElsewhere):
            self._strategy.close()

    def round(self) -> Taken:
        """Run one round and check its result.

        Raises:
            ProtocolError: There is none.
        """
        self._round += 1
        self._fixed.vary()
        model = self._fixed.model
        grid = InProcessGrid(self._app, self._nodes)
        start, cpu = time.perf_counter(), time.process_time()
        messages = list(self._strategy.configure_train(self._round, model, ConfigRecord(), grid))
        replies = list(grid.send_and_receive(messages))
        cpu, answered = time.process_time() - cpu, time.perf_counter()
        arrays, _ = self._strategy.aggregate_train(self._round, replies)
        wall = time.perf_counter() - start
        if arrays is None:
            raise ProtocolError("the round has no result")
        (mean,) = (array.numpy() for array in arrays.values())
        return Taken(wall, cpu, answered - start, float(np.max(np.abs(mean - self._fixed.mean()))))


def fed_avg() -> FedAvg:
    """Return the strategy that all ways use."""
    return FedAvg(fraction_train=1.0, fraction_evaluate=0.0)


class OverTls:
    """A mod that sends each reply, in the clear within TLS, to the averager, and answers with nothing.

    Args:
        averager: Where it listens.
        identities: The identity of each hospital, in partition order.
        meter: Counts the bytes of all connections.
    """

    def __init__(self, averager: Endpoint, identities: Sequence[Identity], meter: Meter) -> None:
        self._averager = averager.name
        self.links = [TlsLinks([averager], identity, meter) for identity in identities]

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Answer one message."""
        reply = call_next(message, context)
        array = reply.content.array_records["arrays"][ARRAY]
        examples = reply.content.metric_records["metrics"]["num-examples"]
        request = PlainReply(tuple(array.shape), int(examples))  # type: ignore[arg-type]
        links = self.links[int(context.node_config[_PARTITION])]
        links.call(self._averager, request, PlainTaken, body=array.data, deadline=Deadline.after(_WAIT_S))
        return Message(RecordDict(), reply_to=message)


class AveragedElsewhere(FedAvg):
    """FedAvg that asks the averager for the mean.

    Args:
        averager: Where it listens.
        identity: The server's identity.
    """

    def __init__(self, averager: Endpoint, identity: Identity) -> None:
        super().__init__(fraction_train=1.0, fraction_evaluate=0.0)
        self._averager = averager.name
        self._links = TlsLinks([averager], identity)

    def close(self) -> None:
        """Close the connection to the averager."""
        self._links.close()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the mean of what the averager has got."""
        del server_round, replies
        deadline = Deadline.after(_WAIT_S)
        _, body = self._links.call(
            self._averager, PlainMean(), PlainTaken, deadline=deadline, max_body_bytes=MOST_BYTES
        )
        array = Array(dtype="float32", shape=(), stype="numpy.ndarray", data=bytes(body))
        return ArrayRecord({ARRAY: array}), None


class ConnectedMod(SecureAggregationMod):
    """The mod, with its hospitals' connections opened before anything is measured."""

    def prepare(self, trust: Sequence[Path], meter: Meter) -> list[TlsLinks]:
        """Load hospitals; their connections, not yet open, are returned."""
        prepared = []
        for path in trust:
            file = TrustFile.load(path)
            identity = Identity.load(file.identity)
            # Kept for life as well: what follows is to measure connections alone.
            _ = identity.client_context
            links = TlsLinks(file.aggregators, identity, meter)
            self._clients[path.resolve()] = HospitalClient(file, identity=identity, links=links)
            prepared.append(links)
        return prepared
