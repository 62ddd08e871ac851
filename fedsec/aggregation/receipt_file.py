"""What a hospital keeps of a round, as a file that anybody can check offline: was it counted, once, in what?

::

    <state folder of the hospital>/receipts/
        <session>-round-3-train.receipt

Its first line is JSON with the acknowledgements, the last one the proof of inclusion once that is there.
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
from dataclasses import dataclass
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
from fedsec.errors import FedsecError, RangeError, StateError, TrustError, UsageError

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
    acknowledgements: Mapping[str, bytes]
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
            first, *rest = path.read_text(encoding="utf-8").splitlines() or [""]
            table, proof = json.loads(first), json.loads(rest[-1]) if rest else None
        except OSError as error:
            raise UsageError(f"cannot read the receipt {path}: {error.strerror}") from error
        except (ValueError, RecursionError):
            raise UsageError(f"{path} is no receipt: it is not JSON") from None
        if not isinstance(table, dict) or table.get("format") != FORMAT:
            raise UsageError(f'{path} is no receipt: expected "format": "{FORMAT}"')
        try:
            return cls(
                hospital=str(table["hospital"]),
                announcement=_signed(table["announcement"]),
                header=_signed(table["header"]),
                acknowledgements={name: _bytes(one) for name, one in table["acknowledgements"].items()},
                inclusion=None if proof is None else _inclusion(proof["inclusion"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UsageError(f"{path} is no receipt: a field is missing or has another form") from None

    def save(self, path: Path) -> None:
        """Write the file whole or not at all, readable by its owner only.

        Raises:
            StateError: The disk does not take it.
        """
        table = {
            "format": FORMAT,
            "hospital": self.hospital,
            "announcement": _table(self.announcement),
            "header": _table(self.header),
            "acknowledgements": {name: _text(one) for name, one in self.acknowledgements.items()},
        }
        lines = [table] if self.inclusion is None else [table, _proof(self.inclusion)]
        draft = path.with_suffix(".draft")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                # Not synced: every round would wait for it, and what a power failure takes is a proof alone.
                file.writelines(json.dumps(line) + "\n" for line in lines)
            draft.replace(path)
        except OSError as error:
            raise StateError(f"the receipt {path.name} cannot be written: {error.strerror}") from error


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

    def keep(self, round_id: RoundId, file: ReceiptFile) -> None:
        """Store what is known of an upload once all aggregators have acknowledged it."""
        try:
            file.save(self.path(round_id))
        except StateError as error:
            _log.warning("%s: %s", round_id, error)

    def prove(self, round_id: RoundId, inclusion: Receipt) -> None:
        """Add the proof of inclusion; the announcement may be long and is not written again."""
        try:
            with self.path(round_id).open("r+", encoding="utf-8") as file:
                file.seek(0, os.SEEK_END)
                file.write(json.dumps(_proof(inclusion)) + "\n")
        except OSError as error:
            text = "%s: the proof that the upload was counted is not kept: %s"
            _log.warning(text, round_id, error.strerror)


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


def _proof(receipt: Receipt) -> dict[str, Any]:
    inclusion = {
        "index": receipt.index,
        "path": [_text(one) for one in receipt.path],
        "statements": [_table(one) for one in receipt.statements],
    }
    return {"inclusion": inclusion}


def _inclusion(table: Mapping[str, Any]) -> Receipt:
    index = table["index"]
    if isinstance(index, bool) or not isinstance(index, int):
        raise TypeError
    path = tuple(_bytes(one) for one in table["path"])
    statements = tuple(_signed(one) for one in table["statements"])
    return Receipt("included", "", index, path, statements)
