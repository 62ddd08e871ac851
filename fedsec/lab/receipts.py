"""Receipts of runs whose hospitals had a process for each message: none was left to ask for the last ones."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from fedsec.aggregation.client import HospitalClient
from fedsec.aggregation.trust import TrustFile
from fedsec.errors import FedsecError, RoundAbortedError
from fedsec.transport import Deadline

_SECONDS = 10.0
_log = logging.getLogger(__name__)


def fetch_receipts(trust_files: Iterable[Path]) -> None:
    """Let every hospital ask for the proofs that it has not got yet; one that gets none is only logged.

    Args:
        trust_files: Of the hospitals; the receipts go into their state folders.
    """
    for path in trust_files:
        with HospitalClient(TrustFile.load(path)) as hospital:
            for announcement in hospital.unconfirmed():
                try:
                    hospital.receipt(announcement, Deadline.after(_SECONDS))
                except RoundAbortedError:
                    continue
                except FedsecError as error:
                    _log.warning("%s has no receipt of %s: %s", hospital.name, announcement.id, error)
