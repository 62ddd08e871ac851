"""Ctrl-C and SIGTERM as one exception that unwinds the stack, and that nothing swallows for good.

Python runs a signal's handler between any two steps, so its exception can come up inside a library's
callback or finaliser, where exceptions are thrown away. It is therefore raised again every second, until
the stack is seen to unwind: from then on every context manager stops, undisturbed, what it had started.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN_S = 1.0


class Stopped(BaseException):
    """A signal asked the process to end; like KeyboardInterrupt no ``except Exception`` stops it.

    Attributes:
        exit_code: 128 plus the signal's number, as shells have it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise ``Stopped`` in the main thread on SIGINT and SIGTERM, and put the handlers back afterwards."""
    received: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGALRM:
            received.append(number)
        if _unwinding(sys.exception()):
            # The impatient second Ctrl-C: stopping takes seconds at most and is not broken off half-way.
            return
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        raise Stopped(received[0])

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = {number: signal.signal(number, stop) for number in numbers}
    hook = sys.unraisablehook
    sys.unraisablehook = lambda lost: None if lost.exc_type is Stopped else hook(lost)
    try:
        yield
    finally:
        if received:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            # A command that set its own, such as a party that ignores a second SIGTERM at its end, keeps it.
            if signal.getsignal(number) is stop:
                signal.signal(number, handler)
        sys.unraisablehook = hook


def _unwinding(error: BaseException | None) -> bool:
    """Say whether ``Stopped`` is on its way up: it is what is handled, or what that came from."""
    while error is not None:
        if isinstance(error, Stopped):
            return True
        error = error.__context__
    return False
