"""Additive sharing among n parties: ``x = x_0 + x_1 + ... + x_{n-1} mod 2^k``.

All shares are needed to reconstruct. Any n-1 of them are uniform and independent of the secret, because the
one that is missing acts as a one-time pad. Sharings add share by share: the sum of shares is a sharing of the
sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsec.errors import ProtocolError, UsageError
from fedsec.ring import KeyedStream, RingArray, ring_of

MIN_PARTIES = 2
MAX_PARTIES = 7


def share(secret: RingArray, parties: int, stream: KeyedStream) -> list[RingArray]:
    """Split a secret into one share a party.

    Args:
        secret: Ring elements of any shape.
        parties: Number of shares, 2 to 7.
        stream: Source of the first n-1 shares, which nobody else may know; it moves by (n-1) * size elements.

    Returns:
        ``parties`` arrays of the secret's shape and dtype.

    Raises:
        UsageError: ``parties`` is not 2 to 7.
        InputError: The secret is not an array of ring elements.

    Security: any n-1 shares are uniform whatever the secret is (threats 4, 5).
    """
    check_parties(parties)
    ring = ring_of(secret)
    shares = [stream.words(secret.shape, ring) for _ in range(parties - 1)]
    last = np.array(secret)
    for mask in shares:
        np.subtract(last, mask, out=last)
    return [*shares, last]


def reconstruct(shares: Sequence[RingArray]) -> RingArray:
    """Join all shares of a secret: their sum modulo 2^k.

    Args:
        shares: The 2 to 7 shares, of one shape and dtype, in any order.

    Raises:
        UsageError: There are not 2 to 7 shares.
        ProtocolError: The shares differ in shape or dtype, so they do not belong together.
    """
    check_parties(len(shares))
    first = shares[0]
    # The sum of two arrays without dimensions is a numpy scalar, whose own arithmetic warns about wrapping.
    secret = np.array(first)
    for number, part in enumerate(shares[1:], start=1):
        if part.shape != first.shape or part.dtype != first.dtype:
            raise ProtocolError(
                f"share {number} has shape {part.shape} and dtype {part.dtype}, share 0 has {first.shape} "
                f"and {first.dtype}: they are not shares of one secret"
            )
        np.add(secret, part, out=secret)
    return secret


def check_parties(parties: int) -> None:
    """Refuse a number of parties other than 2 to 7.

    Raises:
        UsageError: The number does not fit.
    """
    if not MIN_PARTIES <= parties <= MAX_PARTIES:
        raise UsageError(f"additive sharing takes {MIN_PARTIES} to {MAX_PARTIES} parties, got {parties}")
