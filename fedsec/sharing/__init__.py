"""Secret sharing as pure functions: additive, compressed, replicated, boolean, and their conversion."""

from fedsec.sharing import additive, boolean, compressed, conversion, replicated

__all__ = ["additive", "boolean", "compressed", "conversion", "replicated"]
