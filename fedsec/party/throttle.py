"""How much of a party's log its peers may fill: some of what they cause is written, a flood is counted.

The log usually lies on the disk of the ledger: who fills it with refused requests ends the service for all.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from fedsec.transport import Peer

BURST = 50
"""Lines that a peer may cause at once."""
EVERY_S = 10.0
"""After those, one line in so many seconds: 2.6 MB a day and certificate."""
MOST_PEERS = 1000
"""Peers that are remembered; the one that was met first is forgotten, and may write as many again."""


@dataclass(slots=True)
class _Allowance:
    """What one peer may still write.

    Attributes:
        lines: how many lines.
        at: when that was counted, in seconds.
        left_out: lines left out since the last one that was written.
    """

    lines: float
    at: float
    left_out: int = 0


class Throttle(logging.Filter):
    """Passes a few lines of each peer; all who never got through their handshake are one peer.

    Args:
        clock: never runs back, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._allowances: dict[str, _Allowance] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line is written; the first one after a gap says how many are missing."""
        values = record.args if isinstance(record.args, tuple) else ()
        who = next((value.fingerprint for value in values if isinstance(value, Peer)), "")
        with self._lock:
            allowance = self._renewed(who)
            if allowance.lines < 1:
                allowance.left_out += 1
                return False
            allowance.lines -= 1
            left_out, allowance.left_out = allowance.left_out, 0
        if left_out:
            record.msg = f"{record.msg} (after {left_out} lines that were left out)"
        return True

    def _renewed(self, who: str) -> _Allowance:
        """Return what a peer may write now."""
        now = self._clock()
        if who not in self._allowances and len(self._allowances) >= MOST_PEERS:
            del self._allowances[next(iter(self._allowances))]
        allowance = self._allowances.setdefault(who, _Allowance(BURST, now))
        allowance.lines = min(BURST, allowance.lines + (now - allowance.at) / EVERY_S)
        allowance.at = now
        return allowance
