"""Streams broken on purpose. Every one of them leaves results right, so only a view check can notice."""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from fedsec.mpc.party import Stream
from fedsec.mpc.simulator import View
from fedsec.ring import RING64, KeyedStream, Ring, RingArray


class Mutant(StrEnum):
    """What is wrong with the masks."""

    NO_MASK = "no mask"
    LOW_HALF = "mask hides only the low half of each word"
    KNOWN_TO_ALL = "mask known to every party"
    USED_TWICE = "same mask used twice"


class _Zero:
    """A stream of zeros: nothing is masked."""

    def words(self, shape: int | tuple[int, ...], ring: Ring = RING64) -> RingArray:
        return np.zeros(shape, dtype=ring.dtype)


class _LowHalf:
    """A stream whose words have a zero upper half."""

    def __init__(self, key: bytes) -> None:
        self._stream = KeyedStream(key)

    def words(self, shape: int | tuple[int, ...], ring: Ring = RING64) -> RingArray:
        low_half = ring.dtype.type((1 << ring.bits // 2) - 1)
        return np.asarray(self._stream.words(shape, ring) & low_half)


class _UsedTwice:
    """A stream that begins again with every protocol call."""

    def __init__(self, key: bytes, view: View) -> None:
        self._key = key
        self._view = view
        self._call = -1

    def words(self, shape: int | tuple[int, ...], ring: Ring = RING64) -> RingArray:
        call = len(self._view.calls)
        if call != self._call:
            self._stream, self._call = KeyedStream(self._key), call
        return self._stream.words(shape, ring)


def make_stream(mutant: Mutant | None, key: bytes, view: View) -> Stream:
    """Return the stream of a key as a mutant has it; the honest one for None.

    The streams of ``KNOWN_TO_ALL`` are honest: it is the check that then gives every stream to every party.
    """
    if mutant is Mutant.NO_MASK:
        return _Zero()
    if mutant is Mutant.LOW_HALF:
        return _LowHalf(key)
    if mutant is Mutant.USED_TWICE:
        return _UsedTwice(key, view)
    return KeyedStream(key)
