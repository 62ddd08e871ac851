"""The sum of a round's parts. Seeds are in it from the moment when they are expanded for their checksum.

Who is included is agreed on later: then what is missing is added, and what is too much is taken off. What has
been added is in memory only: after a crash, or an error, all is expanded again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedsec.aggregation.disk import disk_errors
from fedsec.aggregation.messages import NONCE_BYTES
from fedsec.aggregation.parts import CHUNK_BYTES, STATE
from fedsec.aggregation.planner import Layout
from fedsec.errors import StateError
from fedsec.ring import RingArray, ring_of
from fedsec.sharing import compressed

Part = Path | bytes
"""The file of a part that holds a vector, or the seed of another."""


class RunningSum:
    """The sum of some parts of a round; any thread may add to it.

    Args:
        layout: The layout of the round.
        most: Most seeds that may be in it before it is taken.
    """

    def __init__(self, layout: Layout, most: int) -> None:
        self._layout, self._most = layout, most
        self._lock = threading.Lock()
        self._total: RingArray | None = None
        self._seeds: dict[bytes, bytes] = {}
        self._closed = False

    def expand(self, header: bytes, seed: bytes, hear: Callable[[RingArray], None]) -> None:
        """Expand a seed piece by piece, and add it unless the sum was taken.

        Args:
            header: The header digest of the upload. It need not be stored yet, nor ever.
            seed: The seed.
            hear: Gets every piece, which it must not change.
        """
        with self._lock:
            if not self._closed and header not in self._seeds and len(self._seeds) < self._most:
                self._put(header, seed, np.add, hear)
                return
        for piece in compressed.expand_pieces(seed, self._layout.words, self._layout.encoding.ring):
            hear(piece)

    def take(self, included: Mapping[bytes, Part]) -> RingArray:
        """Return the sum of exactly the included parts; the memory is the caller's from now on.

        Args:
            included: Each by its header digest.

        Returns:
            The sum share, shape [layout.words]. Memory does not grow with the number of hospitals.

        Raises:
            StateError: A part is gone or has another size than when it was stored.
        """
        with self._lock:
            self._closed = True
            for header, seed in list(self._seeds.items()):
                if included.get(header) != seed:
                    self._put(header, seed, np.subtract)
            for header, part in included.items():
                if header not in self._seeds:
                    self._put(header, part, np.add)
            total = self._begun()
            self._forget()
            return total

    def forget(self) -> None:
        """Forget everything, and add no more."""
        with self._lock:
            self._closed = True
            self._forget()

    def _put(
        self,
        header: bytes,
        part: Part,
        operation: Callable[..., Any],
        hear: Callable[[RingArray], None] | None = None,
    ) -> None:
        total = self._begun()
        try:
            at = 0
            for piece in _pieces_of(part, total):
                if hear is not None:
                    hear(piece)
                place = total[at : at + piece.size]
                operation(place, piece, out=place)
                at += piece.size
        except BaseException:
            # It may hold a half of this part.
            self._forget()
            raise
        if operation is np.subtract:
            del self._seeds[header]
        elif isinstance(part, bytes):
            self._seeds[header] = part

    def _begun(self) -> RingArray:
        if self._total is None:
            self._total = np.zeros(self._layout.words, dtype=self._layout.encoding.ring.dtype)
        return self._total

    def _forget(self) -> None:
        self._total, self._seeds = None, {}


def _pieces_of(part: Part, like: RingArray) -> Iterator[RingArray]:
    if isinstance(part, bytes):
        yield from compressed.expand_pieces(part, like.size, ring_of(like))
        return
    expected = NONCE_BYTES + like.nbytes
    with disk_errors(STATE), part.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size != expected or len(file.read(NONCE_BYTES)) != NONCE_BYTES:
            raise StateError(f"a stored part has {size} bytes, {expected} were stored: the state is damaged")
        yield from _pieces(file.fileno(), like)


def _pieces(descriptor: int, like: RingArray) -> Iterator[RingArray]:
    buffer: RingArray = np.empty(max(1, min(CHUNK_BYTES // like.itemsize, like.size)), dtype=like.dtype)
    left = like.size
    while left:
        piece = buffer[: min(left, buffer.size)]
        view = piece.data.cast("B")
        while view.nbytes:
            taken = os.readv(descriptor, [view])
            if not taken:
                raise StateError("a stored part ended early: the state is damaged")
            view = view[taken:]
        left -= piece.size
        yield piece
