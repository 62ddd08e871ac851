"""Arithmetic modulo 2^k: words, fixed point, keys and keyed streams; kernels in ``fedsec.ring.kernels``."""

from fedsec.ring.fixed_point import decode, encode
from fedsec.ring.streams import KEY_BYTES, KeyedStream, derive_key, fresh_key, fresh_stream
from fedsec.ring.words import RING32, RING64, WORD_SIZES, Ring, RingArray, ring_of, signed

__all__ = [
    "KEY_BYTES",
    "RING32",
    "RING64",
    "WORD_SIZES",
    "KeyedStream",
    "Ring",
    "RingArray",
    "decode",
    "derive_key",
    "encode",
    "fresh_key",
    "fresh_stream",
    "ring_of",
    "signed",
]
