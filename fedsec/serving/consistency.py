"""Before a service starts: do two neighbours hold the same common component of the weights?

Parts of two sharings, or an owner's mistake, would join to noise that every user pays for.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable

import numpy as np

from fedsec.errors import ProtocolError
from fedsec.mpc.party import Layout, Party
from fedsec.ring import KEY_BYTES, RING64, RingArray
from fedsec.sharing.replicated import RepShare

_LAYOUT = Layout((KEY_BYTES // RING64.element_bytes,), RING64)


def compare_weights(party: Party, weights: Iterable[RepShare], names: dict[int, str]) -> None:
    """Compare the common component with each neighbour; one round of 32 bytes each way.

    Args:
        party: a fresh session.
        weights: this party's shares.
        names: of the two other parties, by id.

    Raises:
        ProtocolError: a neighbour holds another common component; the service must not start.

    Security: each end shows HMAC-SHA256 of what both should hold, under a key of the pair that serves nothing
    else. The third party, which lacks that component, never sees it; a plain hash would let it test guesses.
    """
    weights = tuple(weights)
    # Party i holds components i and i+1: the previous party has the first, the following one the second.
    common = {
        party.previous_id: [share.own for share in weights],
        party.following_id: [share.next for share in weights],
    }
    keys = {other: party.stream_with(other).words(_LAYOUT.shape, RING64).tobytes() for other in common}
    sends = {other: [_tag(keys[other], party.id, common[other])] for other in common}
    with party.step("compare_weights"):
        received = party.exchange(sends, {other: [_LAYOUT] for other in common})
    for other, (tag,) in received.items():
        if not hmac.compare_digest(tag.tobytes(), _tag(keys[other], other, common[other]).tobytes()):
            raise ProtocolError(
                f"{names[other]} holds a part of another sharing of this model: the service does not start; "
                "the owner shares the model with all three again"
            )


def _tag(key: bytes, sender: int, component: Iterable[RingArray]) -> RingArray:
    """Return the tag that one end shows; the sender is in it, so that no tag can be sent back."""
    tag = hmac.new(key, bytes([sender]), "sha256")
    for words in component:
        tag.update(np.ascontiguousarray(words).tobytes())
    return np.frombuffer(tag.digest(), dtype=RING64.dtype)
