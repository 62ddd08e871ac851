"""``fedsec verify-receipt``: was this hospital's upload counted, once, in which round, over what?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fedsec.aggregation.receipt_file import ReceiptFile, ReceiptReport, verify_receipt
from fedsec.aggregation.trust import TrustFile
from fedsec.cli.output import print_json

_SHOWN = 8  # bytes of a digest or key: enough to compare by eye


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = (
        "Nothing is asked over the network. Exit code 0: every part of every receipt fits, the upload was "
        "counted. 1: there are acknowledgements, and no proof of inclusion yet. 2: a file is no receipt or "
        "no trust file. 4: a part of a receipt does not fit; the text says which."
    )
    parser.add_argument(
        "receipts",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="a receipt: RUN/keys/state/HOSPITAL/receipts/..., else in the state folder of the trust file",
    )
    parser.add_argument(
        "--trust",
        type=Path,
        metavar="FILE",
        help="the hospital's trust file: keys and limits are compared with it, not with the receipt's own",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def run(options: argparse.Namespace) -> int:
    """Check the receipts, the first that does not fit ends it with an error."""
    trust = None if options.trust is None else TrustFile.load(options.trust)
    found = []
    for path in options.receipts:
        report = verify_receipt(ReceiptFile.load(path), trust)
        found.append({"file": str(path), **_values(report)})
        if not options.json:
            _tell(path, report)
    if options.json:
        print_json({"receipts": found})
    return 0


def _values(report: ReceiptReport) -> dict[str, Any]:
    announcement = report.announcement
    return {
        "hospital": report.hospital,
        "session": announcement.session.hex(),
        "round": announcement.round,
        "phase": announcement.phase,
        "counted": 1,
        "included": report.included,
        "upload_id": report.upload_id.hex(),
        "announcement": announcement.digest.hex(),
        "model": [one.hex() for one in announcement.array_digests],
        "minimum_cohort": announcement.minimum_cohort,
        "aggregators": [member.name for member in announcement.aggregators],
        "acknowledged": list(report.acknowledged),
        "keys_compared": report.keys_compared,
    }


def _tell(path: Path, report: ReceiptReport) -> None:
    announcement = report.announcement
    signers = ", ".join(member.name for member in announcement.aggregators)
    server = announcement.recipient
    keys = "compared with the trust file" if report.keys_compared else "the receipt's own; see --trust"
    lines = (
        f"{report.hospital} was counted once in {announcement.id}, in a sum over {report.included} hospitals",
        f"  announcement    {announcement.digest[:_SHOWN].hex()}, signed by {server.name}",
        f"  over            {len(announcement.arrays)} arrays and {len(announcement.config)} config keys",
        f"  upload          {report.upload_id[:_SHOWN].hex()}, signed by {report.hospital}",
        f"  acknowledged by {', '.join(report.acknowledged) or 'nobody'}",
        f"  included set    signed by {signers}",
        f"  keys            {keys}",
        f"  file            {path}",
    )
    print("\n".join(lines), flush=True)
