"""Who else can read or write a file: keys are their owner's, and so is what says whom to trust."""

from __future__ import annotations

import stat
from pathlib import Path

from fedsec.errors import TrustError, UsageError


def require_private(path: Path, holds: str) -> None:
    """Check that nobody but its owner can read or write a file that holds a secret.

    Args:
        path: The file.
        holds: What it holds, for the text.

    Raises:
        TrustError: Others can.
        UsageError: The file cannot be looked at.
    """
    mode = _mode(path)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise TrustError(
            f"expected {path} to be readable by its owner only, since it holds {holds}, got mode {mode:o}: "
            f"chmod 600 {path}"
        )


def require_own(path: Path) -> None:
    """Check that nobody but its owner can write a file that says whom to trust.

    Raises:
        TrustError: Others can.
        UsageError: The file cannot be looked at.
    """
    mode = _mode(path)
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise TrustError(
            f"expected {path} to be writable by its owner only, since it says whom to trust, got mode "
            f"{mode:o}: look through it, then chmod go-w {path}"
        )


def _mode(path: Path) -> int:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise UsageError(f"expected a file at {path}, which cannot be read: {error.strerror}") from error
