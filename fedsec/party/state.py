"""The folder of a party's durable state: private, and used by one process at a time."""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack
from pathlib import Path

from fedsec.errors import StateError
from fedsec.transport.party_config import STATE_LOCK


def claim_state(folder: Path, stack: ExitStack) -> None:
    """Make the folder if it is missing and hold it until the stack is left.

    Args:
        folder: the party's state.
        stack: releases the folder; a process that dies releases it too.

    Raises:
        StateError: others can read the folder, it cannot be written, or another process holds it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = folder.stat().st_mode & 0o777
        lock = os.open(folder / STATE_LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise StateError(f"the state folder {folder} cannot be used: {error.strerror}") from error
    stack.callback(os.close, lock)
    if mode & 0o077:
        raise StateError(
            f"the state folder {folder} has mode {mode:o}: others must not see it; chmod 700 {folder}"
        )
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise StateError(
            f"the state folder {folder} is in use by another process: two parties with one ledger would "
            "answer more than was allowed"
        ) from error
