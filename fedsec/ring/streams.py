"""Keys and keyed streams: the only source of randomness in fedsec.

A key is 32 bytes from the operating system, or derived from such bytes by HKDF-SHA256 under a label that
names the purpose. A stream is AES-256 in counter mode under one key, starting at counter zero; because the
counter always starts at zero, **a key is used for one stream only**, and whoever needs two streams derives
two keys.

Security: the words of a stream are indistinguishable from uniform as long as AES-256 is a pseudorandom
permutation. The key is used whole, never folded or truncated (threat 2), and every word takes every value of
its ring (threat 6).
"""

from __future__ import annotations

import secrets
from math import prod

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedsec.errors import UsageError
from fedsec.ring.words import RING64, Ring, RingArray, ring_of

KEY_BYTES = 32

_LABEL = b"fedsec/v1/"
# The keystream is the encryption of zeros. 64 KiB of them stay in the second-level cache; longer requests use
# them again.
_ZEROS = memoryview(bytes(1 << 16))


def fresh_key() -> bytes:
    """Return 32 new random bytes from the operating system."""
    return secrets.token_bytes(KEY_BYTES)


def derive_key(secret: bytes, *, purpose: str, context: bytes = b"") -> bytes:
    """Derive a 32-byte key for one purpose: HKDF-SHA256 without salt (RFC 5869).

    The ``info`` input is ``"fedsec/v1/" || purpose || 0x00 || context``. A purpose holds no zero byte, so no
    two pairs of purpose and context share an ``info``.

    Args:
        secret: At least 32 secret bytes.
        purpose: What the key is for, printable ASCII, e.g. ``"mpc/pairwise stream"``. A constant of the
            calling code.
        context: Whatever else tells two keys of one purpose apart: session, round, parties, tensor, attempt.

    Returns:
        32 bytes.

    Raises:
        UsageError: The secret is shorter than a key, or the purpose is empty or not printable ASCII.
    """
    if len(secret) < KEY_BYTES:
        raise UsageError(f"a key is derived from at least {KEY_BYTES} secret bytes, got {len(secret)}")
    if not purpose or not (purpose.isascii() and purpose.isprintable()):
        raise UsageError("the purpose of a derived key must be printable ASCII and not empty")
    info = _LABEL + purpose.encode("ascii") + b"\0" + context
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)


class KeyedStream:
    """A pseudorandom stream of bytes and ring elements: AES-256-CTR under one key, from counter zero.

    Consumers that make the same requests in the same order under the same key get the same words. The
    encryptor lives as long as the stream, since making one costs as much as 30 kB of stream. A stream belongs
    to one thread.

    Security: never make two streams from one key for different purposes; they are the same stream.
    """

    __slots__ = ("_encryptor", "_position")

    def __init__(self, key: bytes) -> None:
        """Start the stream of a key.

        Args:
            key: 32 bytes, used for this stream alone.

        Raises:
            UsageError: The key does not have 32 bytes.
        """
        if len(key) != KEY_BYTES:
            raise UsageError(f"a stream key has {KEY_BYTES} bytes, got {len(key)}")
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self._position = 0

    def __repr__(self) -> str:
        return f"KeyedStream(position={self._position})"

    @property
    def position(self) -> int:
        """Number of bytes taken so far."""
        return self._position

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes of the stream.

        Raises:
            UsageError: ``size`` is negative.
        """
        if size < 0:
            raise UsageError(f"a stream gives zero or more bytes, asked for {size}")
        taken = bytearray(size)
        self._fill_bytes(memoryview(taken))
        return bytes(taken)

    def words(self, shape: int | tuple[int, ...], ring: Ring = RING64) -> RingArray:
        """Return the next ring elements of the stream as a new array, each uniform in [0, 2^k).

        Args:
            shape: Shape of the array; it takes ``prod(shape) * ring.element_bytes`` bytes, little-endian, C
                order.
            ring: Ring of the elements.

        Raises:
            UsageError: A dimension is negative.
        """
        sizes = (shape,) if isinstance(shape, int) else shape
        if any(size < 0 for size in sizes):
            raise UsageError(f"a shape has no negative dimension, got {sizes}")
        taken = np.empty(prod(sizes), dtype=ring.dtype)
        self.fill(taken)
        return taken.reshape(sizes)

    def fill(self, words: RingArray) -> None:
        """Overwrite an array with the next ring elements: ``words()`` for hot paths that keep their buffers.

        Raises:
            UsageError: The array is not C-contiguous; the stream has not moved.
            InputError: The array does not hold ring elements; the stream has not moved.
        """
        ring_of(words)
        if not words.flags.c_contiguous:
            raise UsageError("a stream fills C-contiguous arrays only; give it a copy")
        self._fill_bytes(words.reshape(-1).view(np.uint8).data)

    def _fill_bytes(self, buffer: memoryview) -> None:
        step = len(_ZEROS)
        for start in range(0, len(buffer), step):
            piece = buffer[start : start + step]
            self._encryptor.update_into(_ZEROS[: len(piece)], piece)
        self._position += len(buffer)


def fresh_stream() -> KeyedStream:
    """Return a stream under a new key from the operating system, which nobody else can repeat."""
    return KeyedStream(fresh_key())
