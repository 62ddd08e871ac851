"""A point in time after which a wait ends with the name of whom it waited for."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from fedsec.errors import DeadlineError


@dataclass(frozen=True, slots=True)
class Deadline:
    """A fixed moment on the monotonic clock, handed down through every wait of one operation.

    Attributes:
        at: Seconds on ``time.monotonic()``.
        seconds: What was allowed in total, for the error text.
    """

    at: float
    seconds: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Return the deadline ``seconds`` from now."""
        return cls(time.monotonic() + seconds, seconds)

    @property
    def passed(self) -> bool:
        """Whether the moment is behind us."""
        return time.monotonic() >= self.at

    def remaining(self, who: str) -> float:
        """Return the seconds left, always positive.

        Args:
            who: Whom the caller waits for; named in the error.

        Raises:
            DeadlineError: The moment has passed.
        """
        left = self.at - time.monotonic()
        if left <= 0:
            raise DeadlineError(
                f"expected an answer from {who} within {self.seconds:g} s and got none; "
                f"the wait was given up: look whether {who} runs and is reachable"
            )
        return left

    def poll_ms(self, who: str) -> int:
        """Return what is left in whole milliseconds, rounded up, as ``select.poll`` takes it.

        Args:
            who: Whom the caller waits for; named in the error.

        Raises:
            DeadlineError: The moment has passed.
        """
        return math.ceil(self.remaining(who) * 1000)
