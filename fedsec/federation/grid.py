"""Run real Flower ClientApps in this process, without Ray and without a SuperLink.

A :class:`InProcessGrid` is a ``flwr.serverapp.Grid``: an unchanged ServerApp and strategy drive it, and
unchanged ClientApps answer, one after the other in the calling thread. One thread means that one Keras
model can be reused by all hospitals; it also means that a hung ClientApp cannot be interrupted here.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict, UserConfig, UserConfigValue
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedsec.aggregation.trust import TRUST_NODE_KEY
from fedsec.errors import UsageError

FIRST_NODE_ID = 1000
"""Node ids are this plus the partition id; 0 and 1 mean something to Flower."""

RUN_ID = 1

PULL_S = 0.25
"""Seconds between two looks of a :class:`PromptGrid`."""

Dropout = Callable[[int, int], bool]
"""``dropout(exchange, partition)``: whether that hospital has vanished before this exchange reaches it.

Exchanges count from 1 in the order in which the ServerApp sends them. With ``fraction_evaluate=0``, and
so in every scenario, the exchange is the federated round.
"""


@dataclass(frozen=True, slots=True)
class DropEachRound:
    """A :data:`Dropout` that makes ``count`` of ``hospitals`` vanish in every exchange.

    Who vanishes is a hash of the seed and the exchange, so a run can be repeated exactly.

    Attributes:
        count: How many hospitals vanish, 0 to ``hospitals``.
        hospitals: How many hospitals there are.
        seed: Any integer; the same seed gives the same dropouts.
    """

    count: int
    hospitals: int
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.count <= self.hospitals:
            raise UsageError(
                f"dropout of {self.count} hospitals expected to be 0 to {self.hospitals}, "
                "the number of hospitals there are"
            )

    def __call__(self, exchange: int, partition: int) -> bool:
        """Return whether hospital ``partition`` is missing in ``exchange``."""

        def place(hospital: int) -> bytes:
            return hashlib.sha256(f"dropout/{self.seed}/{exchange}/{hospital}".encode()).digest()

        return partition in sorted(range(self.hospitals), key=place)[: self.count]


def node_configs(hospitals: int, trust: Sequence[Path] | None = None) -> list[UserConfig]:
    """Return the node config of each of ``hospitals`` simulated hospitals.

    Args:
        hospitals: How many there are, at least 1.
        trust: The trust file of each, in partition order; None when the apps are not secured.

    Returns:
        One dictionary a hospital with ``partition-id``, ``num-partitions`` and perhaps ``fedsec-trust``.

    Raises:
        UsageError: When the number of trust files is another than that of the hospitals.
    """
    if trust is not None and len(trust) != hospitals:
        raise UsageError(f"expected one trust file a hospital, {hospitals} in all, got {len(trust)}")
    configs: list[UserConfig] = []
    for partition in range(hospitals):
        config: UserConfig = {"partition-id": partition, "num-partitions": hospitals}
        if trust is not None:
            config[TRUST_NODE_KEY] = str(trust[partition])
        configs.append(config)
    return configs


class InProcessGrid(Grid):
    """A Flower grid whose nodes are ClientApps called in this process, in the order of their node ids.

    Only one grid at a time may be in use in a process: Flower keeps the identity of the running task in
    class attributes, which the constructor sets.

    Args:
        app: The ClientApp that every hospital runs.
        nodes: The node config of each hospital, as :func:`node_configs` makes them.
        run_config: The run config that every ClientApp sees; empty when None.
        dropout: Says which hospitals vanish before an exchange; none when None.
        progress: Called with (exchange, hospitals answered so far, hospitals asked) after each reply.
    """

    def __init__(
        self,
        app: ClientApp,
        nodes: Sequence[Mapping[str, UserConfigValue]],
        *,
        run_config: UserConfig | None = None,
        dropout: Dropout | None = None,
        progress: Callable[[int, int, int], None] | None = None,
    ) -> None:
        if not nodes:
            raise UsageError("expected at least one hospital in the grid, got none")
        self._app = app
        self._contexts = {
            FIRST_NODE_ID + index: Context(
                RUN_ID, FIRST_NODE_ID + index, dict(config), RecordDict(), dict(run_config or {})
            )
            for index, config in enumerate(nodes)
        }
        self._dropout = dropout
        self._progress = progress
        self._pending: dict[str, Message] = {}
        self._exchanges: dict[str, int] = {}
        self._exchange = 0
        self._next_id = 0
        self.client_seconds = 0.0
        """Seconds spent inside ClientApps so far, mods included."""
        self.set_run(Run.create_empty(RUN_ID))

    def set_run(self, run: Run) -> None:
        """Make ``run`` the one that messages belong to."""
        self._run = run
        TaskIdentity.run_id = run.run_id
        TaskIdentity.node_id = SUPERLINK_NODE_ID
        TaskIdentity.task_id = 0

    @property
    def run(self) -> Run:
        """The run this grid works in."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a new message from the ServerApp to ``dst_node_id``."""
        return Message(
            content=content, message_type=message_type, dst_node_id=dst_node_id, group_id=group_id, ttl=ttl
        )

    def get_node_ids(self) -> Iterable[int]:
        """Return the node id of every hospital, in partition order."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep ``messages`` until they are pulled; return the id given to each.

        Raises:
            UsageError: When a message goes to a node that does not exist; none of them is kept then.
        """
        batch = list(messages)
        unknown = sorted({m.metadata.dst_node_id for m in batch} - self._contexts.keys())
        if unknown:
            raise UsageError(f"expected messages for nodes {list(self._contexts)}, got one for {unknown[0]}")
        if batch:
            self._exchange += 1
        ids = []
        for message in batch:
            delivered = _own_copy(message, self._fresh_id())
            self._pending[delivered.metadata.message_id] = delivered
            self._exchanges[delivered.metadata.message_id] = self._exchange
            ids.append(delivered.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the ClientApps that ``message_ids`` wait for and return their replies."""
        return list(self._replies(message_ids, expires=None))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Deliver ``messages`` and return the replies, in the order of node ids.

        Args:
            messages: What the ServerApp sends, at most one message a node and exchange.
            timeout: Seconds after which no further hospital is asked; the one at work is not interrupted.

        Returns:
            A reply for each hospital that was asked; an error reply when it failed or had vanished.
        """
        expires = None if timeout is None else time.monotonic() + timeout
        # FedAvg samples in random order; floating point sums depend on the order, a repeated run must not.
        ordered = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        return list(self._replies(self.push_messages(ordered), expires))

    def _replies(self, message_ids: Iterable[str], expires: float | None) -> Iterator[Message]:
        pending = [(i, self._pending.pop(i)) for i in message_ids if i in self._pending]
        for answered, (message_id, message) in enumerate(pending, start=1):
            exchange = self._exchanges.pop(message_id)
            if expires is not None and time.monotonic() >= expires:
                continue
            reply = self._run_client(message, exchange)
            reply.metadata.__dict__["_message_id"] = self._fresh_id()
            if self._progress is not None:
                self._progress(exchange, answered, len(pending))
            yield reply

    def _run_client(self, message: Message, exchange: int) -> Message:
        node_id = message.metadata.dst_node_id
        if self._dropout is not None and self._dropout(exchange, node_id - FIRST_NODE_ID):
            return Message(Error(ErrorCode.NODE_UNAVAILABLE, "dropped"), reply_to=message)
        started = time.perf_counter()
        try:
            return self._app(message, self._contexts[node_id])
        except Exception as error:  # one hospital's fault, of whatever kind, is only its own
            # The exception's text stays here: it can hold data. Its type name is enough to find the cause.
            return Message(
                Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, type(error).__name__), reply_to=message
            )
        finally:
            self.client_seconds += time.perf_counter() - started

    def _fresh_id(self) -> str:
        self._next_id += 1
        return f"message-{self._next_id}"


class PromptGrid(Grid):
    """Another grid, asked for replies several times a second.

    Flower's grid of a deployment sleeps for three seconds between two looks, whatever a round takes.

    Args:
        inner: The grid that Flower hands to a ServerApp.
    """

    def __init__(self, inner: Grid) -> None:
        self._inner = inner

    def set_run(self, run: Run) -> None:
        """Make ``run`` the one that messages belong to."""
        self._inner.set_run(run)

    @property
    def run(self) -> Run:
        """The run this grid works in."""
        return self._inner.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a new message from the ServerApp to ``dst_node_id``."""
        return self._inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the node id of every hospital that is connected."""
        return self._inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send ``messages``; return the id given to each."""
        return self._inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there."""
        return self._inner.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send ``messages`` and return the replies.

        Args:
            messages: What the ServerApp sends.
            timeout: Seconds after which the replies that are there are returned; None waits for all.
        """
        expires = math.inf if timeout is None else time.monotonic() + timeout
        waiting = {message_id for message_id in self.push_messages(list(messages)) if message_id}
        replies: list[Message] = []
        while waiting and time.monotonic() < expires:
            fresh = list(self.pull_messages(waiting))
            replies += fresh
            waiting -= {reply.metadata.reply_to_message_id for reply in fresh}
            if waiting:
                time.sleep(PULL_S)
        return replies


def run_server_app(app: ServerApp, grid: InProcessGrid, run_config: UserConfig | None = None) -> Context:
    """Run ``app`` over ``grid`` as Flower's runtime would, and return the context it leaves.

    Args:
        app: A ServerApp with a main function.
        grid: The hospitals.
        run_config: The run config the ServerApp sees; empty when None.
    """
    context = Context(grid.run.run_id, SUPERLINK_NODE_ID, {}, RecordDict(), dict(run_config or {}))
    app(grid, context)
    return context


def _own_copy(message: Message, message_id: str) -> Message:
    """Return ``message`` with containers of its own.

    Strategies put one RecordDict into all messages of a round, so a ClientApp or mod that changes its
    message would change every hospital's. Arrays are immutable bytes and stay shared.
    """
    metadata = message.metadata
    copy = Message(
        RecordDict({name: record.copy() for name, record in message.content.items()}),
        dst_node_id=metadata.dst_node_id,
        message_type=metadata.message_type,
        ttl=metadata.ttl,
        group_id=metadata.group_id,
    )
    # Flower's SuperLink gives message ids; the metadata class has no setter for them.
    copy.metadata.__dict__["_message_id"] = message_id
    return copy
