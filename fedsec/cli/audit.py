"""``fedsec audit``: attacks on a finished run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fedsec.cli.options import add_final_json
from fedsec.cli.output import print_json
from fedsec.lab.progress import PlainReporter, Reporter


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="the folder of a finished `fedsec run`")
    parser.add_argument(
        "--against",
        type=Path,
        nargs="+",
        default=[],
        metavar="OTHER_RUN",
        help="further runs, shown beside the first: the same scenario with differential privacy, say",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=None,
        metavar="PART",
        help="some parts instead of all; a wrong one is answered with all there are",
    )
    add_final_json(parser)


def run(options: argparse.Namespace) -> int:
    """Audit and print the tables."""
    # Loading TensorFlow takes seconds, which --help should not have to wait for.
    from fedsec.audit.report import print_audit  # noqa: PLC0415 - as said above
    from fedsec.audit.run import audit_run  # noqa: PLC0415 - as said above

    with Reporter() if options.json else PlainReporter(sys.stderr) as progress:
        found = audit_run(options.folder, options.against, parts=options.only, reporter=progress)
    if options.json:
        print_json(found)
    else:
        print_audit(found)
    return 0
