"""The compiled kernels of dealt mode, loaded at the first call.

Numba costs 0.3 s and 65 MB to import: only a process that computes in dealt mode pays for it.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType


@cache
def compiled() -> ModuleType:
    """Return the module of compiled kernels; ``plain`` has the same functions in numpy."""
    from fedsec.mpc.dealt import _compiled  # noqa: PLC0415 - numba is loaded at the first call, not at import

    return _compiled
