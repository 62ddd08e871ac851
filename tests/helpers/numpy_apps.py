"""Flower apps with NumPy alone, whose updates are known in advance, for engines in whatever processes.

``NUMPY_APPS_RUN`` names the folder of a cluster with its keys; the server writes there, for every round, the
opened words, who is in the sum and the parameters before it, and at the end ``done``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fedsec.federation.grid import PromptGrid
from fedsec.federation.mod import secure_aggregation
from fedsec.federation.plan import RoundPlan
from fedsec.federation.strategy import SecureAggregation, SecureRound

RUN_VARIABLE = "NUMPY_APPS_RUN"
ROUNDS_VARIABLE = "NUMPY_APPS_ROUNDS"
HOSPITALS = 3
FAILS = 1
"""The partition of the hospital whose training fails in every round."""
SHAPES = {"w": (5, 7), "b": (3,)}
CLIP, LARGEST_WEIGHT, LARGEST_LOSS = 4.0, 500, 10.0

Arrays = dict[str, npt.NDArray[np.float32]]


def change(partition: int, server_round: int) -> Arrays:
    """What a hospital adds to the parameters in a round."""
    generator = np.random.default_rng([partition, server_round])
    return {name: generator.uniform(-1, 1, shape).astype(np.float32) for name, shape in SHAPES.items()}


def examples_of(partition: int) -> int:
    return 100 + 37 * partition


def loss_of(partition: int) -> float:
    return 1.25 * (partition + 1)


client = ClientApp(mods=[secure_aggregation])


@client.train()
def train(message: Message, context: Context) -> Message:
    partition = int(context.node_config["partition-id"])
    if partition == FAILS:
        raise ValueError("this hospital always fails")
    server_round = int(str(message.content.config_records["config"]["server-round"]))
    given = message.content.array_records["arrays"]
    added = change(partition, server_round)
    new = {name: Array(given[name].numpy() + added[name]) for name in SHAPES}
    metrics = {"num-examples": examples_of(partition), "loss": loss_of(partition)}
    content = RecordDict({"arrays": ArrayRecord(new), "metrics": MetricRecord(metrics)})
    return Message(content, reply_to=message)


class CountingGrid(PromptGrid):
    """Counts exchanges and messages."""

    def __init__(self, inner: Grid) -> None:
        super().__init__(inner)
        self.sent: list[int] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        batch = list(messages)
        if batch:
            self.sent.append(len(batch))
        return super().push_messages(batch)


server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    folder = Path(os.environ[RUN_VARIABLE])
    grid = CountingGrid(grid)
    while len(list(grid.get_node_ids())) < HOSPITALS:
        pass  # the test's own deadline ends this

    def keep(report: SecureRound) -> None:
        result = report.result
        record: dict[str, Any] = {
            "sent": grid.sent,
            "statuses": report.statuses,
            "aborted": report.aborted,
            "included": [],
        }
        if result is not None:
            record["included"] = list(result.included)
            record["metrics"] = dict(result.metrics)
            np.save(folder / f"words-{report.server_round}.npy", np.asarray(result.words))
        (folder / f"round-{report.server_round}.json").write_text(json.dumps(record))

    def before(server_round: int, arrays: ArrayRecord) -> None:
        np.savez(
            folder / f"after-{server_round}.npz", **{name: array.numpy() for name, array in arrays.items()}
        )

    plan = RoundPlan(
        clip=CLIP,
        largest_weight=LARGEST_WEIGHT,
        smallest_mean_weight=50,
        minimum_cohort=2,
        upload_seconds=200,
        train_metrics={"loss": (0.0, LARGEST_LOSS)},
    )
    strategy = SecureAggregation(
        FedAvg(fraction_evaluate=0.0),
        folder / "cluster.toml",
        folder / "keys" / "server.pem",
        plan=plan,
        on_round=keep,
    )
    initial = {name: Array(np.zeros(shape, np.float32)) for name, shape in SHAPES.items()}
    rounds = int(os.environ.get(ROUNDS_VARIABLE, "1"))
    strategy.start(grid, ArrayRecord(initial), num_rounds=rounds, evaluate_fn=before)
    strategy.close()
    (folder / "done").touch()
