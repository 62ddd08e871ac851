"""An example call of each protocol of dealt mode, for the page of costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedsec.mpc.dealt import comparisons, protocols, responses
from fedsec.mpc.dealt.piecewise import Pieces
from fedsec.mpc.randomised_response import ResponseLaw
from fedsec.ring import RING32, RING64, Ring
from fedsec.sharing.replicated import RepShare


def _words(*shape: int, ring: Ring = RING64) -> RepShare:
    zeros = np.zeros(shape, dtype=ring.dtype)
    return RepShare(zeros, zeros, fraction_bits=16)


_COUNT = 1024
_ELEMENTS = f"{_COUNT:,} elements"
_PIECES = Pieces(knots=tuple(range(16)), slopes=(1,) * 16, first_slope=0, offset=0)

EXAMPLES: Mapping[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "dealt_conv2d": (
        "image 13 x 13 x 10, 32 kernels 3 x 3",
        (_words(1, 13, 13, 10), _words(3, 3, 10, 32), _words(32)),
        {},
    ),
    "dealt_input": (_ELEMENTS, (_words(1, _COUNT),), {}),
    "dealt_matmul": ("[1, 64] @ [64, 10]", (_words(1, 64), _words(64, 10), _words(10)), {}),
    "dealt_max_pool": (
        "image 26 x 26 x 16, windows 2 x 2, 21 bits",
        (_words(1, 26, 26, 16), (2, 2), (1, 1), 21),
        {},
    ),
    "dealt_maximum": (f"{_ELEMENTS}, window of 21 bits", (_words(1, _COUNT), _words(1, _COUNT), 21), {}),
    "dealt_multiply": (_ELEMENTS, (_words(1, _COUNT), _words(1, _COUNT)), {}),
    "dealt_piecewise_linear": (
        f"{_ELEMENTS}, 16 knots, window of 21 bits, 12 bits dropped",
        (_words(1, _COUNT), _PIECES),
        {"slope_bits": 12, "window_bits": 21, "bits": 12},
    ),
    "dealt_reduce_max": ("10 values, window of 21 bits", (_words(1, 10), 21), {}),
    "dealt_relu": (
        f"{_ELEMENTS} in the 32-bit ring, 14 bits, window of 17, 5 ignored",
        (_words(1, _COUNT, ring=RING32),),
        {"bits": 14, "window_bits": 17, "ignore_bits": 5},
    ),
    "dealt_top_k": ("the largest of 10 values, window of 16 bits", (_words(1, 10), 1, 8, 16), {}),
    "randomised_response": (
        "one label of 10, epsilon 3",
        (_words(1, 1), ResponseLaw.of(10, 3.0)),
        {},
    ),
    "dealt_truncate": (
        f"{_ELEMENTS}, 13 bits, window of 30",
        (_words(1, _COUNT),),
        {"bits": 13, "window_bits": 30},
    ),
}
"""By name: what it is, and its arguments without the party."""

MODULES = (protocols, comparisons, responses)
"""Where they are declared, which happens on import."""
