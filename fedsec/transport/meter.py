"""Counting at the channel: bytes and messages by kind, and message logs that give rounds.

Every byte a process says it sent was counted here, at the place where frames leave and enter, and
never by the protocol that caused them.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedsec.errors import ProtocolError

Counts = tuple[int, int, int, int]
"""Messages sent, bytes sent, messages received, bytes received."""


@dataclass(frozen=True, slots=True)
class MessageRecord:
    """One message as one end saw it.

    Attributes:
        event: ``"send"`` or ``"receive"``.
        sender: Name of the sending end.
        receiver: Name of the receiving end.
        label: The step's label.
        sequence: Number of the message on its link and direction, from 0.
        size: Payload bytes.
    """

    event: Literal["send", "receive"]
    sender: str
    receiver: str
    label: str
    sequence: int
    size: int


def kind_of(label: str) -> str:
    """Return the part of a label before its first ``/``: the kind by which messages are counted."""
    return label.partition("/")[0]


class Meter:
    """Payload bytes and messages in both directions; one meter may serve many channels and threads.

    Bytes are payload bytes, before framing and TLS.

    Args:
        logging: Also keep a :class:`MessageRecord` a message, in the order of events. For tests and
            simulations: the log grows without bound.
    """

    def __init__(self, *, logging: bool = False) -> None:
        self.log: list[MessageRecord] = []
        self._logging = logging
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])

    def sent(self, sender: str, receiver: str, label: str, sequence: int, size: int) -> None:
        """Count one message that left."""
        with self._lock:
            counts = self._counts[receiver, label.partition("/")[0]]
            counts[0] += 1
            counts[1] += size
        if self._logging:
            self.log.append(MessageRecord("send", sender, receiver, label, sequence, size))

    def received(self, sender: str, receiver: str, label: str, sequence: int, size: int) -> None:
        """Count one message that arrived whole."""
        with self._lock:
            counts = self._counts[sender, label.partition("/")[0]]
            counts[2] += 1
            counts[3] += size
        if self._logging:
            self.log.append(MessageRecord("receive", sender, receiver, label, sequence, size))

    @property
    def sent_bytes(self) -> int:
        """Payload bytes sent."""
        return self._total()[1]

    @property
    def received_bytes(self) -> int:
        """Payload bytes received."""
        return self._total()[3]

    @property
    def messages(self) -> int:
        """Messages in both directions."""
        total = self._total()
        return total[0] + total[2]

    def by_label(self) -> dict[str, Counts]:
        """Return the counts by kind of label, over all peers."""
        return self._grouped(1)

    def by_peer(self) -> dict[str, Counts]:
        """Return the counts by name of the other end, over all labels."""
        return self._grouped(0)

    def snapshot(self) -> dict[str, Any]:
        """Return all counts as values that JSON can hold."""
        sent, sent_bytes, received, received_bytes = self._total()
        return {
            "sent_bytes": sent_bytes,
            "received_bytes": received_bytes,
            "messages": sent + received,
            "by_label": {kind: list(counts) for kind, counts in self.by_label().items()},
            "by_peer": {peer: list(counts) for peer, counts in self.by_peer().items()},
        }

    def _total(self) -> Counts:
        with self._lock:
            rows = [tuple(counts) for counts in self._counts.values()]
        return _sum_of(rows)

    def _grouped(self, position: int) -> dict[str, Counts]:
        groups: dict[str, list[tuple[int, ...]]] = defaultdict(list)
        with self._lock:
            for key, counts in self._counts.items():
                groups[key[position]].append(tuple(counts))
        return {name: _sum_of(rows) for name, rows in sorted(groups.items())}


def _sum_of(rows: Sequence[tuple[int, ...]]) -> Counts:
    columns = [sum(column) for column in zip(*rows, strict=True)] or [0, 0, 0, 0]
    return columns[0], columns[1], columns[2], columns[3]


def rounds_of(logs: Mapping[str, Sequence[MessageRecord]]) -> int:
    """Return the number of communication rounds: the longest chain of messages that depend on each other.

    A message depends on everything its sender had received before it. Messages on their way at the
    same time count once.

    Args:
        logs: The log of each end, in the order of its events.

    Raises:
        ProtocolError: A log holds a message as received that no log holds as sent.
    """
    depth = dict.fromkeys(logs, 0)
    position = dict.fromkeys(logs, 0)
    on_the_way: dict[tuple[str, str, str, int], deque[int]] = defaultdict(deque)
    longest, moved = 0, True
    while moved:
        moved = False
        for name, log in logs.items():
            while position[name] < len(log):
                record = log[position[name]]
                key = (record.sender, record.receiver, record.label, record.sequence)
                if record.event == "send":
                    on_the_way[key].append(depth[name] + 1)
                    longest = max(longest, depth[name] + 1)
                elif on_the_way[key]:
                    depth[name] = max(depth[name], on_the_way[key].popleft())
                else:
                    break
                position[name] += 1
                moved = True
    for name, log in logs.items():
        if position[name] < len(log):
            record = log[position[name]]
            raise ProtocolError(
                f"the log of {name} holds message {record.sequence} ({record.label}) from {record.sender} as "
                "received, and no log holds it as sent; pass the logs of all ends"
            )
    return longest


def bytes_of(logs: Mapping[str, Sequence[MessageRecord]]) -> dict[str, int]:
    """Return the payload bytes each end sent, by name."""
    return {name: sum(record.size for record in log if record.event == "send") for name, log in logs.items()}
