"""The in-process grid against plain Flower strategies and a NumPy ClientApp."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fedsec.errors import UsageError
from fedsec.federation import grid as grid_module
from fedsec.federation.grid import (
    FIRST_NODE_ID,
    DropEachRound,
    InProcessGrid,
    PromptGrid,
    node_configs,
    run_server_app,
)

WEIGHTS = (10, 20, 30)


def numpy_app(seen: list[tuple[int, float]] | None = None) -> ClientApp:
    """Hospital i adds i + 1 to every parameter and has WEIGHTS[i] examples."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        config = message.content["config"]
        assert isinstance(config, ConfigRecord)
        if seen is not None:
            seen.append((partition, float(config["lr"])))
        config["lr"] = -1.0  # a client that scribbles on its own message
        arrays = message.content["arrays"]
        assert isinstance(arrays, ArrayRecord)
        new = ArrayRecord({name: Array(a.numpy() + np.float32(partition + 1)) for name, a in arrays.items()})
        metrics = MetricRecord({"num-examples": WEIGHTS[partition], "loss": float(partition)})
        return Message(RecordDict({"arrays": new, "metrics": metrics}), reply_to=message)

    return app


def start() -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros((2, 3), np.float32)), "b": Array(np.ones(4, np.float32))})


def test_fedavg_over_the_grid_is_the_weighted_mean() -> None:
    seen: list[tuple[int, float]] = []
    grid = InProcessGrid(numpy_app(seen), node_configs(3))
    results = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        assert context.run_config == {"rounds": 2}
        strategy = FedAvg(fraction_evaluate=0.0)
        config = ConfigRecord({"lr": 0.5})
        results.append(strategy.start(grid, start(), num_rounds=2, train_config=config))

    run_server_app(server, grid, {"rounds": 2})

    step = (1 * 10 + 2 * 20 + 3 * 30) / 60
    np.testing.assert_allclose(results[0].arrays["w"].numpy(), np.full((2, 3), 2 * step), rtol=1e-6)
    np.testing.assert_allclose(results[0].arrays["b"].numpy(), np.full(4, 1 + 2 * step), rtol=1e-6)
    assert results[0].train_metrics_clientapp[2]["loss"] == pytest.approx((0 * 10 + 1 * 20 + 2 * 30) / 60)
    # In node order, whatever FedAvg sampled, and no hospital saw what another wrote into its message.
    assert seen == [(0, 0.5), (1, 0.5), (2, 0.5)] * 2


def exchange(grid: InProcessGrid, timeout: float | None = None) -> list[Message]:
    content = RecordDict({"arrays": start(), "config": ConfigRecord({"lr": 0.5})})
    messages = [Message(content, dst_node_id=node, message_type="train") for node in grid.get_node_ids()]
    return list(grid.send_and_receive(messages, timeout=timeout))


def test_replies_carry_ids_and_addresses() -> None:
    grid = InProcessGrid(numpy_app(), node_configs(3))
    replies = exchange(grid)
    assert [r.metadata.src_node_id for r in replies] == [FIRST_NODE_ID + i for i in range(3)]
    assert {r.metadata.dst_node_id for r in replies} == {1}
    ids = [r.metadata.message_id for r in replies] + [r.metadata.reply_to_message_id for r in replies]
    assert len(set(ids)) == 6
    assert "" not in ids


def test_threat_45_an_exception_costs_its_hospital_and_its_text_stays_there() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 1:
            raise ValueError("patient 4711 has a secret")
        return Message(RecordDict(), reply_to=message)

    replies = exchange(InProcessGrid(app, node_configs(3)))
    assert [r.has_error() for r in replies] == [False, True, False]
    assert replies[1].error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert replies[1].error.reason == "ValueError"


def test_dropped_hospitals_do_not_run() -> None:
    seen: list[tuple[int, float]] = []
    grid = InProcessGrid(numpy_app(seen), node_configs(3), dropout=lambda n, p: (n, p) == (2, 1))
    assert [r.has_error() for r in exchange(grid)] == [False, False, False]
    replies = exchange(grid)
    assert [r.has_error() for r in replies] == [False, True, False]
    assert replies[1].error.code == ErrorCode.NODE_UNAVAILABLE
    assert [partition for partition, _ in seen] == [0, 1, 2, 0, 2]


def test_drop_each_round_is_exact_and_repeatable() -> None:
    dropped = [[p for p in range(10) if DropEachRound(3, 10, seed=7)(n, p)] for n in range(1, 40)]
    assert {len(d) for d in dropped} == {3}
    assert dropped == [[p for p in range(10) if DropEachRound(3, 10, seed=7)(n, p)] for n in range(1, 40)]
    assert dropped != [[p for p in range(10) if DropEachRound(3, 10, seed=8)(n, p)] for n in range(1, 40)]
    assert {p for d in dropped for p in d} == set(range(10))
    with pytest.raises(UsageError, match="0 to 10"):
        DropEachRound(11, 10, seed=7)


def test_after_the_timeout_nobody_else_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    app, now = ClientApp(), [100.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=time.perf_counter)
    monkeypatch.setattr(grid_module, "time", clock)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        time.sleep(0.05)
        now[0] += 1
        return Message(RecordDict(), reply_to=message)

    grid = InProcessGrid(app, node_configs(3))
    assert len(exchange(grid, timeout=0.02)) == 1
    assert len(exchange(grid)) == 3
    assert grid.client_seconds >= 0.2


def test_push_and_pull() -> None:
    grid = InProcessGrid(numpy_app(), node_configs(2))
    content = RecordDict({"arrays": start(), "config": ConfigRecord({"lr": 0.5})})
    messages = [grid.create_message(content, "train", node, "1") for node in grid.get_node_ids()]
    ids = list(grid.push_messages(messages))
    assert [m.metadata.reply_to_message_id for m in grid.pull_messages(ids[1:])] == ids[1:]
    assert [m.metadata.reply_to_message_id for m in grid.pull_messages(ids)] == ids[:1]
    assert list(grid.pull_messages(ids)) == []


def test_unknown_node_is_refused_and_nothing_is_kept() -> None:
    grid = InProcessGrid(numpy_app(), node_configs(2))
    with pytest.raises(UsageError, match="got one for 7"):
        grid.push_messages([grid.create_message(RecordDict(), "train", 7, "1")])


def test_progress_and_context() -> None:
    calls: list[tuple[int, int, int]] = []
    grid = InProcessGrid(numpy_app(), node_configs(3), progress=lambda *call: calls.append(call))
    exchange(grid)
    assert calls == [(1, 1, 3), (1, 2, 3), (1, 3, 3)]


def test_node_configs(tmp_path: Path) -> None:
    paths = [tmp_path / "a.toml", tmp_path / "b.toml"]
    assert node_configs(2, paths)[1] == {
        "partition-id": 1,
        "num-partitions": 2,
        "fedsec-trust": str(paths[1]),
    }
    with pytest.raises(UsageError, match="2 in all, got 1"):
        node_configs(2, paths[:1])
    with pytest.raises(UsageError, match="at least one hospital"):
        InProcessGrid(numpy_app(), [])


def test_no_tensorflow_is_loaded() -> None:
    # One process for all: to load Flower takes seconds, and what an earlier one has loaded is named, too.
    code = """
import importlib, sys
for name in ("compatibility", "grid", "mod", "observer", "plan", "strategy"):
    importlib.import_module(f"fedsec.federation.{name}")
    if not {"tensorflow", "keras"}.isdisjoint(sys.modules):
        sys.exit(f"{name} loads TensorFlow")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


class SlowGrid(InProcessGrid):
    """Answers only when it is asked for the third time, and not at all in the name of the silent."""

    def __init__(self, app: ClientApp, hospitals: int, silent: int = -1) -> None:
        super().__init__(app, node_configs(hospitals))
        self.pulls = 0
        self._silent = silent

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.pulls += 1
        if self.pulls < 3:
            return []
        replies = super().pull_messages(message_ids)
        return [reply for reply in replies if reply.metadata.src_node_id != FIRST_NODE_ID + self._silent]


def orders(count: int) -> list[Message]:
    return [
        Message(RecordDict(), dst_node_id=FIRST_NODE_ID + number, message_type="train")
        for number in range(count)
    ]


def echo() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(RecordDict(), reply_to=message)

    return app


def test_a_prompt_grid_asks_until_all_have_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid_module, "PULL_S", 0.01)
    slow = SlowGrid(echo(), 3)
    prompt = PromptGrid(slow)
    assert list(prompt.get_node_ids()) == list(slow.get_node_ids())
    assert prompt.run == slow.run

    replies = list(prompt.send_and_receive(orders(3), timeout=30))

    assert sorted(reply.metadata.src_node_id - FIRST_NODE_ID for reply in replies) == [0, 1, 2]
    assert slow.pulls == 3
    assert list(prompt.send_and_receive([])) == []


def test_a_prompt_grid_returns_in_time_with_the_replies_that_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grid_module, "PULL_S", 0.01)
    slow = SlowGrid(echo(), 3, silent=1)

    replies = list(PromptGrid(slow).send_and_receive(orders(3), timeout=1.0))

    assert sorted(reply.metadata.src_node_id - FIRST_NODE_ID for reply in replies) == [0, 2]
    assert slow.pulls > 3
