"""The tag of an update: by it a hospital knows again what it has sent, and nobody else learns anything.

A tag is made of one GMAC (AES-256-GCM over no plaintext) an array, under a key that never leaves the
hospital and with one nonce. The tags do not leave it either, so what is needed is that two updates have one
tag with negligible probability for somebody who knows neither key nor tags; that is what GHASH gives, at ten
times the speed of SHA-256.
"""

from __future__ import annotations

import hmac

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedsec.aggregation.encoding import Floats
from fedsec.ring import derive_key

_NONCE = bytes(12)


class UpdateTag:
    """The tag of one update as training made it, array by array and each piece by piece.

    Clips, weights, metrics, the order and the names of arrays, and arrays that did not change, are the
    server's to choose and so are no part of it.

    Args:
        key: The hospital's own secret, 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._mac_key = derive_key(key, purpose="aggregation/update tag, arrays")
        self._key = derive_key(key, purpose="aggregation/update tag")
        self._done: list[bytes] = []
        self._changed = False
        self._begin()

    def add(self, piece: Floats | None, changed: bool) -> None:
        """Take the next elements of the array at hand, or None at its end.

        Args:
            piece: The elements, contiguous float64 without -0.0.
            changed: Whether one of them is not zero.
        """
        if piece is not None:
            self._mac.authenticate_additional_data(piece.data.cast("B"))
            self._changed |= changed
            return
        self._mac.finalize()
        if self._changed:
            self._done.append(self._mac.tag)
        self._changed = False
        self._begin()

    def digest(self) -> bytes:
        """Return the tag (32 bytes) of the arrays that have ended."""
        return hmac.digest(self._key, b"".join(sorted(self._done)), "sha256")

    def _begin(self) -> None:
        self._mac = Cipher(algorithms.AES(self._mac_key), modes.GCM(_NONCE)).encryptor()
