"""The options that several commands have, each with one text."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Declare ``--set``."""
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override one value, e.g. training.rounds=3; may be repeated",
    )


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Declare ``--runs``."""
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="where run folders go; runs by default"
    )


def add_final_json(parser: argparse.ArgumentParser) -> None:
    """Declare ``--json`` of a command that takes its time."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object at the end and nothing else"
    )
