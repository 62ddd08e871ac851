"""Framed, metered channels under mutual TLS, their twin in memory, and requests over them.

================  ==========================================================================
``identity``      keys, certificates and roles; signatures
``cluster_file``  where the parties are and everyone's pinned keys
``party_config``  what one party process is told
``channel``       the one interface: labelled messages in order, with deadlines
``frames``        the bytes around a message; transcripts
``sockets``       channels over sockets, under TLS or plain
``jobs``          several messages at once without deadlock
``memory``        channels inside one process
``tls``           connecting and accepting under mutual TLS with pinned keys
``service``       requests and replies, as a server sees them
``calling``       the same as their sender sees them; ``bodies``: what they are made of
``several``       waiting for several connections and a bell
``server``        the accepting side, bounded in number, time and memory
``meter``         what passed, counted at the channel; rounds from message logs
``readings``      another process' meter
================  ==========================================================================
"""

from __future__ import annotations

from fedsec.transport.bodies import BodyReader
from fedsec.transport.calling import ErrorReply, call
from fedsec.transport.channel import Channel
from fedsec.transport.cluster_file import ClusterFile, Endpoint
from fedsec.transport.deadline import Deadline
from fedsec.transport.exchanging import exchange
from fedsec.transport.identity import Identity, Peer, Role, verify
from fedsec.transport.memory import MemoryChannel, memory_mesh
from fedsec.transport.meter import MessageRecord, Meter, bytes_of, rounds_of
from fedsec.transport.party_config import PartyConfig
from fedsec.transport.readings import MeterReading, ReadMeter, meter_route, read_meter
from fedsec.transport.server import Limits, Server, serve_channel
from fedsec.transport.service import Call, Reply, Route
from fedsec.transport.sockets import SocketChannel
from fedsec.transport.tls import connect

__all__ = [
    "BodyReader",
    "Call",
    "Channel",
    "ClusterFile",
    "Deadline",
    "Endpoint",
    "ErrorReply",
    "Identity",
    "Limits",
    "MemoryChannel",
    "MessageRecord",
    "Meter",
    "MeterReading",
    "PartyConfig",
    "Peer",
    "ReadMeter",
    "Reply",
    "Role",
    "Route",
    "Server",
    "SocketChannel",
    "bytes_of",
    "call",
    "connect",
    "exchange",
    "memory_mesh",
    "meter_route",
    "read_meter",
    "rounds_of",
    "serve_channel",
    "verify",
]
