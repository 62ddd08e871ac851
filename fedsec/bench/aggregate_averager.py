"""The reference of ``fedsec bench aggregate``: a process that gets every reply over TLS and averages them.

It is plain FedAvg as Flower does it, at the other end of our channels: what secure aggregation costs is
measured against it. It sees every single update.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedsec.bench.workers import answer_requests
from fedsec.errors import ProtocolError
from fedsec.federation.grid import FIRST_NODE_ID, InProcessGrid, node_configs
from fedsec.transport import Identity, Role
from fedsec.transport.server import Server
from fedsec.transport.service import Call, Reply, Route

ARRAY = "w"
MOST_BYTES = 1 << 30


class PlainReply(msgspec.Struct, frozen=True, tag="plain_reply", forbid_unknown_fields=True):
    """Hospital to averager: a reply in the clear; the body is the array as Flower serialises it."""

    shape: tuple[int, ...]
    num_examples: int


class PlainTaken(msgspec.Struct, frozen=True, tag="plain_taken", forbid_unknown_fields=True):
    """Reply: it is in memory."""


class PlainMean(msgspec.Struct, frozen=True, tag="plain_mean", forbid_unknown_fields=True):
    """Server to averager: asks for the mean of what came since it asked last."""


class Averager:
    """Keeps replies in memory, as a Flower server does, and lets Flower's FedAvg average them."""

    def __init__(self) -> None:
        # Flower makes messages only where a run is known, which a grid sees to.
        self._grid = InProcessGrid(ClientApp(), node_configs(1))
        self._strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0)
        self._replies: list[Message] = []
        self._server: Server | None = None

    def listen(self, identity: str) -> int:
        """Listen on this machine and return the port."""
        routes = [
            Route(PlainReply, frozenset({Role.HOSPITAL}), self._take, MOST_BYTES),
            Route(PlainMean, frozenset({Role.SERVER}), self._mean),
        ]
        self._server = Server(("127.0.0.1", 0), Identity.load(Path(identity)), routes)
        self._server.start()
        return self._server.port

    def close(self) -> None:
        """End all connections."""
        if self._server is not None:
            self._server.stop()

    def _take(self, call: Call) -> Reply:
        message: PlainReply = call.message
        array = Array(
            dtype="float32", shape=message.shape, stype="numpy.ndarray", data=bytes(call.body.read())
        )
        content = RecordDict(
            {
                "arrays": ArrayRecord({ARRAY: array}),
                "metrics": MetricRecord({"num-examples": message.num_examples}),
            }
        )
        self._replies.append(self._grid.create_message(content, "train", FIRST_NODE_ID, ""))
        return Reply(PlainTaken())

    def _mean(self, _call: Call) -> Reply:
        replies, self._replies = self._replies, []
        arrays, _ = self._strategy.aggregate_train(1, replies)
        if arrays is None:
            raise ProtocolError("there are no replies to average")
        return Reply(PlainTaken(), arrays[ARRAY].data)


def main() -> None:
    """Answer until the benchmark closes our standard input."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    averager = Averager()
    answer_requests({"listen": averager.listen})
    averager.close()


if __name__ == "__main__":
    main()
