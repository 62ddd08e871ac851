"""A party process that kills itself with SIGKILL at a named step of an aggregation, once told to.

Started by a cluster as ``python crashing_aggregator.py --config ... --listen-fd ...``. It is an ordinary
party but for its looks into the file ``crash`` beside its configuration, which holds one of :data:`STEPS`:
there it dies, and the file goes with it. Steps are numbered by their place in the list: every request of the
message table, and everything that is made durable, each before and after.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedsec.aggregation import aggregator, service
from fedsec.aggregation.parts import PartFolder, PartWriter
from fedsec.aggregation.store import Store
from fedsec.cli.main import main

AGREEMENT_S, COLLECT_S = 4.0, 6.0
REQUESTS = (
    "Announce", "Upload", "CloseUploads", "UploadList", "SetSignature", "CollectSum", "FinishRound",
    "GetReceipt", "Hello", "AbortRound",
)  # fmt: skip
DURABLE: tuple[tuple[type, tuple[str, ...]], ...] = (
    (Store, ("add_round", "add_upload", "add_statement", "add_event", "set_included", "set_state")),
    (Store, ("set_seen", "forget")),
    (PartFolder, ("create", "write_sum", "erase_parts", "erase")),
    (PartWriter, ("sync", "commit")),
)
STEPS = [
    f"{name} {when}"
    for name in (*REQUESTS, *(f"{owner.__name__}.{name}" for owner, names in DURABLE for name in names))
    for when in ("before", "after")
]


class Crash:
    """Looks at every step whether this is the one."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def at(self, step: str) -> None:
        try:
            wanted = self._file.read_text()
        except FileNotFoundError:
            return
        if wanted == step:
            self._file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, work: Callable[..., Any], name_of: Callable[..., str]) -> Callable[..., Any]:
        def crashing(*arguments: Any, **named: Any) -> Any:
            name = name_of(*arguments)
            self.at(f"{name} before")
            result = work(*arguments, **named)
            self.at(f"{name} after")
            return result

        return crashing


def prepare(crash: Crash) -> None:
    """Put the steps into the code, and shorten the deadlines of the agreement and of the collection."""
    handle = aggregator.Aggregator.handle
    name_of: Callable[..., str] = lambda _self, _peer, message, *_: type(message).__name__  # noqa: E731
    aggregator.Aggregator.handle = crash.around(handle, name_of)  # type: ignore[method-assign]
    for owner, names in DURABLE:
        for name in names:
            full = f"{owner.__name__}.{name}"
            setattr(owner, name, crash.around(getattr(owner, name), lambda *_, full=full: full))
    policy_from = service.policy_from
    service.policy_from = lambda *arguments: dataclasses.replace(
        policy_from(*arguments), agreement_s=AGREEMENT_S, collect_s=COLLECT_S
    )


if __name__ == "__main__":
    config = Path(sys.argv[sys.argv.index("--config") + 1])
    prepare(Crash(config.parent / "crash"))
    sys.exit(main(["party", *sys.argv[1:]]))
