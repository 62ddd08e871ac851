"""A Flower server and hospitals, each a process of its own, with real apps, mod and strategy; no SuperLink.

::

    python flower_roles.py hospital TRUST_FILE PARTITION SOCKET
    python flower_roles.py server SETTINGS.json

Flower's messages go over a socket of the file system for each hospital, in Flower's own encoding. The server
says ``{"trained": SESSION or null, "number": N}`` when all rounds are over and its result is in a file, and
all live on until their standard input ends.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp.strategy import FedAvg

from fedsec.federation.grid import InProcessGrid, node_configs
from fedsec.federation.mod import secure_aggregation
from fedsec.federation.plan import RoundPlan
from fedsec.federation.strategy import SecureAggregation

STEP = 0.1
"""How far a round can move a parameter beside making it smaller."""

CLIP = 0.5
ROUNDS = 3
ARRAYS = {"kernel": (40, 48), "bias": (48,), "last kernel": (48, 6), "last bias": (6,)}


def initial() -> dict[str, np.ndarray]:
    """The public initial parameters."""
    generator = np.random.default_rng(99)
    return {name: generator.normal(0, 0.2, shape).astype(np.float32) for name, shape in ARRAYS.items()}


app = ClientApp(mods=[secure_aggregation])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Stand in for training: parameters become smaller and go somewhere that depends on the hospital."""
    number = int(context.node_config["partition-id"])
    given, config = message.content["arrays"], message.content["config"]
    assert isinstance(given, ArrayRecord)
    assert isinstance(config, ConfigRecord)
    generator = np.random.default_rng([number, int(str(config["server-round"]))])
    arrays = {
        name: Array((0.9 * a.numpy() + generator.uniform(-STEP, STEP, a.shape)).astype(np.float32))
        for name, a in given.items()
    }
    metrics = MetricRecord({"num-examples": 100, "loss": 0.5})
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
    return Message(content, reply_to=message)


def hospital(trust: str, partition: str, path: str) -> None:
    config = node_configs(int(partition) + 1)[-1] | {"fedsec-trust": trust}
    context = Context(1, 1000 + int(partition), config, RecordDict(), {})
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        say(ready=True)
        channel, _ = listener.accept()
        with channel:
            while (message := receive(channel)) is not None:
                send(channel, app(message, context))
    sys.stdin.read()


class Remote:
    """In place of a ClientApp: hands messages to the processes of the hospitals."""

    def __init__(self, paths: list[str]) -> None:
        self._channels = []
        for path in paths:
            channel = socket.socket(socket.AF_UNIX)
            channel.connect(path)
            self._channels.append(channel)

    def __call__(self, message: Message, context: Context) -> Message:
        channel = self._channels[int(context.node_config["partition-id"])]
        send(channel, message)
        reply = receive(channel)
        assert reply is not None
        return reply


def server(settings: str) -> None:
    given = json.loads(Path(settings).read_text())
    remote: Any = Remote(given["sockets"])
    plan = RoundPlan(
        clip=CLIP, largest_weight=1000, smallest_mean_weight=50, minimum_cohort=len(given["sockets"]),
        train_metrics={"loss": (0.0, 10.0)}, reveal_to=given["reveal_to"],
        serves=bytes.fromhex(given["serves"]), upload_seconds=60, collect_seconds=60,
    )  # fmt: skip
    strategy = SecureAggregation(
        FedAvg(fraction_evaluate=0.0), given["cluster"], given["identity"], plan=plan,
        on_round=lambda done: say(round=done.server_round, aborted=done.aborted),
    )  # fmt: skip
    arrays = ArrayRecord({name: Array(array) for name, array in initial().items()})
    grid = InProcessGrid(remote, node_configs(len(given["sockets"])))
    result = strategy.start(grid, arrays, num_rounds=ROUNDS)
    assert result.arrays is not None
    np.savez(given["result"], *result.arrays.to_numpy_ndarrays())
    sealed = strategy.sealed
    session, number = (None, 0) if sealed is None else (sealed.session.hex(), sealed.number)
    say(trained=session, number=number)
    sys.stdin.read()
    # A ServerApp has the result of its training as long as it lives.
    assert result.arrays is not None


def send(channel: socket.socket, message: Message) -> None:
    data = message_to_proto(message).SerializeToString()
    channel.sendall(struct.pack(">I", len(data)) + data)


def receive(channel: socket.socket) -> Message | None:
    head = channel.recv(4, socket.MSG_WAITALL)
    if len(head) < 4:
        return None
    data = channel.recv(struct.unpack(">I", head)[0], socket.MSG_WAITALL)
    return message_from_proto(ProtoMessage.FromString(data))


def say(**words: Any) -> None:
    print(json.dumps(words), flush=True)


if __name__ == "__main__":
    {"hospital": hospital, "server": server}[sys.argv[1]](*sys.argv[2:])
