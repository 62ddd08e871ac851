"""Updates as words of a ring: the planner that proves the sum cannot wrap, encode and decode.

A hospital's vector is ``(w * update, w, w * metrics, checksum)``. Every word but the checksum lies within
``+-largest_word = floor((2^(k-1) - 1) / hospitals)``, so the sum over all hospitals stays below 2^(k-1)
and the opened sum is the integer sum. The scale of a tensor with clip ``C`` is
``largest_word / (largest_weight * C)`` and rounding costs at most half a word a hospital, which makes the
error of the mean at most ``hospitals * largest_weight / (2^k * mean weight) * C``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from fedsec.errors import InputError, RangeError, RoundAbortedError
from fedsec.ring import Ring, RingArray, signed

ENCODING_VERSION = 1
COARSEST_ERROR = 2.0**-10
"""The largest error bound, as a part of the clip, that a plan may have; a coarser mean would be of no use."""
_FINEST_WORD = 2**48
"""No word is larger, whatever the ring: float64 then still rounds every product to the right integer."""

WeightRule = Literal["examples", "bucketed", "equal"]
Floats = npt.NDArray[np.float64]


class ArraySpec(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One array of the model: ``clip`` bounds the absolute value of its update and is a public constant."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    clip: float

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


class MetricSpec(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One metric and the public range its values lie in."""

    name: str
    low: float
    high: float

    @property
    def clip(self) -> float:
        """The largest absolute value in the range."""
        return max(abs(self.low), abs(self.high))


class Encoding(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The planner's result, part of every announcement. All its fields are public constants of the round."""

    version: int
    ring_bits: int
    weights: WeightRule
    hospitals: int
    clip: float
    largest_weight: int
    smallest_mean_weight: float

    @property
    def ring(self) -> Ring:
        """The ring of the words."""
        return Ring(self.ring_bits)

    @property
    def largest_word(self) -> int:
        """The largest absolute value of one hospital's word."""
        return min(((1 << (self.ring_bits - 1)) - 1) // self.hospitals, _FINEST_WORD)

    @property
    def error_bound(self) -> float:
        """The largest error of the mean for the largest clip and the smallest mean weight of the plan."""
        return 0.5 / (self.scale(self.clip) * self.smallest_mean_weight)

    def scale(self, clip: float) -> float:
        """Return the words a unit of ``weight * value`` is worth, for values within ``+-clip``."""
        return self.largest_word / (self.largest_weight * clip)

    def error_bound_for(self, clip: float, included: int, total_weight: int) -> float:
        """Return the largest error of a mean over ``included`` hospitals with that total weight."""
        return 0.5 * included / (self.scale(clip) * total_weight)

    def weight_of(self, num_examples: int) -> int:
        """Return the aggregation weight of a hospital with ``num_examples`` examples.

        Raises:
            RangeError: The count is not an integer between 1 and the largest weight of the plan.
        """
        if (
            isinstance(num_examples, bool)
            or not isinstance(num_examples, int | np.integer)
            or num_examples < 1
        ):
            msg = "the number of examples must be an integer of at least 1; nothing was sent"
            raise RangeError(msg)
        weight = _weight(int(num_examples), self.weights)
        if weight > self.largest_weight:
            msg = f"the weight exceeds the largest one of this round, {self.largest_weight}; nothing was sent"
            raise RangeError(msg)
        return weight

    def check(self) -> None:
        """Check that no sum can wrap and that the mean is precise enough to be of use.

        Raises:
            RangeError: The parameters do not fit the ring.
        """
        if self.version != ENCODING_VERSION or self.ring_bits not in {32, 64}:
            expected = f"encoding version {ENCODING_VERSION} over 32 or 64 bits"
            msg = f"expected {expected}, not version {self.version} over {self.ring_bits}"
            raise RangeError(msg)
        _check_positive("hospitals", self.hospitals)
        _check_positive("largest_weight", self.largest_weight)
        _check_positive("clip", self.clip)
        _check_positive("smallest_mean_weight", self.smallest_mean_weight)
        if self.largest_weight > self.largest_word:
            msg = (
                f"{self.hospitals} hospitals of weight up to {self.largest_weight} can wrap a sum in "
                f"{self.ring_bits} bits: lower the largest weight to {self.largest_word} or take 64 bits"
            )
            raise RangeError(msg)
        if self.smallest_mean_weight > self.largest_weight:
            msg = f"the smallest mean weight exceeds the largest weight, {self.largest_weight}"
            raise RangeError(msg)
        if self.error_bound > COARSEST_ERROR * self.clip:
            msg = (
                f"the mean would be off by up to {self.error_bound / self.clip:.2g} of the clip, more than "
                f"{COARSEST_ERROR:.2g}: raise the smallest mean weight, lower the largest or take 64 bits"
            )
            raise RangeError(msg)


def plan_encoding(
    hospitals: int,
    clip: float,
    largest_weight: int,
    smallest_mean_weight: float,
    ring_bits: int = 32,
    *,
    weights: WeightRule = "examples",
) -> Encoding:
    """Choose the scale so that the sum over all hospitals cannot wrap.

    Args:
        hospitals: The largest number of hospitals in a round.
        clip: The largest clip of any tensor, in units of the update.
        largest_weight: The largest weight (examples) a hospital may have; 1 when ``weights`` is "equal".
        smallest_mean_weight: The smallest mean weight of a round for which the error bound is stated.
        ring_bits: 32 or 64.
        weights: "examples", "bucketed" (rounded down to a power of two) or "equal" (ones).

    Returns:
        The encoding; ``error_bound`` is N * w_max / (2^k * w_mean) * C.

    Raises:
        RangeError: The parameters do not fit the ring.
    """
    if weights == "equal":
        largest_weight, smallest_mean_weight = 1, 1.0
    encoding = Encoding(
        version=ENCODING_VERSION,
        ring_bits=ring_bits,
        weights=weights,
        hospitals=hospitals,
        clip=float(clip),
        largest_weight=largest_weight,
        smallest_mean_weight=float(smallest_mean_weight),
    )
    encoding.check()
    return encoding


@dataclass(frozen=True, slots=True)
class Layout:
    """What stands where in the shared vector of a round; ``arrays`` is empty in an evaluation round."""

    encoding: Encoding
    arrays: tuple[ArraySpec, ...]
    metrics: tuple[MetricSpec, ...]

    @property
    def payload_words(self) -> int:
        """Words before the checksum: updates, weight, metrics."""
        return sum(spec.size for spec in self.arrays) + 1 + len(self.metrics)

    @property
    def words(self) -> int:
        """Words of the whole vector."""
        return self.payload_words + 1

    @property
    def vector_bytes(self) -> int:
        """Bytes of the whole vector."""
        return self.words * self.encoding.ring.element_bytes


@dataclass(frozen=True, slots=True)
class ClipReport:
    """How much :func:`clip_update` changed."""

    clipped: int
    total: int

    @property
    def fraction(self) -> float:
        """The part of all elements that was clipped."""
        return self.clipped / self.total if self.total else 0.0


def clip_update(
    update: Sequence[npt.NDArray[Any]], specs: Sequence[ArraySpec]
) -> tuple[list[Floats], ClipReport]:
    """Clip each array to its range and say how many elements that changed.

    Returns:
        The clipped arrays as float64 and the report. NaN stays NaN: encoding refuses it.

    Raises:
        InputError: The number of arrays is not that of the specs.
    """
    if len(update) != len(specs):
        msg = f"expected {len(specs)} arrays, got {len(update)}; nothing was clipped"
        raise InputError(msg)
    values = [np.asarray(array, dtype=np.float64) for array in update]
    clipped = sum(
        int(np.count_nonzero(np.abs(array) > spec.clip)) for array, spec in zip(values, specs, strict=True)
    )
    report = ClipReport(clipped=clipped, total=sum(array.size for array in values))
    return [np.clip(array, -spec.clip, spec.clip) for array, spec in zip(values, specs, strict=True)], report


def encode_update(
    layout: Layout, update: Sequence[npt.NDArray[Any]], num_examples: int, metrics: Mapping[str, float]
) -> RingArray:
    """Encode one hospital's contribution, without the checksum word.

    The product with the weight is formed in float64 and rounded once, half to even.

    Args:
        layout: The layout of the round.
        update: One array a spec, same shapes, every value finite and within the spec's clip.
        num_examples: The number of examples, 1 to the largest weight of the plan.
        metrics: Exactly the metrics of the layout, each within its range.

    Returns:
        Ring elements of shape [layout.payload_words].

    Raises:
        InputError: Names or shapes differ from the layout.
        RangeError: A value is not finite or lies outside its range. Nothing was sent.
    """
    encoding = layout.encoding
    weight = encoding.weight_of(num_examples)
    if len(update) != len(layout.arrays):
        msg = f"this round sums {len(layout.arrays)} arrays, the update has {len(update)}; nothing was sent"
        raise InputError(msg)
    words: RingArray = np.empty(layout.payload_words, dtype=encoding.ring.dtype)
    at = 0
    for spec, array in zip(layout.arrays, update, strict=True):
        words[at : at + spec.size] = _encode_array(encoding, spec, array, weight)
        at += spec.size
    words[at] = weight
    words[at + 1 :] = _encode_metrics(encoding, layout.metrics, metrics, weight)
    return words


@dataclass(frozen=True, slots=True)
class DecodedSum:
    """The means of a round: float64 arrays in layout order, the total weight, weighted mean metrics."""

    arrays: tuple[Floats, ...]
    total_weight: int
    metrics: dict[str, float]
    error_bound: float


def decode_sum(layout: Layout, words: RingArray, included: int) -> DecodedSum:
    """Decode the opened sum over ``included`` hospitals into weighted means.

    Args:
        layout: The layout of the round.
        words: The sum, shape [layout.payload_words] or longer (a checksum word is ignored).
        included: The number of hospitals in the sum.

    Raises:
        RoundAbortedError: The total weight, a mean or a metric lies outside what honest hospitals can
            reach: a modified client took part, and the result must not be used.
    """
    encoding = layout.encoding
    sums = signed(words)
    at = sum(spec.size for spec in layout.arrays)
    total = int(sums[at])
    if not included <= total <= included * encoding.largest_weight:
        limit = included * encoding.largest_weight
        msg = f"the opened total weight is outside {included}..{limit}: the round is void"
        raise RoundAbortedError(msg)
    arrays, start = [], 0
    for spec in layout.arrays:
        part = sums[start : start + spec.size].astype(np.float64)
        arrays.append(
            _mean(encoding, part, (spec.name, -spec.clip, spec.clip), total, included).reshape(spec.shape)
        )
        start += spec.size
    metrics = {}
    for spec_m, word in zip(layout.metrics, sums[at + 1 : at + 1 + len(layout.metrics)], strict=True):
        limits = (spec_m.name, spec_m.low, spec_m.high)
        metrics[spec_m.name] = float(
            _mean(encoding, np.array([word], np.float64), limits, total, included)[0]
        )
    clip = max((spec.clip for spec in layout.arrays), default=0.0)
    bound = encoding.error_bound_for(clip, included, total) if clip else 0.0
    return DecodedSum(tuple(arrays), total, metrics, bound)


def _mean(
    encoding: Encoding, sums: Floats, limits: tuple[str, float, float], total: int, included: int
) -> Floats:
    name, low, high = limits
    clip = max(abs(low), abs(high))
    mean: Floats = sums / (encoding.scale(clip) * total)
    slack = encoding.error_bound_for(clip, included, total) * (1 + 1e-9)
    if mean.size and (float(mean.min()) < low - slack or float(mean.max()) > high + slack):
        msg = f"the opened mean of '{name}' is outside {low}..{high}: a client cheated, the round is void"
        raise RoundAbortedError(msg)
    return mean


def _encode_array(encoding: Encoding, spec: ArraySpec, array: npt.NDArray[Any], weight: int) -> RingArray:
    values = np.asarray(array)
    if values.shape != spec.shape:
        msg = f"array '{spec.name}' should have shape {spec.shape}, got {values.shape}; nothing was sent"
        raise InputError(msg)
    if values.dtype.kind not in "fiu":
        msg = f"array '{spec.name}' has dtype {values.dtype}, expected numbers; nothing was sent"
        raise InputError(msg)
    flat = values.astype(np.float64).ravel()
    _check_range(f"array '{spec.name}'", flat, -spec.clip, spec.clip)
    return _to_words(encoding, flat * (weight * encoding.scale(spec.clip)))


def _encode_metrics(
    encoding: Encoding, specs: Sequence[MetricSpec], metrics: Mapping[str, float], weight: int
) -> RingArray:
    if set(metrics) != {spec.name for spec in specs}:
        expected, got = sorted(spec.name for spec in specs), sorted(metrics)
        msg = f"this round sums the metrics {expected}, the update has {got}; nothing was sent"
        raise InputError(msg)
    values = np.empty(len(specs), dtype=np.float64)
    for index, spec in enumerate(specs):
        value = np.array([metrics[spec.name]], dtype=np.float64)
        _check_range(f"metric '{spec.name}'", value, spec.low, spec.high)
        values[index] = value[0] * (weight * encoding.scale(spec.clip))
    return _to_words(encoding, values)


def _check_range(what: str, values: Floats, low: float, high: float) -> None:
    if not np.isfinite(values).all():
        msg = f"{what} holds NaN or infinity; nothing was sent"
        raise RangeError(msg)
    if values.size and (float(values.min()) < low or float(values.max()) > high):
        outside = int(np.count_nonzero((values < low) | (values > high)))
        msg = f"{what} has {outside} of {values.size} values outside {low}..{high}; nothing was sent"
        raise RangeError(msg)


def _to_words(encoding: Encoding, scaled: Floats) -> RingArray:
    # Rounding twice in float64 can exceed the largest word by an ulp; it never exceeds it after rint.
    whole = np.rint(scaled, out=scaled).astype(np.int64)
    return whole.astype(encoding.ring.dtype)


def _weight(num_examples: int, rule: WeightRule) -> int:
    if rule == "equal":
        return 1
    return 1 << (num_examples.bit_length() - 1) if rule == "bucketed" else num_examples


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        msg = f"{name} must be positive and finite, not {value}"
        raise RangeError(msg)
