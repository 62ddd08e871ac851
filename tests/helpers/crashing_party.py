"""A party process that kills itself with SIGKILL at a numbered step of charge and answer, once told to.

Started by a cluster as ``python crashing_party.py --config ... --listen-fd ...``. It is an ordinary party but
for its looks into the file ``crash`` beside its configuration: the number in it is the step at which it dies,
and the file goes with it. The steps, in the order in which a batch passes them:

1. before the charge  2. its rows are written, not committed  3. committed  4. computed
5. the answer is about to be handed out  6. about to be sent  7. sent
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedsec.cli.main import main
from fedsec.serving import ledger, loop, waiting
from fedsec.transport import hosting, service

STEPS = range(1, 8)


class Crash:
    """Looks at every step whether this is the one."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def at(self, step: int) -> None:
        try:
            wanted = int(self._file.read_text() or 0)
        except FileNotFoundError:
            return
        if wanted == step:
            self._file.unlink()
            # Whatever other threads would do wrongly meanwhile, they get the time to do.
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: Any, name: str, before: int | None = None, after: int | None = None) -> None:
        """Let a function crash before or after it has done its work."""
        work: Callable[..., Any] = getattr(owner, name)

        def crashing(*args: Any, **named: Any) -> Any:
            if before is not None:
                self.at(before)
            result = work(*args, **named)
            if after is not None:
                self.at(after)
            return result

        setattr(owner, name, crashing)


class Database:
    """A connection to SQLite that may crash around a commit of charges."""

    def __init__(self, db: Any, crash: Crash) -> None:
        self._db = db
        self._crash = crash
        self._charging = False

    def execute(self, statement: str, *values: Any) -> Any:
        # One charge is a transaction by itself.
        committing = statement.startswith("INSERT INTO charge") or (statement == "COMMIT" and self._charging)
        if committing:
            self._crash.at(2)
        result = self._db.execute(statement, *values)
        if committing:
            self._charging = False
            self._crash.at(3)
        return result

    def executemany(self, statement: str, rows: Any) -> Any:
        self._charging = True
        return self._db.executemany(statement, rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


def prepare(crash: Crash) -> None:
    """Put the steps into the code."""
    crash.around(ledger.Ledger, "charge", before=1)
    opened = ledger.Ledger.__init__

    def open_ledger(self: Any, path: Path) -> None:
        opened(self, path)
        self._db = Database(self._db, crash)

    ledger.Ledger.__init__ = open_ledger  # type: ignore[method-assign]
    crash.around(loop.ServiceLoop, "_compute", after=4)
    crash.around(waiting.WaitingRoom, "resolve", before=5)
    send = service.send_outcome

    def send_outcome(channel: Any, tag: str, *rest: Any) -> Any:
        if tag == "query":
            crash.at(6)
        sent = send(channel, tag, *rest)
        if tag == "query":
            crash.at(7)
        return sent

    # An answer leaves from a connection's own thread, or from the compute thread.
    service.send_outcome = send_outcome
    crash.around(hosting.Guests, "answer", before=6, after=7)


if __name__ == "__main__":
    config = Path(sys.argv[sys.argv.index("--config") + 1])
    prepare(Crash(config.parent / "crash"))
    sys.exit(main(["party", *sys.argv[1:]]))
