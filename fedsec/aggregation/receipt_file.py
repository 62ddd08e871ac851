"""What a hospital keeps of a round, as a file that anybody can check offline: was it counted, once, in what?

::

    <state folder of the hospital>/receipts/
        <session>-round-3-train.receipt

Each line is one JSON object: first the announcement and the upload's header, before a byte of it leaves;
then the acknowledgements; then the proof of inclusion, once the hospital has asked for it.
The file holds nothing private: the server's announcement, the hospital's signed upload header (digests
that are blinded), the signatures of all aggregators, and hashes. No update, no weight, no part.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fedsec.aggregation.announcement import (
    SIGNATURE_LABEL,
    Announcement,
    RoundId,
    decode_announcement,
)
from fedsec.aggregation.messages import (
    Receipt,
    Signed,
    Stored,
    UploadHeader,
    header_digest,
    unseal,
)
from fedsec.aggregation.receipts import check_acknowledgement, check_receipt
from fedsec.aggregation.signing import check_signature
from fedsec.aggregation.trust import TrustFile
from fedsec.errors import FedsecError, RangeError, TrustError, UsageError

_log = logging.getLogger(__name__)

FORMAT = "fedsec receipt 1"
MOST_FILE_BYTES = 64 * 2**20
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ReceiptFile:
    """The evidence of one upload.

    Attributes:
        hospital: Whose upload it is.
        announcement: The round as the server signed it.
        header: The upload header as the hospital signed it.
        acknowledgements: Each aggregator's signature that it has stored its part, by name.
        inclusion: The aggregators' proof that the upload is in the sum; None before the hospital has asked.
    """

    hospital: str
    announcement: Signed
    header: Signed
    acknowledgements: Mapping[str, bytes] = field(default_factory=dict)
    inclusion: Receipt | None = None

    @classmethod
    def load(cls, path: Path) -> ReceiptFile:
        """Read a file.

        Raises:
            UsageError: It cannot be read, or is no receipt of this version.
        """
        try:
            if path.stat().st_size > MOST_FILE_BYTES:
                raise UsageError(f"{path} is no receipt: it has more than {MOST_FILE_BYTES} bytes")
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except OSError as error:
            raise UsageError(f"cannot read the receipt {path}: {error.strerror}") from error
        except (ValueError, RecursionError):
            raise UsageError(f"{path} is no receipt: it is not JSON") from None
        if any(not isinstance(line, dict) for line in lines):
            raise UsageError(f"{path} is no receipt: a line is no JSON object")
        table: dict[str, Any] = {key: value for line in lines for key, value in line.items()}
        if table.get("format") != FORMAT:
            raise UsageError(f'{path} is no receipt: expected "format": "{FORMAT}"')
        try:
            return cls(
                hospital=str(table["hospital"]),
                announcement=_signed(table["announcement"]),
                header=_signed(table["header"]),
                acknowledgements={
                    name: _bytes(one) for name, one in table.get("acknowledgements", {}).items()
                },
                inclusion=_inclusion(table["inclusion"]) if "inclusion" in table else None,
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UsageError(f"{path} is no receipt: a field is missing or has another form") from None


@dataclass(frozen=True, slots=True)
class ReceiptReport:
    """What a receipt proves, after every part of it was checked.

    Attributes:
        hospital: Who was counted.
        announcement: In which round, over which model and config.
        upload_id: The upload, 16 bytes.
        included: How many uploads are in the sum.
        acknowledged: The aggregators that had acknowledged their part.
        keys_compared: Whether keys were compared with a trust file; otherwise they are the receipt's own.
    """

    hospital: str
    announcement: Announcement
    upload_id: bytes
    included: int
    acknowledged: tuple[str, ...]
    keys_compared: bool


class Receipts:
    """The receipts of one hospital. A disk that takes none costs the hospital its proof and not the round.

    Args:
        state: The hospital's state folder.
    """

    def __init__(self, state: Path) -> None:
        self._folder = state / "receipts"

    def path(self, round_id: RoundId) -> Path:
        """Return where the receipt of a round is, or will be."""
        return self._folder / f"{round_id.session.hex()}-round-{round_id.round}-{round_id.phase}.receipt"

    def begin(self, round_id: RoundId, file: ReceiptFile) -> None:
        """Begin the receipt of an upload that is about to leave: what it is, and in answer to what."""
        line = {
            "format": FORMAT,
            "hospital": file.hospital,
            "announcement": _table(file.announcement),
            "header": _table(file.header),
        }
        self._append(round_id, line, os.O_TRUNC)

    def acknowledge(self, round_id: RoundId, signatures: Mapping[str, bytes]) -> None:
        """Add what the aggregators have signed when they had stored their parts."""
        line = {"acknowledgements": {name: _text(one) for name, one in signatures.items()}}
        self._append(round_id, line)

    def prove(self, round_id: RoundId, inclusion: Receipt) -> None:
        """Add the proof of inclusion."""
        self._append(round_id, {"inclusion": _inclusion_table(inclusion)})

    def _append(self, round_id: RoundId, line: Mapping[str, Any], truncate: int = 0) -> None:
        path = self.path(round_id)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | truncate, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                # Not synced: every round would wait for it, and what a power failure takes is a proof alone.
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            _log.warning("%s: its receipt %s cannot be written: %s", round_id, path.name, error.strerror)


def verify_receipt(file: ReceiptFile, trust: TrustFile | None = None) -> ReceiptReport:
    """Check every part of a receipt, offline.

    Args:
        file: The receipt.
        trust: Whose keys and limits it is compared with. Without one, what is checked is that it is
            consistent in itself: whoever makes all keys up can make such a receipt, too.

    Raises:
        TrustError: A part does not fit; the text says which.
        FedsecError: It holds acknowledgements only: nothing says yet whether the upload was counted.
    """
    announcement = _part("the announcement", lambda: decode_announcement(file.announcement.payload))
    server = announcement.recipient.public_key if trust is None else trust.server
    signed = file.announcement
    _part(
        "the server's signature of the announcement",
        lambda: check_signature(server, SIGNATURE_LABEL, signed.payload, signed.signature),
    )
    if trust is not None:
        _part("the announcement", lambda: trust.check_announced(announcement))
    header = _part("the upload header", lambda: _check_header(file, announcement))
    digest = header_digest(file.header.payload)
    for name, signature in file.acknowledgements.items():
        stored = Stored(name, signature)
        _part(
            f"the acknowledgement of '{name}'",
            lambda stored=stored: check_acknowledgement(announcement, header.upload_id, digest, stored),  # type: ignore[misc]
        )
    inclusion = file.inclusion
    if inclusion is None:
        names = ", ".join(sorted(file.acknowledgements)) or "nobody"
        text = f"no proof of inclusion in {announcement.id}: acknowledgements only ({names})"
        raise FedsecError(f"{text}; the hospital asks for the proof before its next round and when it ends")
    receipt = _part(
        "the proof of inclusion",
        lambda: check_receipt(announcement, file.hospital, header.upload_id, digest, inclusion),
    )
    acknowledged = tuple(sorted(file.acknowledgements))
    return ReceiptReport(
        file.hospital, announcement, header.upload_id, receipt.included, acknowledged, trust is not None
    )


def _check_header(file: ReceiptFile, announcement: Announcement) -> UploadHeader:
    header = unseal(file.header, UploadHeader, announcement.public_key_of(file.hospital))
    if (header.hospital, header.round) != (file.hospital, announcement.id):
        raise TrustError("it is of another hospital or round")
    if header.announcement != announcement.digest:
        raise TrustError("it answers another announcement")
    return header


def _part(name: str, check: Callable[[], _T]) -> _T:
    try:
        return check()
    except (FedsecError, RangeError) as error:
        reason = str(error).removesuffix("; nothing was sent")
        raise TrustError(f"the receipt is not valid: {name} does not fit: {reason}") from error


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _bytes(value: Any) -> bytes:
    if not isinstance(value, str):
        raise TypeError
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError from error


def _table(signed: Signed) -> dict[str, str]:
    return {"payload": _text(signed.payload), "signature": _text(signed.signature)}


def _signed(table: Mapping[str, Any]) -> Signed:
    return Signed(_bytes(table["payload"]), _bytes(table["signature"]))


def _inclusion_table(receipt: Receipt) -> dict[str, Any]:
    return {
        "index": receipt.index,
        "path": [_text(one) for one in receipt.path],
        "statements": [_table(one) for one in receipt.statements],
    }


def _inclusion(table: Mapping[str, Any]) -> Receipt:
    index = table["index"]
    if isinstance(index, bool) or not isinstance(index, int):
        raise TypeError
    path = tuple(_bytes(one) for one in table["path"])
    statements = tuple(_signed(one) for one in table["statements"])
    return Receipt("included", "", index, path, statements)
