"""The history of an aggregator as a hash chain: each statement that it signs is one event in it.

A statement carries the chain head behind it, signed by itself, and its message the events that the receiver
has not heard of. So whoever remembers a head sees whether what comes later follows from it, and has, in the
aggregator's own signature, the proof when it does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from fedsec.aggregation.messages import (
    ChainHead,
    ListStatement,
    SetStatement,
    Signed,
    read,
    unseal,
)
from fedsec.aggregation.signing import DIGEST_BYTES, digest

GENESIS = ChainHead(0, digest("chain start", b""))
NOTHING_SEEN = Signed(b"", b"")
MOST_MISSED = 4096
"""Most events that one message makes up for; who is further behind is sent pages of so many before it."""


def event(statement: ListStatement | SetStatement) -> bytes:
    """Return the event that a statement is: a digest of what it says, without its chain head."""
    key = statement.round.key
    if isinstance(statement, ListStatement):
        return digest("chain event", key, b"list", msgspec.msgpack.encode(statement.entries))
    return digest("chain event", key, b"set", statement.root + statement.commitment)


def follow(head: ChainHead, events: Iterable[bytes]) -> ChainHead:
    """Return the chain head after some more events."""
    for one in events:
        head = ChainHead(head.counter + 1, digest("chain", head.head, one))
    return head


def open_head(seen: Signed, public_key: bytes) -> ChainHead:
    """Return the signed chain head, or the start of every chain for one that was never seen.

    Raises:
        TrustError: The signature is not that of the key.
        ProtocolError: The bytes are no chain head.
    """
    return GENESIS if seen == NOTHING_SEEN else unseal(seen, ChainHead, public_key)


def counter_of(statement: ListStatement | SetStatement) -> int:
    """Return the place of a statement in the history of whoever signed it."""
    return read(statement.chain, ChainHead).counter


def contradicts(seen: ChainHead, shown: ChainHead) -> bool:
    """Tell whether a head that is shown now cannot come after one that was seen before."""
    return shown.counter < seen.counter or (shown.counter == seen.counter and shown.head != seen.head)


def continues(seen: ChainHead, shown: ChainHead, missed: Sequence[bytes], last: bytes) -> bool:
    """Tell whether a head comes after one that was seen, by events of which the last one is known.

    Args:
        seen: The head that was seen.
        shown: The head that is shown now.
        missed: The events in between, and perhaps more before them.
        last: The event that the statement with ``shown`` is.
    """
    return len(missed) <= MOST_MISSED and leads_to(seen, shown, [*missed, last])


def leads_to(seen: ChainHead, shown: ChainHead, events: Sequence[bytes]) -> bool:
    """Tell whether a head comes after one that was seen, by the last of some events.

    Args:
        seen: The head that was seen.
        shown: The head that is shown now.
        events: The events up to ``shown``, all those after ``seen`` and perhaps more before them.
    """
    between = shown.counter - seen.counter
    if not 0 < between <= len(events) or any(len(one) != DIGEST_BYTES for one in events):
        return False
    return follow(seen, events[-between:]) == shown
