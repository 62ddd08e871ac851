"""What the commands share when they print."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fedsec.lab.progress import Reporter, reporter_for_terminal


def print_json(values: Mapping[str, Any]) -> None:
    """Print one JSON object on one line."""
    print(json.dumps(values), flush=True)


def reporter(*, silent: bool) -> Reporter:
    """Return bars or lines for a person, nothing for a machine."""
    return Reporter() if silent else reporter_for_terminal()
