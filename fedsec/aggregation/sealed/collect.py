"""The Flower server's part in sealed rounds: initial parameters out, and whether a new state is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsec.aggregation.announcement import Announcement
from fedsec.aggregation.links import Links
from fedsec.aggregation.messages import Received
from fedsec.aggregation.sealed.messages import SealedOutcome, SealedStart, SealedStatus
from fedsec.errors import FedsecError, UsageError
from fedsec.transport import Deadline


def send_initial(
    links: Links, announcement: Announcement, arrays: Sequence[npt.NDArray[Any]] | None, deadline: Deadline
) -> None:
    """Give the computing parties the initial parameters, when a sealed round begins from them.

    Raises:
        UsageError: There are none.
        PeerLostError: A party cannot be reached; it is named.
    """
    sealed = announcement.sealed
    if sealed is None or sealed.base or announcement.phase != "train":
        return
    if arrays is None:
        raise UsageError("a sealed round that begins from the initial parameters needs them; give `arrays`")
    little = [np.ascontiguousarray(one, dtype=one.dtype.newbyteorder("<")) for one in arrays]
    body = b"".join(one.tobytes() for one in little)
    for name in sealed.parties:
        links.call(name, SealedStart(announcement.id), Received, body=body, deadline=deadline)


def why_not_stored(links: Links, announcement: Announcement, deadline: Deadline) -> str:
    """Wait until the new state is stored at all three parties; return why it is not, or an empty text.

    A state that only one or two of them hold is of no use: the next round begins from the one before.
    """
    sealed = announcement.sealed
    waiting = [] if sealed is None else list(sealed.parties)
    message = SealedStatus(announcement.id)
    while waiting:
        # One after the other and again: whoever is lost is noticed while the others still wait for it.
        name = waiting.pop(0)
        try:
            outcome, _ = links.call(name, message, SealedOutcome, deadline=deadline)
            if outcome.status == "pending":
                deadline.remaining(f"party '{name}', which computes the new state,")
                waiting.append(name)
            elif outcome.status != "stored":
                return outcome.reason or f"'{name}' has no new state"
        except FedsecError as error:
            return f"'{name}' could not be asked: {error}"
    return ""
