"""Updates as words of a ring: clip, encode, and decode the opened sum. The scales come from ``planner``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsec.aggregation.planner import (
    COARSEST_ERROR,
    ENCODING_VERSION,
    ArraySpec,
    Encoding,
    Layout,
    MetricSpec,
    WeightRule,
    plan_encoding,
)
from fedsec.errors import InputError, RangeError, RoundAbortedError
from fedsec.ring import RingArray, signed

__all__ = [
    "COARSEST_ERROR",
    "ENCODING_VERSION",
    "ArraySpec",
    "ClipReport",
    "DecodedSum",
    "Encoding",
    "Floats",
    "Layout",
    "MetricSpec",
    "WeightRule",
    "clip_update",
    "decode_sum",
    "encode_update",
    "plan_encoding",
    "saturate",
]

Floats = npt.NDArray[np.float64]


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
        The clipped arrays as float64 and the report. What is not finite stays so: encoding refuses it.

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
    return [_clip(array, spec.clip) for array, spec in zip(values, specs, strict=True)], report


def saturate(
    layout: Layout, update: Sequence[npt.NDArray[Any]], num_examples: int, metrics: Mapping[str, float]
) -> tuple[list[Floats], int, dict[str, float], ClipReport]:
    """Bring a contribution into the round's public ranges instead of refusing it.

    The ranges come from the server, and whether a hospital is present is visible to it: a hospital that
    stayed away whenever a private value lies outside an announced range would answer questions about it.

    Returns:
        The arguments of :func:`encode_update`, and the elements and metrics that changed. What is not
        finite, or no count of examples, stays as it is: encoding refuses it whatever was announced.

    Raises:
        InputError: The number of arrays is not that of the layout.
    """
    arrays, report = clip_update(update, layout.arrays)
    limited, changed = dict(metrics), 0
    for spec in layout.metrics:
        if math.isfinite(value := limited.get(spec.name, math.nan)):
            limited[spec.name] = min(max(value, spec.low), spec.high)
            changed += limited[spec.name] != value
    largest, counted = layout.encoding.largest_weight, layout.encoding.weights != "equal"
    heavy = counted and isinstance(num_examples, int | np.integer) and num_examples > largest
    weight = largest if heavy else num_examples
    total = report.total + len(layout.metrics) + 1
    return arrays, weight, limited, ClipReport(clipped=report.clipped + changed + heavy, total=total)


def _clip(array: Floats, clip: float) -> Floats:
    limited: Floats = np.where(np.isfinite(array), np.clip(array, -clip, clip), array)
    return limited


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
