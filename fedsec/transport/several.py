"""Waiting for several connections at once, and for a bell that other threads of the process ring."""

from __future__ import annotations

import contextlib
import math
import os
import select
from collections.abc import Sequence
from typing import TypeVar

from fedsec.transport.channel import Channel
from fedsec.transport.sockets import SocketChannel

C = TypeVar("C", bound=Channel)


class Bell:
    """Wakes the one thread that waits for it; rung from any thread, also before the wait begins."""

    def __init__(self) -> None:
        self._ear, self._clapper = os.pipe()
        os.set_blocking(self._ear, False)
        os.set_blocking(self._clapper, False)

    def __del__(self) -> None:
        # Not earlier: a thread that still rings must not write into a descriptor that is another's by then.
        os.close(self._ear)
        os.close(self._clapper)

    def fileno(self) -> int:
        """Return the descriptor that is readable while the bell rings."""
        return self._ear

    def ring(self) -> None:
        """Wake whoever waits now, or next."""
        # A full pipe rings already.
        with contextlib.suppress(BlockingIOError):
            os.write(self._clapper, b"\0")

    def hush(self) -> None:
        """Let the bell be silent until it is rung again."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._ear, 65536)


def wait_any(channels: Sequence[C], seconds: float, bell: Bell | None = None) -> list[C]:
    """Wait until something has come on one of the channels, or the bell rings; nothing is taken.

    Args:
        channels: Connections over sockets.
        seconds: Longest wait.
        bell: Ends the wait, too, and is silent afterwards.

    Returns:
        The channels on which something has come: a message, or the connection's end. None of them if the
        time is over, or if only the bell rang.

    Raises:
        TypeError: A channel has no socket.
    """
    poll = select.poll()
    by_descriptor: dict[int, C] = {}
    for channel in channels:
        if not isinstance(channel, SocketChannel):
            raise TypeError(f"expected a channel over a socket, got {channel!r}")
        if channel.broken or channel.buffered():
            return [channel]
        by_descriptor[channel.fileno()] = channel
    for descriptor in by_descriptor:
        poll.register(descriptor, select.POLLIN)
    if bell is not None:
        poll.register(bell, select.POLLIN)
    events = poll.poll(max(0, math.ceil(seconds * 1000)))
    if bell is not None and any(descriptor == bell.fileno() for descriptor, _ in events):
        bell.hush()
    return [by_descriptor[descriptor] for descriptor, _ in events if descriptor in by_descriptor]
