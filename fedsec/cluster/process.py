"""A child process: started with a log of its own, watched, and ended for certain; a party is one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedsec.errors import PeerLostError
from fedsec.transport.deadline import Deadline

_LOOK_S = 0.02
_TAIL_LINES = 12


class ChildProcess:
    """A process that runs as our child.

    Its standard input is a pipe that nobody writes to: when we die, however that happens, the child reads
    its end and ends too, if it is one that looks. It runs in a session of its own, so that Ctrl-C reaches us
    alone and we end the children in order.

    Attributes:
        name: What errors call it.
        log: Gets everything that it prints.
    """

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def run(
        self, command: Sequence[str], *, environment: Mapping[str, str] | None = None, descriptor: int = -1
    ) -> None:
        """Start the child.

        Args:
            command: The command line.
            environment: Its environment; ours when None.
            descriptor: A file descriptor that it inherits under the same number; none when -1.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=() if descriptor < 0 else (descriptor,),
                start_new_session=True,
                env={**(os.environ if environment is None else environment), "PYTHONUNBUFFERED": "1"},
            )

    @property
    def pid(self) -> int | None:
        """The child's process id, if it was started."""
        return None if self._process is None else self._process.pid

    def exit_code(self) -> int | None:
        """Return the exit code, negative for a signal, or None while it runs or before it was started."""
        return None if self._process is None else self._process.poll()

    def check(self) -> None:
        """Raise if the process has ended.

        Raises:
            PeerLostError: Names the party, how it ended and the end of its log.
        """
        code = self.exit_code()
        if code is not None:
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise PeerLostError(
                f"expected {self.name} to run; it ended with {how}. End of {self.log}:\n{self.tail()}"
            )

    def tail(self) -> str:
        """Return the last lines that it printed since its start."""
        lines = self._printed().decode(errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-_TAIL_LINES:]) or "  (empty)"

    def ask_to_end(self) -> None:
        """Send SIGTERM, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def end(self, patience_s: float) -> int | None:
        """Wait for the end, and kill the process if it does not come in time.

        Args:
            patience_s: Seconds to wait before SIGKILL.

        Returns:
            The exit code, negative for a signal; None if it was never started.
        """
        process = self._process
        if process is None:
            return None
        try:
            process.wait(max(patience_s, 0.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        finally:
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()
        return process.returncode

    def _printed(self) -> bytes:
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read()


class PartyProcess(ChildProcess):
    """A party, which gets its listening socket from us: no other process can take the port in between."""

    def start(self, command: Sequence[str], listener: socket.socket) -> None:
        """Start the child with ``--listen-fd`` and ``--watch-stdin``; our copy of the socket is closed.

        Args:
            command: The command line without these two options.
            listener: The listening socket it takes over.
        """
        descriptor = listener.fileno()
        with listener:
            self.run([*command, "--listen-fd", str(descriptor), "--watch-stdin"], descriptor=descriptor)

    def wait_ready(self, deadline: Deadline) -> None:
        """Wait for the line ``{"ready": <port>}`` that says it accepts connections.

        Raises:
            PeerLostError: It ended before; the text holds the end of its log.
            DeadlineError: It did not get ready in time.
        """
        while not self._said_ready():
            self.check()
            deadline.remaining(f"{self.name} (its log is {self.log})")
            time.sleep(_LOOK_S)

    def _said_ready(self) -> bool:
        for line in self._printed().splitlines(keepends=True):
            if line.startswith(b"{") and line.endswith(b"\n"):
                with contextlib.suppress(ValueError):
                    if "ready" in json.loads(line):
                        return True
        return False
