"""Updates as words of a ring: clip, encode, and decode the opened sum. The scales come from ``planner``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsec.aggregation.checksum import PIECE_WORDS
from fedsec.aggregation.noise.clipping import NormClip
from fedsec.aggregation.planner import ArraySpec, Encoding, Layout, MetricSpec
from fedsec.errors import InputError, RangeError, RoundAbortedError
from fedsec.ring import RingArray, signed

__all__ = ["ClipReport", "DecodedSum", "Floats", "UpdateWords", "decode_sum", "encode_update"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ClipReport:
    """How many of a contribution's values were out of their ranges; ``total`` is 0 where none may be.

    An update that is too long for a round with noise counts as a whole: every value of it was scaled down.
    """

    clipped: int
    total: int


class UpdateWords:
    """One hospital's contribution, without the checksum word, made piece by piece.

    The product with the weight is formed in float64 and rounded once, half to even.

    Args:
        layout: The layout of the round.
        update: One array a spec, same shapes, every value finite and within the spec's clip.
        num_examples: The number of examples, 1 to the largest weight of the plan; with ``saturate`` in a
            round with noise it is not looked at.
        metrics: Exactly the metrics of the layout, each within its range.
        base: What training began with, one array a spec; the update is then ``update - base``, in float64.
        saturate: Bring finite values that are out of their ranges to their ends instead of refusing them,
            and in a round with noise an update that is too long to its norm; there a value that is not
            finite counts as 0.
        hear: Gets every piece of the update as training made it (float64, without -0.0) with whether it
            is other than zero, and None at the end of each array.

    Attributes:
        report: What was brought into the ranges, once all words are made.

    Raises:
        InputError: Names, shapes or dtypes differ from the layout.
        RangeError: A metric or the number of examples is out of its range. Nothing was sent.
    """

    def __init__(
        self,
        layout: Layout,
        update: Sequence[npt.NDArray[Any]],
        num_examples: int,
        metrics: Mapping[str, float],
        *,
        base: Sequence[npt.NDArray[Any]] | None = None,
        saturate: bool = False,
        hear: Callable[[Floats | None, bool], None] | None = None,
    ) -> None:
        if len(update) != len(layout.arrays) or len(base or update) != len(update):
            count = len(layout.arrays)
            msg = f"this round sums {count} arrays, the update has {len(update)}; nothing was sent"
            raise InputError(msg)
        self._layout, self._saturate, self._hear = layout, saturate, hear
        self._pairs = [
            # What a model holds may be truth values; a difference of them is a number.
            (_flat(spec, array), None)
            if base is None
            else (_flat(spec, array, "b"), _flat(spec, base[index], "b"))
            for index, (spec, array) in enumerate(zip(layout.arrays, update, strict=True))
        ]
        changed = 0
        if saturate and layout.encoding.noise is not None:
            # All weights are equal, so the count goes nowhere: a refusal of 0 would tell it without noise.
            num_examples = 1
        if saturate:
            num_examples, metrics, changed = _saturated(layout, num_examples, metrics)
        self._weight = layout.encoding.weight_of(num_examples)
        self._metrics = _encode_metrics(layout.encoding, layout.metrics, metrics, self._weight)
        self._piece: Floats = np.empty(PIECE_WORDS, dtype=np.float64)
        noise = layout.encoding.noise
        self._norm = None if noise is None else NormClip(noise, layout.update_words, lenient=saturate)
        total = layout.payload_words
        self.report = ClipReport(clipped=changed, total=total if saturate else 0)

    def fill(self, words: RingArray) -> Iterator[int]:
        """Write the words from the front, and say after each piece how many are there.

        Args:
            words: Memory for ring elements, shape [payload_words].

        Raises:
            RangeError: A value is not finite or lies outside its range. Nothing was sent.
        """
        self._measure()
        at = 0
        for spec, (array, base) in zip(self._layout.arrays, self._pairs, strict=True):
            factor = self._weight * self._layout.encoding.scale(spec.clip)
            for piece in self._differences(array, base):
                self._into_range(spec, piece, (array, base))
                np.multiply(piece, factor, out=piece)
                _round_into(words[at : at + piece.size], piece)
                if self._norm is not None:
                    self._norm.add_rounded(piece)
                at += piece.size
                yield at
            if self._hear is not None:
                self._hear(None, False)
        if self._norm is not None:
            self._norm.check_rounded()
        words[at] = self._weight
        words[at + 1 :] = self._metrics
        yield words.size

    def _differences(self, array: npt.NDArray[Any], base: npt.NDArray[Any] | None) -> Iterator[Floats]:
        for start in range(0, array.size, PIECE_WORDS):
            stop = min(start + PIECE_WORDS, array.size)
            piece = self._piece[: stop - start]
            if base is None:
                np.copyto(piece, array[start:stop])
            else:
                # Infinity minus infinity is NaN, which fits no range, and neither does what overflows.
                with np.errstate(invalid="ignore", over="ignore"):
                    np.subtract(array[start:stop], base[start:stop], out=piece, dtype=np.float64)
            yield piece

    def _measure(self) -> None:
        """Find how long the whole update is: the noise is for a norm of all arrays together."""
        if self._norm is None:
            return
        for array, base in self._pairs:
            for piece in self._differences(array, base):
                self._norm.measure(piece)
        self._norm.check_measured()
        if self._norm.factor < 1:
            self.report = ClipReport(self._layout.update_words, self.report.total)
        elif self._norm.not_finite:
            self.report = ClipReport(self._norm.not_finite, self.report.total)

    def _into_range(
        self, spec: ArraySpec, piece: Floats, whole: tuple[npt.NDArray[Any], npt.NDArray[Any] | None]
    ) -> None:
        if self._norm is not None:
            self._norm.make_finite(piece)
        # Minimum and maximum carry NaN along, which fits no range.
        low, high = float(piece.min()), float(piece.max())
        if self._hear is not None:
            np.add(piece, 0.0, out=piece)  # -0.0 becomes 0.0
            self._hear(piece, not low == high == 0.0)
        if self._norm is not None:
            self._norm.shrink(piece)
            return
        if -spec.clip <= low and high <= spec.clip:
            return
        if not (self._saturate and math.isfinite(low) and math.isfinite(high)):
            array, base = whole
            values = array.astype(np.float64) - (0.0 if base is None else base.astype(np.float64))
            _check_range(f"array '{spec.name}'", values, -spec.clip, spec.clip, only_finite=self._saturate)
        outside = int(np.count_nonzero(np.abs(piece) > spec.clip))
        np.clip(piece, -spec.clip, spec.clip, out=piece)
        self.report = ClipReport(self.report.clipped + outside, self.report.total)


def encode_update(
    layout: Layout, update: Sequence[npt.NDArray[Any]], num_examples: int, metrics: Mapping[str, float]
) -> RingArray:
    """Encode one hospital's contribution in one go; see :class:`UpdateWords`.

    Returns:
        Ring elements of shape [layout.payload_words].

    Raises:
        InputError: Names, shapes or dtypes differ from the layout.
        RangeError: A value is not finite or lies outside its range. Nothing was sent.
    """
    words: RingArray = np.empty(layout.payload_words, dtype=layout.encoding.ring.dtype)
    for _ in UpdateWords(layout, update, num_examples, metrics).fill(words):
        pass
    return words


def _saturated(
    layout: Layout, num_examples: int, metrics: Mapping[str, float]
) -> tuple[int, dict[str, float], int]:
    """Bring the number of examples and the metrics into the round's public ranges.

    The ranges come from the server, and whether a hospital is present is visible to it: a hospital that
    stayed away whenever a private value lies outside an announced range would answer questions about it.

    Returns:
        Number and metrics, and how many of them changed. What is not finite, or no count of examples, stays
        as it is: encoding refuses it whatever was announced.
    """
    limited, changed = dict(metrics), 0
    for spec in layout.metrics:
        if math.isfinite(value := limited.get(spec.name, math.nan)):
            limited[spec.name] = min(max(value, spec.low), spec.high)
            changed += limited[spec.name] != value
    largest, counted = layout.encoding.largest_weight, layout.encoding.weights != "equal"
    heavy = counted and isinstance(num_examples, int | np.integer) and num_examples > largest
    return (largest if heavy else num_examples), limited, changed + heavy


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


def _flat(spec: ArraySpec, array: npt.NDArray[Any], kinds: str = "") -> npt.NDArray[Any]:
    values = np.asarray(array)
    if values.shape != spec.shape:
        msg = f"array '{spec.name}' should have shape {spec.shape}, got {values.shape}; nothing was sent"
        raise InputError(msg)
    if values.dtype.kind not in "fiu" + kinds:
        msg = f"array '{spec.name}' has dtype {values.dtype}, expected numbers; nothing was sent"
        raise InputError(msg)
    return values.reshape(-1)


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
    words: RingArray = np.empty(len(specs), dtype=encoding.ring.dtype)
    _round_into(words, values)
    return words


def _check_range(what: str, values: Floats, low: float, high: float, *, only_finite: bool = False) -> None:
    if not np.isfinite(values).all():
        msg = f"{what} holds NaN or infinity; nothing was sent"
        raise RangeError(msg)
    if only_finite:
        return
    if values.size and (float(values.min()) < low or float(values.max()) > high):
        outside = int(np.count_nonzero((values < low) | (values > high)))
        msg = f"{what} has {outside} of {values.size} values outside {low}..{high}; nothing was sent"
        raise RangeError(msg)


def _round_into(words: RingArray, scaled: Floats) -> None:
    """Write rounded products as ring elements; ``scaled`` is used up."""
    # Rounding twice in float64 can exceed the largest word by an ulp; it never exceeds it after rint.
    np.rint(scaled, out=scaled)
    np.copyto(signed(words), scaled, casting="unsafe")
