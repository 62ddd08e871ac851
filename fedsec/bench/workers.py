"""Processes beside the parties that do one thing when they are told: a line of JSON in, a line out."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from fedsec.errors import FedsecError, PeerLostError, ProtocolError, by_code
from fedsec.transport import Deadline

_ANSWER_S = 300.0
_END_S = 5.0
_READ_BYTES = 65536


class Worker:
    """A child process that runs a module of ours and answers what it is asked.

    Args:
        module: A module whose main calls :func:`answer_requests`.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        self._read = bytearray()
        # In a session of its own: Ctrl-C reaches us alone, and the child ends with us.
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def ask(self, operation: str, *, timeout_s: float = _ANSWER_S, **arguments: Any) -> Any:
        """Let the child do an operation and return what it answers; see :meth:`answer`."""
        self.tell(operation, **arguments)
        return self.answer(timeout_s)

    def tell(self, operation: str, **arguments: Any) -> None:
        """Let the child begin an operation.

        Raises:
            PeerLostError: It has ended.
        """
        stdin = self._process.stdin
        if stdin is None:
            raise PeerLostError(f"{self._module} was started without a pipe")
        try:
            stdin.write(json.dumps({"operation": operation, "arguments": arguments}).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError as error:
            raise PeerLostError(f"expected {self._module} to run; it has ended") from error

    def answer(self, timeout_s: float = _ANSWER_S) -> Any:
        """Return what the child answers.

        Raises:
            PeerLostError: It has ended.
            DeadlineError: It did not answer in time.
            FedsecError: What it raised.
        """
        answer = json.loads(self._line(Deadline.after(timeout_s)))
        if "error" in answer:
            raise by_code(answer["error"])(answer["text"])
        return answer["result"]

    def _line(self, deadline: Deadline) -> bytes:
        stdout = self._process.stdout
        if stdout is None:
            raise PeerLostError(f"{self._module} was started without a pipe")
        while b"\n" not in self._read:
            ready, _, _ = select.select([stdout], [], [], deadline.remaining(self._module))
            if ready:
                piece = os.read(stdout.fileno(), _READ_BYTES)
                if not piece:
                    raise PeerLostError(f"expected an answer of {self._module}; it has ended: see above why")
                self._read += piece
        line, _, rest = bytes(self._read).partition(b"\n")
        self._read = bytearray(rest)
        return line

    def close(self) -> None:
        """End the child."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                # What could not be written to a child that is gone is written when the pipe closes.
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def answer_requests(operations: Mapping[str, Callable[..., Any]]) -> None:
    """Do what standard input asks, a line of JSON each, until it ends.

    Args:
        operations: By name; each takes and returns what JSON can hold.
    """
    # Libraries that print must not print into our answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # Who has asked may be gone, after Ctrl-C for example: then nobody is there to be told.
    with contextlib.suppress(BrokenPipeError), answers:
        for line in sys.stdin:
            answers.write(json.dumps(_answer(operations, json.loads(line))) + "\n")
            answers.flush()


def _answer(operations: Mapping[str, Callable[..., Any]], asked: Mapping[str, Any]) -> dict[str, Any]:
    operation = operations.get(asked["operation"])
    try:
        if operation is None:
            raise ProtocolError(f"expected one of {', '.join(operations)}, got {asked['operation']!r}")
        return {"result": operation(**asked["arguments"])}
    except FedsecError as error:
        return {"error": error.code, "text": str(error)}
