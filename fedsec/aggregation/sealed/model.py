"""A hospital's side of the sealed model: fetch a state from three parties, and tag it for comparison."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsec.aggregation.announcement import Announcement
from fedsec.aggregation.links import Links
from fedsec.aggregation.sealed.messages import FetchState, StateShare
from fedsec.aggregation.sealed.terms import Sealed, encode_model, origin_of
from fedsec.errors import ProtocolError, TrustError, UsageError
from fedsec.ring import RING64, RingArray, signed
from fedsec.transport import Deadline

_SLACK = 2.0**-10
"""What rounding may add to a round's clip, generously: a wrong share is off by far more."""
_LABEL = b"fedsec/aggregation/1/sealed model\0"


def fetch_model(
    links: Links,
    announcement: Announcement,
    number: int,
    arrays: Sequence[npt.NDArray[Any]],
    deadline: Deadline,
) -> RingArray:
    """Return the words of a state: for the initial one from the arrays, else from all three parties.

    Args:
        links: Connections to the parties.
        announcement: An accepted announcement of the session.
        number: Which state.
        arrays: The initial parameters, which every announcement of the session has the digests of.
        deadline: When to give up.

    Raises:
        ProtocolError: A party has no such state, or what came is farther from the initial parameters than
            that many rounds can bring it: a party or a client has left the protocol.
        TrustError: A party refuses, or its state was made from other initial parameters than announced.
        PeerLostError: A party cannot be reached; it is named.
    """
    sealed = _sealed_of(announcement)
    initial = encode_model(arrays, sealed.fraction_bits)
    if number == 0:
        return initial
    total, origin = np.zeros_like(initial), origin_of(announcement)
    message = FetchState(announcement.session, number)
    for name in sealed.parties:
        reply, body = links.call(name, message, StateShare, deadline=deadline, max_body_bytes=initial.nbytes)
        if len(body) != initial.nbytes or reply.fraction_bits != sealed.fraction_bits:
            raise ProtocolError(f"'{name}' sent a share of another model than the announced one")
        if reply.origin != origin:
            # Before anything is compared: a state's distance from parameters of the server's choice tells it.
            raise TrustError(
                f"the sealed model at '{name}' began from other initial parameters than the announced ones"
            )
        total += np.frombuffer(body, dtype=RING64.dtype)
    _check_distance(announcement, number, initial, total)
    return total


def model_tag(secret: bytes, announcement: Announcement, words: RingArray) -> bytes:
    """Return the tag of the state that a round begins from, under the hospitals' common secret.

    Whoever lacks the secret learns from tags only which are equal; a plain hash would let it test guesses.
    """
    base = _sealed_of(announcement).base.to_bytes(4, "big")
    return hmac.digest(secret, _LABEL + announcement.session + base + words.tobytes(), "sha256")


def _check_distance(announcement: Announcement, number: int, initial: RingArray, words: RingArray) -> None:
    """Refuse a model that the clips of its rounds rule out; a wrong share makes almost surely such a one."""
    change = np.abs(signed(np.asarray(words - initial)).astype(np.float64))
    start = 0
    for spec in announcement.arrays:
        most = number * spec.clip * (1 + _SLACK) * 2.0 ** _sealed_of(announcement).fraction_bits
        part = change[start : start + spec.size]
        if part.size and float(part.max()) > most + number:
            raise ProtocolError(
                f"the sealed model is farther from the initial one in '{spec.name}' than {number} rounds of "
                f"clip {spec.clip:g} can bring it: it is not used"
            )
        start += spec.size


def _sealed_of(announcement: Announcement) -> Sealed:
    if announcement.sealed is None:
        raise UsageError(f"{announcement.id} is not sealed")
    return announcement.sealed
