"""How a hospital asks the aggregators whether its upload was counted."""

from __future__ import annotations

import time

from fedsec.aggregation.announcement import Announcement
from fedsec.aggregation.links import Links
from fedsec.aggregation.messages import GetReceipt, Receipt
from fedsec.errors import FedsecError, PeerLostError, ProtocolError, StateError
from fedsec.transport import Deadline

_POLL_S = 0.05


def ask_receipt(links: Links, announcement: Announcement, upload_id: bytes, deadline: Deadline) -> Receipt:
    """Ask until the round has ended at some aggregator; whoever has a proof is believed first.

    A proof cannot be made up, so it counts whoever gives it. That a round was aborted is one aggregator's
    word: one that was set back to an older disk knows no better.

    Returns:
        A reply that is not "pending", unchecked.

    Raises:
        ProtocolError: No aggregator that answers knows the round.
        PeerLostError: An aggregator cannot be reached and the others know nothing; it is named.
        DeadlineError: The round has not ended in time.
    """
    while True:
        replies, error = _ask_each(links, announcement, upload_id, deadline)
        decided = [reply for reply in replies if reply.status != "pending"]
        if decided:
            return next((reply for reply in decided if reply.status == "included"), decided[0])
        if error is not None:
            raise error
        deadline.remaining("the aggregators' agreement")
        time.sleep(_POLL_S)


def _ask_each(
    links: Links, announcement: Announcement, upload_id: bytes, deadline: Deadline
) -> tuple[list[Receipt], FedsecError | None]:
    """Ask one after the other until one has a proof; an error that may pass is kept before one that stays."""
    replies: list[Receipt] = []
    kept: FedsecError | None = None
    for member in announcement.aggregators:
        message = GetReceipt(announcement.id, upload_id)
        try:
            reply, _ = links.call(member.name, message, Receipt, deadline=deadline)
        except (PeerLostError, ProtocolError, StateError) as error:
            if kept is None or isinstance(kept, ProtocolError):
                kept = error
            continue
        replies.append(reply)
        if reply.status == "included":
            break
    return replies, kept
