"""The public constants of the rounds, and the announcement that is made of them and a round's content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedsec.aggregation.announcement import (
    ANNOUNCEMENT_VERSION,
    Announcement,
    ConfigValue,
    Member,
    RoundId,
    array_digest,
    encode_config,
    members,
)
from fedsec.aggregation.noise.planning import HospitalLevel
from fedsec.aggregation.noise.terms import Noise
from fedsec.aggregation.planner import ArraySpec, MetricSpec, WeightRule, plan_encoding
from fedsec.aggregation.sealed.terms import Sealed
from fedsec.errors import UsageError
from fedsec.transport import ClusterFile

_LARGEST_ITEM = 8
"""Bytes of an element; what is longer than float64 would lose digits without a word."""

Ranges = Mapping[str, tuple[float, float]]
"""Metric names, each with the public range (low, high) its values lie in."""

TRAIN_METRICS: Ranges = {"accuracy": (0.0, 1.0), "loss": (0.0, 100.0)}
"""What :func:`fedsec.federation.apps.client_app` reports after training, with the ranges to announce."""

EVALUATE_METRICS: Ranges = TRAIN_METRICS
"""The same names and ranges after an evaluation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """The public constants of every round; hospitals compare them with the limits in their trust files.

    Attributes:
        clip: Largest change of a parameter in one round, for all arrays or by array name. What exceeds it
            is clipped in the hospital, which logs how much that was. Integers, such as counters, are
            averaged only under a clip of their own, by name.
        largest_weight: Largest weight; a hospital with more examples counts as if it had that many.
        smallest_mean_weight: Smallest mean number of examples for which the error bound is stated.
        minimum_cohort: Fewest hospitals in a sum.
        weights: ``examples``, ``bucketed`` (rounded down to a power of two) or ``equal``.
        ring_bits: 32 or 64.
        upload_seconds: Time from the announcement until uploads close.
        collect_seconds: Time the aggregators have to agree and to answer once uploads are closed.
        train_metrics: Metrics of the training replies to average; others are dropped in the hospital.
        evaluate_metrics: The same for evaluation replies.
        reveal_to: Who has the model: ``server``; ``hospitals``, then it stays in shares at three parties and
            only hospitals put it together; ``nobody``, then the last average is never opened at all.
        serves: With ``nobody``, the digest of the one plan under which the last state is served.
        privacy: Noise that the aggregators add, so that the averages tell little about any whole hospital.
            Its norm takes the place of ``clip``; weights have to be ``equal``, and no metrics are opened.
    """

    clip: float | Mapping[str, float] = 2.0
    largest_weight: int = 100_000
    smallest_mean_weight: float = 1000.0
    minimum_cohort: int = 3
    weights: WeightRule = "examples"
    ring_bits: int = 32
    upload_seconds: float = 600.0
    collect_seconds: float = 60.0
    train_metrics: Ranges = field(default_factory=dict)
    evaluate_metrics: Ranges = field(default_factory=dict)
    reveal_to: Literal["server", "hospitals", "nobody"] = "server"
    serves: bytes = b""
    privacy: HospitalLevel | None = None


def announce_round(
    plan: RoundPlan,
    round_id: RoundId,
    *,
    cluster: ClusterFile,
    recipient: Member,
    arrays: Mapping[str, npt.NDArray[Any]],
    config: Mapping[str, ConfigValue],
    sealed: Sealed | None = None,
    noise: Noise | None = None,
) -> Announcement:
    """Return the announcement of one exchange, not yet signed.

    Args:
        plan: The public constants.
        round_id: Session, federated round and phase.
        cluster: Names the aggregators and the roster of hospitals.
        recipient: Who gets the average: the Flower server.
        arrays: The parameters every hospital is sent, by announced name.
        config: Every config value the training code will see.
        sealed: What makes the round sealed, if it is.
        noise: What every aggregator adds to its share of the sum, if anything.

    Raises:
        UsageError: There is no array, one has no clip or a dtype that cannot be averaged, or a config value
            cannot be announced.
        RangeError: The plan does not fit the ring for that many hospitals.
    """
    roster = members(cluster.hospitals)
    clips = _clips(plan.clip if noise is None else noise.l2_clip, arrays)
    ranges = plan.train_metrics if round_id.phase == "train" else plan.evaluate_metrics
    encoding = plan_encoding(
        # Sums of sealed rounds keep a bit free, so that they can be lifted into a larger ring.
        len(roster) if sealed is None else 2 * len(roster),
        max(clips),
        plan.largest_weight,
        plan.smallest_mean_weight,
        64 if sealed is not None and sealed.keep_closed else plan.ring_bits,
        weights=plan.weights,
        noise=noise,
    )
    return Announcement(
        version=ANNOUNCEMENT_VERSION,
        session=round_id.session,
        round=round_id.round,
        phase=round_id.phase,
        roster=roster,
        aggregators=members({party.name: party.public_key for party in cluster.parties}),
        vector_rule="rotate",
        reveal_to="server" if sealed is None else plan.reveal_to,
        recipient=recipient,
        arrays=tuple(
            ArraySpec(name, array.dtype.name, array.shape, clip)
            for (name, array), clip in zip(arrays.items(), clips, strict=True)
        ),
        array_digests=tuple(array_digest(array) for array in arrays.values()),
        config=encode_config(config),
        metrics=tuple(MetricSpec(name, *map(float, ranges[name])) for name in sorted(ranges)),
        encoding=encoding,
        minimum_cohort=plan.minimum_cohort,
        upload_seconds=float(plan.upload_seconds),
        sealed=sealed,
    )


def _clips(clip: float | Mapping[str, float], arrays: Mapping[str, npt.NDArray[Any]]) -> list[float]:
    if not arrays:
        raise UsageError("the model has no arrays; there is nothing to average")
    named = isinstance(clip, Mapping)
    for name, array in arrays.items():
        _check_dtype(name, array.dtype, named=named)
    if not isinstance(clip, Mapping):
        return [float(clip)] * len(arrays)
    wanted = [name.split("/", 1)[1] for name in arrays]
    for name in wanted:
        if name not in clip:
            raise UsageError(f"the plan has no clip for array '{name}'; name every array or give one number")
    return [float(clip[name]) for name in wanted]


def _check_dtype(name: str, dtype: np.dtype[Any], *, named: bool) -> None:
    if dtype.kind not in "fiub" or dtype.itemsize > _LARGEST_ITEM:
        raise UsageError(
            f"array '{name}' is {dtype.name}; floats of up to 64 bits, integers and booleans can be averaged"
        )
    if dtype.kind != "f" and not named:
        # A counter that is clipped to the range of a weight would be wrong without a word.
        raise UsageError(
            f"array '{name}' is {dtype.name}: how much it may change in a round does not follow from one "
            "clip for all arrays. Give the plan's clip by array name, or leave the array out of the record"
        )
