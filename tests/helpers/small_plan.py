"""A network of a few values with every kind of secret step, hand-made, and its parameters in shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedsec.nn.plan import Dense, Plan, Relu, TopK
from fedsec.ring import encode, fresh_stream
from fedsec.sharing import replicated
from fedsec.sharing.replicated import RepShare

BITS = 8
WIDTH = 64
CLASSES = 4

HIDDEN = (
    Dense(
        name="in", inputs=(0,), input_shape=(6,), output_shape=(WIDTH,), weight_fraction_bits=BITS,
        bound=16.0,
    ),
    Relu(name="relu", inputs=(1,), input_shape=(WIDTH,), output_shape=(WIDTH,), bits=BITS, window_bits=14),
    Dense(
        name="out", inputs=(2,), input_shape=(WIDTH,), output_shape=(CLASSES,), weight_fraction_bits=BITS,
        bound=256.0,
    ),
)  # fmt: skip

LOGITS = Plan(
    name="small", input_shape=(6,), output_shape=(CLASSES,), input_low=0.0, input_high=1.0,
    fraction_bits=BITS, layers=HIDDEN,
)  # fmt: skip

LABEL = Plan(
    name="small label", input_shape=(6,), output_shape=(1,), input_low=0.0, input_high=1.0,
    fraction_bits=BITS,
    layers=(
        *HIDDEN,
        TopK(
            name="label", inputs=(3,), input_shape=(CLASSES,), output_shape=(1,), k=1, bits=BITS,
            window_bits=18,
        ),
    ),
)  # fmt: skip

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Model:
    """Parameters in the clear: two kernels and two biases."""

    arrays: tuple[Floats, ...]

    @classmethod
    def drawn(cls, seed: int) -> Model:
        """Return a model of random parameters."""
        generator = np.random.default_rng(seed)
        shapes = [(6, WIDTH), (WIDTH,), (WIDTH, CLASSES), (CLASSES,)]
        return cls(tuple(generator.normal(scale=0.3, size=shape) for shape in shapes))

    def logits(self, x: Floats) -> Floats:
        """Return the logits in the clear, [N, classes]."""
        first, bias, second, last = self.arrays
        return np.maximum(x @ first + bias, 0) @ second + last

    def shares(self) -> list[tuple[RepShare, RepShare, RepShare]]:
        """Split the parameters among three parties, freshly."""
        return [
            replicated.share(encode(array, spec.fraction_bits), fresh_stream(), spec.fraction_bits)
            for array, spec in zip(self.arrays, LOGITS.weight_specs, strict=True)
        ]


def of_party(shares: Sequence[tuple[RepShare, RepShare, RepShare]], party_id: int) -> list[RepShare]:
    """Return what one party holds."""
    return [share[party_id] for share in shares]


def share_images(x: Floats) -> tuple[RepShare, RepShare, RepShare]:
    """Split images [N, 6] among three parties, freshly."""
    return replicated.share(encode(x, BITS), fresh_stream(), BITS)
