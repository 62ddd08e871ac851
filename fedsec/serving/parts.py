"""How a secret travels to three parties: two seeds and one vector, each component to two parties.

A vector x of ring elements is split as x = x_0 + x_1 + x_2. Components 0 and 1 are expanded from
32-byte seeds of the operating system, component 2 is the vector that is left. Party i gets
components i and i+1, so party 0 gets two seeds and the other two a seed and a vector: 16 bytes an
element in all instead of 48. The sizes depend on public shapes only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from fedsec.errors import ProtocolError
from fedsec.ring import Ring, RingArray, fresh_key, ring_of
from fedsec.sharing import compressed

PARTIES = 3
_VECTOR = 2  # the component that travels in full


@dataclass(frozen=True, slots=True)
class Component:
    """One component as it travelled: a seed, or the words themselves."""

    index: int
    piece: memoryview = field(repr=False)
    size: int
    ring: Ring

    def words(self) -> RingArray:
        """Return the component's ring elements, flat; the caller owns them."""
        if self.index == _VECTOR:
            return np.frombuffer(self.piece, dtype=self.ring.dtype).copy()
        return compressed.expand(bytes(self.piece), self.size, self.ring)


class Part:
    """One party's part of a secret vector: two of its three components, flat.

    Seeds are expanded when the words are first asked for: whoever takes a part in has that time for other
    things. Used by one thread at a time.
    """

    def __init__(self, own: Component, following: Component) -> None:
        self._own = own
        self._following = following

    def __repr__(self) -> str:
        return "Part()"

    @cached_property
    def own(self) -> RingArray:
        """The component of this party's number."""
        return self._own.words()

    @cached_property
    def next(self) -> RingArray:
        """The component after it."""
        return self._following.words()

    def unpack(self) -> None:
        """Expand what is not expanded yet."""
        _ = self.own, self.next


def split(secret: RingArray) -> tuple[bytes, bytes, bytes]:
    """Split a flat vector; returns the body for each of the three parties.

    Security: fresh seeds at every call, so that no two bodies of one process are related; any one
    body is independent of the secret.
    """
    seeds = (fresh_key(), fresh_key())
    vector = compressed.share_compressed(secret, seeds)
    words = vector.astype(ring_of(vector).dtype, copy=False).tobytes()
    components = (*seeds, words)
    bodies = [components[party] + components[(party + 1) % PARTIES] for party in range(PARTIES)]
    return bodies[0], bodies[1], bodies[2]


def body_bytes(party_id: int, size: int, ring: Ring) -> int:
    """Return the exact length of a party's body for a vector of ``size`` elements."""
    return sum(_component_bytes(index, size, ring) for index in _held(party_id))


def join(party_id: int, body: bytes | bytearray, size: int, ring: Ring) -> Part:
    """Take a party's body apart into its two components of ``size`` elements.

    Raises:
        ProtocolError: the body has another length than the public shape says.
    """
    expected = body_bytes(party_id, size, ring)
    if len(body) != expected:
        raise ProtocolError(
            f"expected a part of {expected} bytes for {size} elements, got {len(body)}; it was refused"
        )
    own, following = _held(party_id)
    border = _component_bytes(own, size, ring)
    view = memoryview(body)
    return Part(Component(own, view[:border], size, ring), Component(following, view[border:], size, ring))


def _held(party_id: int) -> tuple[int, int]:
    """Components that a party holds in replicated sharing."""
    return party_id, (party_id + 1) % PARTIES


def _component_bytes(index: int, size: int, ring: Ring) -> int:
    """Bytes of one component on the wire."""
    return size * ring.element_bytes if index == _VECTOR else compressed.SEED_BYTES
