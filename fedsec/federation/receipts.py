"""Asking for the proofs that uploads were counted; a hospital that gets none goes on, and logs it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from fedsec.aggregation.announcement import RoundId
from fedsec.aggregation.client import HospitalClient
from fedsec.aggregation.trust import TrustFile
from fedsec.errors import FedsecError, RoundAbortedError
from fedsec.transport import Deadline

_AFTER_A_RUN_S = 10.0
_log = logging.getLogger(__name__)


def ask_receipts(client: HospitalClient, deadline: Deadline, present: RoundId | None = None) -> None:
    """Ask the aggregators whether a hospital's earlier uploads were counted; a warning if not.

    Args:
        client: Of the hospital.
        deadline: For all answers together.
        present: A round that has not ended yet.
    """
    for announcement in client.unconfirmed():
        if announcement.id == present:
            continue
        try:
            client.receipt(announcement, deadline)
        except RoundAbortedError:
            _log.info("%s ended without a result; the upload to it is void", announcement.id)
        except FedsecError as error:
            text = "'%s' has no receipt that the upload to %s was counted: %s"
            _log.warning(text, client.name, announcement.id, error)


def fetch_receipts(trust_files: Iterable[Path]) -> None:
    """Ask in the name of hospitals that had a process for each message: none was left to ask for the last.

    Args:
        trust_files: Of the hospitals; the receipts go into their state folders.
    """
    for path in trust_files:
        with HospitalClient(TrustFile.load(path)) as hospital:
            ask_receipts(hospital, Deadline.after(_AFTER_A_RUN_S))
