"""Several commands of Flower's CLI in one process, since starting it takes a second each.

``python -m fedsec.federation.flower_cli FILE`` runs the commands in FILE, a JSON list of argument lists.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from flwr.cli.app import app


def main() -> int:
    """Run the commands until one fails; return the last exit code."""
    for command in json.loads(Path(sys.argv[1]).read_text()):
        try:
            app(command, standalone_mode=False)
        except click.ClickException as error:
            error.show()
            return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
