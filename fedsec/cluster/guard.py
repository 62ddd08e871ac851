"""Run a program, and let nothing of it outlive us: ``python -m fedsec.cluster.guard PROGRAM ARGUMENT ...``.

Programs that start others, and those yet others in sessions of their own, cannot be ended by ending the
first. The guard is their nearest living ancestor: what loses its parent becomes its child, so that at the end
every descendant can be found and ended. The end comes when the program ends, at SIGTERM or SIGINT, or when
standard input closes: whoever started the guard is gone then, however that happened.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

PATIENCE_S = 4.0
"""Seconds between SIGTERM for the program and SIGKILL for whatever is left of it."""
_LOOK_S = 0.1
_PR_SET_CHILD_SUBREAPER = 36


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code, 128 plus the number when a signal ended it.

    Args:
        arguments: The program and its arguments; those of the process by default.
    """
    command = list(sys.argv[1:] if arguments is None else arguments)
    asked: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    _adopt_orphans()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as program:
        while program.poll() is None and not asked and not _left_alone():
            time.sleep(_LOOK_S)
        program.terminate()
        try:
            code = program.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            program.kill()
            code = program.wait()
        _kill_descendants()
    return 128 - code if code < 0 else code


def _adopt_orphans() -> None:
    """Become the parent of descendants that lose theirs; only Linux knows how."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _left_alone() -> bool:
    """Say whether standard input has closed."""
    readable, _, _ = select.select([sys.stdin.fileno()], [], [], 0)
    return bool(readable) and not os.read(sys.stdin.fileno(), 1024)


def _kill_descendants() -> None:
    """Kill, again and again, until there are none: one may have started another in between."""
    own = os.getpid()
    while found := descendants(own):
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(_LOOK_S / 10)


def descendants(root: int) -> list[int]:
    """Return the process ids of all living descendants of a process, from ``/proc``; none without it.

    Args:
        root: The process whose descendants are asked for.
    """
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name, in brackets, may hold anything.
            state, parent = entry.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(entry.parent.name)] = int(parent)
    found = [root]
    for ancestor in found:
        found += [pid for pid, parent in parents.items() if parent == ancestor]
    return found[1:]


if __name__ == "__main__":
    sys.exit(main())
