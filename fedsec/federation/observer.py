"""SIMULATION ONLY: sees every hospital's plain update, which is what secure aggregation is there to prevent.

It exists to answer one question that cannot be asked in a real federation: how far is the opened average
from the plain mean of the same updates? And it writes the table by hospital that a teacher wants to see.
It works because in a simulation all hospitals share one process. A real hospital never installs it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, Context, Message, MetricRecord
from flwr.clientapp.typing import ClientAppCallable

from fedsec.errors import UsageError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class ObservedUpdate:
    """What one hospital of a simulation computed in the last training round.

    Attributes:
        partition: The hospital's partition id.
        update: New minus old parameters, float64, in the order of the model's arrays.
        num_examples: Its aggregation weight.
        metrics: The other numbers in its app's reply.
        seconds: Time its app took, without the secure aggregation.
    """

    partition: int
    update: tuple[Floats, ...]
    num_examples: int
    metrics: dict[str, float]
    seconds: float


class SimulationObserver:
    """SIMULATION ONLY. A mod that records the plain update of every hospital in this process.

    Place it after the secure mod: ``ClientApp(mods=[secure_aggregation, observer])``.

    Args:
        weighted_by: The metric that is the aggregation weight.
    """

    def __init__(self, weighted_by: str = "num-examples") -> None:
        self._weighted_by = weighted_by
        self._seen: dict[int, ObservedUpdate] = {}

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Let the app work and write down what it returns; the reply is passed on unchanged."""
        started = time.perf_counter()
        reply = call_next(message, context)
        seconds = time.perf_counter() - started
        if message.metadata.message_type == "train" and not reply.has_error():
            partition = int(context.node_config["partition-id"])
            self._seen[partition] = self._observe(partition, message, reply, seconds)
        return reply

    def take(self) -> dict[int, ObservedUpdate]:
        """Return what was seen since the last call, by partition, and forget it."""
        seen, self._seen = self._seen, {}
        return seen

    def _observe(self, partition: int, message: Message, reply: Message, seconds: float) -> ObservedUpdate:
        before: ArrayRecord = next(iter(message.content.array_records.values()))
        after: ArrayRecord = next(iter(reply.content.array_records.values()))
        numbers: MetricRecord = next(iter(reply.content.metric_records.values()))
        return ObservedUpdate(
            partition=partition,
            update=tuple(
                after[name].numpy().astype(np.float64) - array.numpy() for name, array in before.items()
            ),
            num_examples=int(cast(int, numbers[self._weighted_by])),
            metrics={
                name: float(value)
                for name, value in numbers.items()
                if name != self._weighted_by and not isinstance(value, list)
            },
            seconds=seconds,
        )


def plain_mean(updates: Collection[ObservedUpdate], *, equal: bool = False) -> list[Floats]:
    """Return the mean of plain updates, formed in float64.

    Args:
        updates: One for each hospital.
        equal: Whether all weigh the same; otherwise each weighs what its number of examples is.

    Raises:
        UsageError: When there are none.
    """
    if not updates:
        raise UsageError("expected the updates of at least one hospital to average, got none")
    sizes = [1 if equal else one.num_examples for one in updates]
    columns = zip(*(one.update for one in updates), strict=True)
    weights = [one / sum(sizes) for one in sizes]
    return [
        np.sum([w * array for w, array in zip(weights, column, strict=True)], axis=0) for column in columns
    ]


def largest_difference(opened: Sequence[npt.NDArray[np.floating]], plain: Sequence[Floats]) -> float:
    """Return the largest absolute difference between two averages, in units of a parameter."""
    return max(
        (float(np.max(np.abs(a - b), initial=0.0)) for a, b in zip(opened, plain, strict=True)), default=0.0
    )
