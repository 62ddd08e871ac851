"""Decoding bytes of another process: one decoder a class of message, and what can go wrong."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")

MALFORMED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""All that decoding MessagePack raises for bytes that are no such message.

msgspec does not wrap the last two, which come from a text that is no UTF-8 and from deep nesting.
"""

_making = threading.Lock()
_decoders: dict[type, msgspec.msgpack.Decoder[Any]] = {}


def decode_as(payload: Buffer, kind: type[T]) -> T:
    """Decode a message; ``msgspec.msgpack.decode`` must not be used in its place.

    msgspec (0.22) takes a class apart when it first decodes one, and a second thread that decodes it
    meanwhile, or another class that shares a part with it, reads what is not written yet: the process dies of
    a segmentation fault. Two clients that greet a party at its start would do. So a decoder is made under a
    lock; decoding with it changes nothing that threads share.

    Args:
        payload: The bytes.
        kind: The class of message.

    Raises:
        MALFORMED: The bytes are no such message.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        with _making:
            decoder = _decoders.setdefault(kind, msgspec.msgpack.Decoder(kind))
    decoded: T = decoder.decode(payload)
    return decoded
