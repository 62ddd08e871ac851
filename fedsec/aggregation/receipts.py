"""Checks of what aggregators sign: acknowledgements, set statements and inclusion receipts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsec.aggregation import merkle
from fedsec.aggregation.agreement import check_statement
from fedsec.aggregation.announcement import Announcement, RoundId
from fedsec.aggregation.messages import (
    STORED_LABEL,
    Receipt,
    SetStatement,
    Signed,
    Stored,
    stored_payload,
    unseal,
)
from fedsec.aggregation.signing import check_signature
from fedsec.errors import ProtocolError, TrustError


@dataclass(frozen=True, slots=True)
class InclusionReceipt:
    """Proof that an upload is in the sum: signed by all aggregators of the round.

    Attributes:
        round: The round.
        upload_id: The upload.
        included: How many uploads are in the sum.
        root: The Merkle root over them.
        statements: The set statement of each aggregator.
    """

    round: RoundId
    upload_id: bytes
    included: int
    root: bytes
    statements: tuple[Signed, ...]


def check_statements(announcement: Announcement, statements: Sequence[Signed]) -> tuple[SetStatement, ...]:
    """Check that all aggregators of a round signed one included set.

    Returns:
        Their statements in the announcement's order.

    Raises:
        TrustError: A signature is not that of the announced aggregator.
        ProtocolError: One is missing, or two differ in the set; the text names who.
    """
    if len(statements) != len(announcement.aggregators):
        raise ProtocolError(f"expected {len(announcement.aggregators)} set signatures, got {len(statements)}")
    found: list[SetStatement] = []
    for member, signed in zip(announcement.aggregators, statements, strict=True):
        statement = unseal(signed, SetStatement, member.public_key)
        check_statement(announcement, statement)
        if statement.aggregator != member.name:
            raise ProtocolError(
                f"a set statement of '{statement.aggregator}' came in place of '{member.name}'"
            )
        if found and (statement.root, statement.included) != (found[0].root, found[0].included):
            raise ProtocolError(f"'{member.name}' signed another included set than '{found[0].aggregator}'")
        found.append(statement)
    return tuple(found)


def check_acknowledgement(
    announcement: Announcement, upload_id: bytes, header: bytes, stored: Stored
) -> None:
    """Check an aggregator's signature that it holds a part; ``header`` is the header digest.

    Raises:
        TrustError: The signature is not that of the aggregator.
    """
    keys = {member.name: member.public_key for member in announcement.aggregators}
    if stored.aggregator not in keys:
        raise TrustError(f"'{stored.aggregator}' is no aggregator of {announcement.id}")
    payload = stored_payload(announcement.id, upload_id, header, stored.aggregator)
    check_signature(keys[stored.aggregator], STORED_LABEL, payload, stored.signature)


def check_receipt(
    announcement: Announcement, hospital: str, upload_id: bytes, header: bytes, receipt: Receipt
) -> InclusionReceipt:
    """Check a receipt with status "included" against the announcement.

    Args:
        announcement: The accepted announcement.
        hospital: Who asks.
        upload_id: Its upload.
        header: The digest of the header it signed.
        receipt: The reply.

    Raises:
        TrustError: The path does not lead from this upload to the signed root, or a signature is wrong.
        ProtocolError: Statements are missing or differ.
    """
    first = check_statements(announcement, receipt.statements)[0]
    leaf = merkle.leaf(announcement.id.key, hospital, upload_id, header)
    if merkle.root_from_path(leaf, receipt.index, first.included, receipt.path) != first.root:
        raise TrustError(f"the receipt for {announcement.id} does not prove that this upload was counted")
    return InclusionReceipt(announcement.id, upload_id, first.included, first.root, receipt.statements)
