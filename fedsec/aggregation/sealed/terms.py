"""What makes a round sealed: its average stays in shares at three parties, the server only gets the metrics.

``reveal_to`` of an announcement says who may have the model: "server" (everyone who is sent it), "hospitals"
(they reconstruct each state, the server and the parties never do) or "nobody" (as "hospitals", but the state
that the last round makes is never opened: it is served from the parties).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from fedsec.aggregation.encoding import Floats
from fedsec.aggregation.planner import ArraySpec
from fedsec.aggregation.signing import DIGEST_BYTES, digest
from fedsec.errors import InputError, RangeError
from fedsec.ring import RING64, RingArray, signed
from fedsec.sharing.replicated import PARTIES
from fedsec.transport.party_config import REVEAL_TO

if TYPE_CHECKING:
    from fedsec.aggregation.announcement import Announcement

__all__ = [
    "REVEAL_TO",
    "SEALED_FRACTION_BITS",
    "Sealed",
    "SealedAt",
    "arrays_bytes",
    "arrays_from",
    "decode_model",
    "encode_model",
    "origin_of",
    "sealed_faults",
]

SEALED_FRACTION_BITS = 24
"""Of the model's words: float32 parameters below 1 lose nothing."""
COARSEST_FRACTION_BITS, FINEST_FRACTION_BITS = 8, 32
_LARGEST_WORD_BITS = 60
"""Initial parameters, and the sum of all changes, each stay below 2^60 words: their sum below 2^61."""
_DTYPES = {"float16", "float32", "float64"}


class Sealed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The part of an announcement that a sealed round has, and no other.

    Attributes:
        parties: The three computing parties, in the order of the shares they hold.
        fraction_bits: Fraction bits of the model's words.
        base: The state that hospitals train or evaluate: the number of the round that made it, or 0 for the
            initial parameters, whose arrays and digests the announcement has in every round.
        keep_closed: Whether the state that this round makes is never opened to anybody.
        serves: The digest of the one plan under which a closed state may be served; empty for none. Under a
            plan of its own choice, whoever asks could have the parameters as predictions.
    """

    parties: tuple[str, ...]
    fraction_bits: int
    base: int
    keep_closed: bool
    serves: bytes = b""


@dataclass(frozen=True, slots=True)
class SealedAt:
    """Where a sealed model is: its shares are at the three computing parties under this session and number.

    Attributes:
        session: The session of the rounds, 16 bytes.
        number: The training round that made it; 0 for the initial parameters.
        closed: Whether it is opened to nobody, the hospitals included.
    """

    session: bytes
    number: int
    closed: bool


def origin_of(announcement: Announcement) -> bytes:
    """Return the digest of the initial parameters of a sealed model, with their clips and fraction bits.

    All rounds of a session have one origin. How far a state is from the initial parameters is checked by
    hospitals, whose refusal the server sees: with others in each announcement it could read the state off.
    """
    sealed = announcement.sealed
    fraction_bits = 0 if sealed is None else sealed.fraction_bits
    described = (announcement.arrays, announcement.array_digests, fraction_bits)
    return digest("sealed origin", announcement.session, msgspec.msgpack.encode(described))


def sealed_faults(announcement: Announcement) -> list[tuple[bool, str]]:
    """Return what could be wrong with the sealed part of an announcement, each with its text."""
    sealed, revealed_to = announcement.sealed, announcement.reveal_to
    faults = [
        (revealed_to not in REVEAL_TO, f"reveal_to is none of {', '.join(REVEAL_TO)}"),
        ((sealed is None) != (revealed_to == "server"), f"reveal_to '{revealed_to}' and the sealed part"),
    ]
    if sealed is None:
        return faults
    names = {member.name for member in announcement.aggregators}
    trains = announcement.phase == "train"
    newest = announcement.round - 1 if trains else announcement.round
    clip = max((spec.clip for spec in announcement.arrays), default=0.0)
    farthest = announcement.round * clip * 2.0**sealed.fraction_bits
    return [
        *faults,
        (
            len(sealed.parties) != PARTIES or len(set(sealed.parties) & names) != PARTIES,
            "a sealed round has three computing parties, all of them aggregators",
        ),
        (
            not COARSEST_FRACTION_BITS <= sealed.fraction_bits <= FINEST_FRACTION_BITS,
            f"{COARSEST_FRACTION_BITS} to {FINEST_FRACTION_BITS} fraction bits are supported",
        ),
        (not 0 <= sealed.base <= newest, "the sealed state to begin from is not an earlier one"),
        (
            sealed.keep_closed and not (trains and revealed_to == "nobody"),
            "only a training round of a model for nobody keeps its state closed",
        ),
        (
            len(sealed.serves) not in {0, DIGEST_BYTES} or (bool(sealed.serves) and not sealed.keep_closed),
            "only a closed state is served, under the SHA-256 digest of its plan",
        ),
        (any(s.dtype not in _DTYPES for s in announcement.arrays), "a sealed array is not floating-point"),
        # The lift to 64 bits takes sums below a quarter of the ring; a plan for twice the roster has them.
        (
            2 * len(announcement.roster) > announcement.encoding.hospitals,
            "the encoding is not planned for twice the roster, as sealed rounds need",
        ),
        (not farthest < 2.0**_LARGEST_WORD_BITS, "so many rounds with that clip do not fit the sealed words"),
    ]


def encode_model(arrays: Sequence[npt.NDArray[Any]], fraction_bits: int) -> RingArray:
    """Round parameters to words of the 64-bit ring, all arrays one after the other.

    Raises:
        RangeError: A parameter is not finite or too large.
    """
    flat = [np.asarray(array, dtype=np.float64).ravel() for array in arrays]
    values: Floats = np.concatenate(flat) if flat else np.empty(0)
    scaled = np.rint(values * 2.0**fraction_bits)
    if not np.isfinite(scaled).all() or (np.abs(scaled) >= 2.0**_LARGEST_WORD_BITS).any():
        largest = 2.0 ** (_LARGEST_WORD_BITS - fraction_bits)
        raise RangeError(f"a parameter is not finite or not below {largest:g}: it cannot be sealed")
    words: RingArray = scaled.astype(np.int64).astype(RING64.dtype)
    return words


def decode_model(words: RingArray, specs: Sequence[ArraySpec], fraction_bits: int) -> list[Floats]:
    """Return the parameters of a sealed state as float64 arrays; exact, as words are below 2^53 in practice.

    Raises:
        InputError: The words are not as many as the arrays have elements.
    """
    if words.size != sum(spec.size for spec in specs):
        raise InputError(f"the sealed state has {words.size} words, its arrays have another number")
    values = signed(words).astype(np.float64) * 2.0**-fraction_bits
    arrays, start = [], 0
    for spec in specs:
        arrays.append(values[start : start + spec.size].reshape(spec.shape))
        start += spec.size
    return arrays


def arrays_bytes(specs: Sequence[ArraySpec]) -> int:
    """Return the bytes of the arrays one after the other."""
    return sum(spec.size * np.dtype(spec.dtype).itemsize for spec in specs)


def arrays_from(body: bytes | bytearray, specs: Sequence[ArraySpec]) -> list[npt.NDArray[Any]]:
    """Return the arrays whose little-endian bytes stand one after the other in ``body``.

    Raises:
        InputError: The body has another size.
    """
    if len(body) != arrays_bytes(specs):
        raise InputError(f"expected {arrays_bytes(specs)} bytes of initial parameters, got {len(body)}")
    arrays, start = [], 0
    for spec in specs:
        dtype = np.dtype(spec.dtype).newbyteorder("<")
        arrays.append(np.frombuffer(body, dtype, math.prod(spec.shape), start).reshape(spec.shape))
        start += spec.size * dtype.itemsize
    return arrays
