"""How much memory a process ever had."""

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
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else None
