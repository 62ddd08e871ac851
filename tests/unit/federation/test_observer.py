"""The simulation's observer against numpy's own weighted average."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsec.errors import UsageError
from fedsec.federation.grid import InProcessGrid, node_configs
from fedsec.federation.observer import SimulationObserver, largest_difference, plain_mean

NEW = [np.full((2, 2), value, np.float32) for value in (1.5, -2.0, 4.25)]
WEIGHTS = [3, 5, 7]


def observed_grid(observer: SimulationObserver) -> InProcessGrid:
    app = ClientApp(mods=[observer])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        i = int(context.node_config["partition-id"])
        if i == 1:
            raise ValueError("fails")
        metrics = MetricRecord({"num-examples": WEIGHTS[i], "loss": 0.5 * i})
        return Message(
            RecordDict({"arrays": ArrayRecord({"w": Array(NEW[i])}), "metrics": metrics}), reply_to=message
        )

    return InProcessGrid(app, node_configs(3))


def test_it_sees_updates_and_weights_and_forgets_them() -> None:
    observer = SimulationObserver()
    grid = observed_grid(observer)
    before = np.full((2, 2), 1.0, np.float32)
    content = RecordDict({"arrays": ArrayRecord({"w": Array(before)}), "config": ConfigRecord()})
    grid.send_and_receive(
        [Message(content, dst_node_id=n, message_type="train") for n in grid.get_node_ids()]
    )
    seen = observer.take()
    assert list(seen) == [0, 2]
    assert seen[2].num_examples == 7
    assert seen[2].metrics == {"loss": 1.0}
    expected = np.average([NEW[0] - before, NEW[2] - before], axis=0, weights=[3, 7])
    np.testing.assert_allclose(plain_mean(seen.values())[0], expected, rtol=1e-15)
    alike = np.average([NEW[0] - before, NEW[2] - before], axis=0)
    np.testing.assert_allclose(plain_mean(seen.values(), equal=True)[0], alike, rtol=1e-15)
    assert observer.take() == {}


def test_largest_difference() -> None:
    plain = [np.zeros((2, 2)), np.ones(3)]
    assert largest_difference([np.zeros((2, 2)), np.array([1.0, 0.75, 1.125])], plain) == 0.25
    with pytest.raises(ValueError, match="zip"):
        largest_difference([np.zeros((2, 2))], plain)
    with pytest.raises(UsageError, match="at least one"):
        plain_mean([])
