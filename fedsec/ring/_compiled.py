"""The kernels that numba compiles; imported by ``fedsec.ring.kernels`` at the first call."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import numba

from fedsec.ring.words import RingArray


def _cache_folder() -> str | None:
    """Return a folder for compiled code that only this user can write, or None if there is none.

    Numba's cache files are pickles: a folder that someone else can write would let them run code here.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(os.environ.get("NUMBA_CACHE_DIR") or Path(base) / "fedsec" / "numba")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return None
        with tempfile.TemporaryFile(dir=folder):
            return str(folder)
    except (OSError, RuntimeError):  # RuntimeError: this user has no home
        return None


def _matmul(a: RingArray, b: RingArray, product: RingArray) -> None:
    """Write a @ b modulo 2^k into ``product``: four rows by two terms at a time, innermost along the columns.

    Numba widens 32-bit arithmetic to 64 bits; storing into a 32-bit array takes it back modulo 2^32. Rows are
    taken as views first: otherwise the compiler must allow for negative indices and uses no vector
    instructions (5x slower).
    """
    rows, terms = a.shape
    product[:] = 0
    for i in range(0, rows - 3, 4):
        z0, z1, z2, z3 = product[i], product[i + 1], product[i + 2], product[i + 3]
        x0, x1, x2, x3 = a[i], a[i + 1], a[i + 2], a[i + 3]
        for t in range(0, terms - 1, 2):
            p0, p1, p2, p3 = x0[t], x1[t], x2[t], x3[t]
            q0, q1, q2, q3 = x0[t + 1], x1[t + 1], x2[t + 1], x3[t + 1]
            u, v = b[t], b[t + 1]
            for j in range(b.shape[1]):
                z0[j] = z0[j] + p0 * u[j] + q0 * v[j]
                z1[j] = z1[j] + p1 * u[j] + q1 * v[j]
                z2[j] = z2[j] + p2 * u[j] + q2 * v[j]
                z3[j] = z3[j] + p3 * u[j] + q3 * v[j]
    # What the blocks of four rows and two terms left over.
    blocked = rows - rows % 4
    for i in range(rows):
        z = product[i]
        for t in range(terms - terms % 2 if i < blocked else 0, terms):
            p, u = a[i, t], b[t]
            for j in range(b.shape[1]):
                z[j] = z[j] + p * u[j]


def jit(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a kernel on its first call, and keep the machine code between processes where that is safe."""
    folder = _cache_folder()
    before = numba.config.CACHE_DIR
    try:
        numba.config.CACHE_DIR = folder or before  # read once, when the cache is attached
        compiled: Callable[..., None] = numba.njit(nogil=True, cache=folder is not None)(function)
    finally:
        numba.config.CACHE_DIR = before
    return compiled


matmul = jit(_matmul)
