"""TensorFlow's start-up: its notices kept off stderr, and signals kept out of it.

Some are written by native code before it reads any log level, straight to file descriptor 2.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator

# "I0000 00:00:1..." is an informational line of native code; the first line announces those.
_NOISE = (b"I0000 ", b"WARNING: All log messages before absl::InitializeLog()")


def set_environment() -> None:
    """Ask TensorFlow and Keras for errors only, and Keras for TensorFlow; what the user has set stays."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")


@contextlib.contextmanager
def without_notices() -> Iterator[None]:
    """Hold back what is written to stderr inside, and write all but the known notices afterwards."""
    with contextlib.ExitStack() as stack:
        try:
            kept = os.dup(2)
        except OSError:
            # No stderr (a detached process): nothing to keep clean.
            yield
            return
        stack.callback(os.close, kept)
        held = stack.enter_context(tempfile.TemporaryFile())
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            held.seek(0)
            lines = [line for line in held if not line.startswith(_NOISE)]
            os.write(2, b"".join(lines))


@contextlib.contextmanager
def without_signals() -> Iterator[None]:
    """Let signals to this thread wait until the end.

    Where a handler raises, as ours for Ctrl-C does, the exception may come up inside native start-up code
    that lets none through: the process would abort instead of stopping what it had started.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGALRM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
