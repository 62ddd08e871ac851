"""On which machine something was measured."""

from __future__ import annotations

import os
import sys
import time
from typing import Any


def machine() -> dict[str, Any]:
    """Return what JSON can hold."""
    return {"cpus": os.cpu_count(), "python": sys.version.split()[0], "date": time.strftime("%Y-%m-%d")}
