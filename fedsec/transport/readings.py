"""Reading another process' channel meter: the numbers in a run's table come from where the bytes passed."""

from __future__ import annotations

import msgspec

from fedsec.transport.calling import call
from fedsec.transport.channel import Channel
from fedsec.transport.deadline import Deadline
from fedsec.transport.identity import Role
from fedsec.transport.meter import Counts, Meter
from fedsec.transport.service import Call, Reply, Route


class ReadMeter(msgspec.Struct, frozen=True, tag="read_meter"):
    """Ask a process what has passed its channels so far."""


class MeterReading(msgspec.Struct, frozen=True, tag="meter_reading"):
    """Sizes and numbers only.

    Attributes:
        sent_bytes: Payload bytes sent.
        received_bytes: Payload bytes received.
        messages: Messages in both directions.
        by_label: By kind of message: messages sent, bytes sent, messages received, bytes received.
        by_peer: The same by name of the other end; empty for the server, which is not to know who asks for
            predictions and how often.
    """

    sent_bytes: int
    received_bytes: int
    messages: int
    by_label: dict[str, Counts]
    by_peer: dict[str, Counts]


def meter_route(meter: Meter) -> Route:
    """Return the route by which the server and the owner read a party's meter."""

    def answer(request: Call) -> Reply:
        by_peer = meter.by_peer() if request.peer.role is Role.OWNER else {}
        return Reply(
            MeterReading(meter.sent_bytes, meter.received_bytes, meter.messages, meter.by_label(), by_peer)
        )

    return Route(ReadMeter, frozenset({Role.SERVER, Role.OWNER}), answer)


def read_meter(channel: Channel, deadline: Deadline) -> MeterReading:
    """Ask the other end for its meter; see :func:`fedsec.transport.service.call` for errors."""
    return call(channel, ReadMeter(), MeterReading, deadline=deadline)[0]
