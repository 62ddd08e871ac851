"""The public constants of a scenario's rounds: what the server announces and what every hospital pins."""

from __future__ import annotations

import math

from fedsec.aggregation.noise.planning import HospitalLevel
from fedsec.federation.plan import EVALUATE_METRICS, TRAIN_METRICS, RoundPlan
from fedsec.scenario import Scenario

SPREAD = 2
"""How far weights may lie from the mean of all: one hospital's above it, the mean of a round below it."""


def round_plan(scenario: Scenario, serves: bytes = b"") -> RoundPlan:
    """Return the public constants of the rounds; none of them is taken from any hospital's data.

    Args:
        scenario: What is run.
        serves: For a model that nobody is to have, the digest of the plan under which it is served.
    """
    settings, examples = scenario.aggregation, scenario.training.examples
    mean = examples / scenario.hospitals.count
    private = scenario.privacy.target_epsilon > 0
    # A skewed split has no bound of its own below all the examples.
    equal = scenario.hospitals.partition == "equal"
    return RoundPlan(
        clip=settings.clip,
        largest_weight=min(examples, math.ceil(SPREAD * mean)) if equal else examples,
        smallest_mean_weight=max(1.0, mean / SPREAD),
        minimum_cohort=settings.minimum_cohort,
        ring_bits=settings.ring_bits,
        upload_seconds=settings.upload_seconds,
        # Under differential privacy all that is opened has passed the mechanism: no metrics of the training,
        # and no numbers of examples.
        weights="equal" if private else "examples",
        train_metrics={} if private else TRAIN_METRICS,
        evaluate_metrics={} if settings.reveal_to == "server" else EVALUATE_METRICS,
        reveal_to=settings.reveal_to,
        serves=serves,
        privacy=_hospital_level(scenario),
    )


def _hospital_level(scenario: Scenario) -> HospitalLevel | None:
    if not scenario.hospital_level:
        return None
    wanted = scenario.privacy
    return HospitalLevel(
        l2_norm_clip=wanted.l2_norm_clip,
        target_epsilon=wanted.target_epsilon,
        delta=wanted.delta,
        colluding=wanted.colluding_aggregators,
    )
