"""``fedsec party``: one party process, for a launcher or for a host of its own."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedsec.party.main import run as run_party
from fedsec.transport.party_config import PartyConfig


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the party's TOML file")
    parser.add_argument(
        "--listen-fd", type=int, metavar="N", help="take the listening socket from this file descriptor"
    )
    parser.add_argument(
        "--watch-stdin", action="store_true", help="end when standard input closes: the launcher is gone"
    )


def run(options: argparse.Namespace) -> int:
    """Serve until a signal, or until the launcher is gone."""
    config = PartyConfig.load(options.config)
    return run_party(config, listen_fd=options.listen_fd, watch_stdin=options.watch_stdin)
