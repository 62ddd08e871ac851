"""Framed, metered channels under mutual TLS, their twin in memory, and requests over them.

================  ==========================================================================
``identity``      keys, certificates and roles; signatures
``cluster_file``  where the parties are and everyone's pinned keys
``channel``       the one interface: labelled messages in order, with deadlines
``memory``        channels inside one process
``meter``         what passed, counted at the channel; rounds from message logs
================  ==========================================================================
"""

from __future__ import annotations

from fedsec.transport.channel import Channel
from fedsec.transport.cluster_file import ClusterFile, Endpoint
from fedsec.transport.deadline import Deadline
from fedsec.transport.identity import Identity, Peer, Role, verify
from fedsec.transport.memory import MemoryChannel, memory_mesh
from fedsec.transport.meter import MessageRecord, Meter, bytes_of, rounds_of
from fedsec.transport.party_config import PartyConfig

__all__ = [
    "Channel",
    "ClusterFile",
    "Deadline",
    "Endpoint",
    "Identity",
    "MemoryChannel",
    "MessageRecord",
    "Meter",
    "PartyConfig",
    "Peer",
    "Role",
    "bytes_of",
    "memory_mesh",
    "rounds_of",
    "verify",
]
