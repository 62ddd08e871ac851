"""What everything durable here does with folders, and how a disk that fails is told."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from fedsec.errors import StateError


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; those of its files' bytes are synced by themselves."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def disk_errors(state: str) -> Iterator[None]:
    """Turn what the disk refuses into an error that says what could not be read or written.

    Args:
        state: What it is, such as "the sealed state".

    Raises:
        StateError: The disk refused.
    """
    try:
        yield
    except OSError as error:
        raise StateError(f"{state} cannot be read or written: {error.strerror}") from error
