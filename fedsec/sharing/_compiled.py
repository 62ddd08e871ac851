"""The kernel that cuts words into bit planes; imported by ``fedsec.sharing.boolean`` at the first call."""

from __future__ import annotations

import numpy as np

from fedsec.ring import RingArray
from fedsec.ring._compiled import jit


@jit
def slice_bits(words: RingArray, planes: RingArray) -> None:
    """Write bit p of element e into bit e mod 64 of word e // 64 of plane p.

    Elements are widened to 64 bits first; the innermost loop then has no branch and becomes vector code.
    """
    for lane_word in range(planes.shape[1]):
        block = words[64 * lane_word : 64 * lane_word + 64]
        for p in range(planes.shape[0]):
            bits = np.uint64(0)
            for e in range(len(block)):
                bits |= ((np.uint64(block[e]) >> np.uint64(p)) & np.uint64(1)) << np.uint64(e)
            planes[p, lane_word] = bits
