"""How much memory a process has, and ever had."""

from __future__ import annotations

import re
from pathlib import Path


def peak_memory(process: int | str = "self") -> int | None:
    """Return the most memory that a process ever had resident, in bytes.

    Args:
        process: Its id, or ``self``.

    Returns:
        The kernel's high-water mark; None where there is none to read, as on macOS.
    """
    return _from_status(process, "VmHWM")


def resident_memory(process: int | str = "self") -> int | None:
    """Return the memory that a process has resident now, in bytes; otherwise as :func:`peak_memory`."""
    return _from_status(process, "VmRSS")


def _from_status(process: int | str, field: str) -> int | None:
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else None
