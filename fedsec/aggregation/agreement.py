"""The pure part of the agreement: from the signed lists of all aggregators to the included set S."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedsec.aggregation import merkle
from fedsec.aggregation.announcement import Announcement
from fedsec.aggregation.messages import (
    UPLOAD_ID_BYTES,
    ExcludedUpload,
    IncludedUpload,
    ListEntry,
    ListStatement,
    SetStatement,
    is_digest,
)
from fedsec.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class IncludedSet:
    """S in canonical order (sorted by hospital), and who of the roster is not in it."""

    included: list[ListEntry]
    excluded: list[ExcludedUpload]

    def root(self, round_key: bytes) -> bytes:
        """Return the Merkle root of S, which is not empty."""
        return merkle.root(leaves(round_key, self.included))


def leaves(round_key: bytes, included: Sequence[ListEntry | IncludedUpload]) -> list[bytes]:
    """Return the leaf hashes of S in canonical order."""
    return [merkle.leaf(round_key, one.hospital, one.upload_id, one.header_digest) for one in included]


def included_set(announcement: Announcement, lists: Mapping[str, ListStatement]) -> IncludedSet:
    """Intersect the lists and leave out uploads whose parts do not belong together.

    An upload is in S when every aggregator lists it with the same id and header, and the checksum
    differences of all aggregators add up to zero.
    """
    modulus = announcement.encoding.ring.modulus
    by_aggregator = [{entry.hospital: entry for entry in one.entries} for one in lists.values()]
    included, excluded = [], []
    for member in announcement.roster:
        entries = [one[member.name] for one in by_aggregator if member.name in one]
        same = {(entry.upload_id, entry.header_digest) for entry in entries}
        if not entries:
            excluded.append(ExcludedUpload(member.name, "missing"))
        elif len(entries) < len(by_aggregator) or len(same) != 1:
            excluded.append(ExcludedUpload(member.name, "incomplete"))
        elif sum(entry.checksum for entry in entries) % modulus:
            excluded.append(ExcludedUpload(member.name, "inconsistent"))
        else:
            included.append(entries[0])
    return IncludedSet(included, excluded)


def without_other_models(found: IncludedSet, models: Mapping[str, bytes]) -> IncludedSet:
    """Leave out the uploads of a sealed round that were trained from another model than most.

    Args:
        found: The included set so far.
        models: The tag of each hospital's model; empty for a round that is not sealed.
    """
    counts = Counter(models.get(one.hospital, b"") for one in found.included)
    # Of two tags that are equally frequent the smaller one, so that all aggregators take the same.
    chosen = max(sorted(counts), key=lambda tag: counts[tag], default=b"")
    kept = [one for one in found.included if models.get(one.hospital, b"") == chosen]
    others = {one.hospital for one in found.included} - {one.hospital for one in kept}
    excluded = [*found.excluded, *(ExcludedUpload(name, "other_model") for name in others)]
    return IncludedSet(kept, sorted(excluded, key=lambda one: one.hospital))


def check_statement(announcement: Announcement, statement: ListStatement | SetStatement) -> None:
    """Check a peer's statement: this round, roster only, sorted, every field of the right size.

    Raises:
        ProtocolError: Names the aggregator and what is wrong.
    """
    if statement.round != announcement.id or statement.announcement != announcement.digest:
        raise ProtocolError(
            f"the statement of '{statement.aggregator}' is about another round or announcement"
        )
    if isinstance(statement, ListStatement):
        _check_list(announcement, statement)
    else:
        _check_set(announcement, statement)


def _check_list(announcement: Announcement, statement: ListStatement) -> None:
    names = [entry.hospital for entry in statement.entries]
    known = {member.name for member in announcement.roster}
    if names != sorted(set(names)) or not set(names) <= known:
        raise ProtocolError(f"the list of '{statement.aggregator}' is not sorted, or names a stranger")
    for entry in statement.entries:
        sizes = len(entry.upload_id) == UPLOAD_ID_BYTES and is_digest(entry.header_digest)
        if not sizes or not 0 <= entry.checksum < announcement.encoding.ring.modulus:
            raise ProtocolError(f"the list of '{statement.aggregator}' has a malformed entry")


def _check_set(announcement: Announcement, statement: SetStatement) -> None:
    cohort = announcement.minimum_cohort <= statement.included <= len(announcement.roster)
    if not cohort or not is_digest(statement.root) or not is_digest(statement.commitment):
        raise ProtocolError(f"the set statement of '{statement.aggregator}' is malformed or below the cohort")
