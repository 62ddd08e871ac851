"""What can go wrong when bytes of another process are decoded."""

from __future__ import annotations

import msgspec

MALFORMED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""All that decoding MessagePack raises for bytes that are no such message.

msgspec does not wrap the last two, which come from a text that is no UTF-8 and from deep nesting.
"""
