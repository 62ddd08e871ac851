"""One communication round over several channels at once.

What fits into the socket buffers goes at once; what does not becomes a job, and all jobs of the round
progress together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from fedsec.transport.channel import Channel
from fedsec.transport.deadline import Deadline
from fedsec.transport.jobs import ReceiveJob, SendJob, progress
from fedsec.transport.sockets import SocketChannel

if TYPE_CHECKING:
    from typing_extensions import Buffer


def exchange(
    sends: Sequence[tuple[Channel, str, Buffer]],
    receives: Sequence[tuple[Channel, str, int]],
    deadline: Deadline,
) -> list[bytearray]:
    """Send and receive over several channels at the same time: one communication round.

    No order of sends and receives can deadlock, whatever the sizes of messages and socket buffers.

    Args:
        sends: Channel, label and payload of each message to send.
        receives: Channel, label and exact payload bytes of each message to receive.
        deadline: When to give up.

    Returns:
        The received payloads, in the order of ``receives``.

    Raises:
        ProtocolError: A peer sent something else, or another size.
        PeerLostError: A peer closed or broke its connection.
        DeadlineError: The messages were not through in time; names the peers waited for.
    """
    for channel, *_ in (*sends, *receives):
        if not isinstance(channel, SocketChannel):
            return _exchange_in_memory(sends, receives, deadline)
        if channel.broken:
            raise channel.lost(None)
    left = _start_all(cast("Sequence[tuple[SocketChannel, str, Buffer]]", sends))
    if not left and len(receives) == 1:
        # The usual round: all is sent, and one answer is to come.
        channel, label, size = receives[0]
        return [channel.receive_exactly(label, size, deadline)]
    incoming = [ReceiveJob(cast("SocketChannel", channel), label, size) for channel, label, size in receives]
    progress([*left, *incoming], deadline)
    return [job.message.payload() for job in incoming]


def _start_all(sends: Sequence[tuple[SocketChannel, str, Buffer]]) -> list[SendJob]:
    left: list[SendJob] = []
    try:
        for channel, label, body in sends:
            behind = bool(left) and any(job.channel is channel for job in left)
            job = channel.start(label, body, behind=behind)
            if job is not None:
                left.append(job)
    except BaseException:
        for job in left:
            job.channel.broken = True
        raise
    return left


def _exchange_in_memory(
    sends: Sequence[tuple[Channel, str, Buffer]],
    receives: Sequence[tuple[Channel, str, int]],
    deadline: Deadline,
) -> list[bytearray]:
    for channel, label, body in sends:
        channel.send(label, body, deadline)
    return [channel.receive_exactly(label, size, deadline) for channel, label, size in receives]
