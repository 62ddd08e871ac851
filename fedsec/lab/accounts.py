"""What the rounds of a run cost: noise, known before it, and privacy, from the accounts that hospitals keep.

Each hospital has its own account on its own disk. Only where all of them run on one machine can anybody read
them all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from fedsec.aggregation.noise.planning import plan_noise
from fedsec.aggregation.trust import TrustFile
from fedsec.errors import StateError
from fedsec.lab.plan import round_plan
from fedsec.lab.result import HospitalEpsilon, WholeHospital
from fedsec.privacy.budget import Budget, PrivacySettings
from fedsec.privacy.ledger import DurableLedger, DurableSumLedger
from fedsec.privacy.skellam_accounting import epsilon_of_sums
from fedsec.scenario import Scenario


def cost_before(scenario: Scenario, words: int) -> str:
    """Say before training what the noise of a run is beside the longest update that it could hide.

    Args:
        scenario: What is to be run, with ``privacy.level = "hospital"``.
        words: Parameters of the model.

    Raises:
        RangeError: So much noise does not fit the ring.
    """
    plan, count = round_plan(scenario), scenario.hospitals.count
    if plan.privacy is None:
        return ""
    noise = plan_noise(
        plan.privacy,
        words=words,
        rounds=scenario.training.rounds,
        hospitals=count,
        aggregators=scenario.aggregation.aggregators,
        ring_bits=plan.ring_bits,
    )
    length = math.sqrt(noise.total * words) / noise.clip_words / count
    return (
        f"privacy.level = 'hospital': the noise of an average over {count} hospitals will be {length:.1f}"
        " clips long, and an update is one clip long at most. With a hundred hospitals a small model is"
        " left, with few there is none: privacy.level = 'record' protects their records instead"
    )


def spent_on_records(scenario: Scenario, trust: Mapping[str, Path]) -> tuple[HospitalEpsilon, ...]:
    """Return what a run with ``privacy.level = "record"`` has cost each hospital that trained in it.

    Args:
        scenario: What was run.
        trust: The trust file of each hospital by name.

    Raises:
        StateError: An account cannot be read.
    """
    wanted, rows = scenario.privacy, []
    for name in sorted(trust):
        spent = DurableLedger(TrustFile.load(trust[name]).state).spent()
        if not spent:
            continue
        settings = PrivacySettings(
            l2_norm_clip=wanted.l2_norm_clip, noise_multiplier=spent[0].noise_multiplier, delta=wanted.delta
        )
        budget = Budget(settings)
        for one in spent:
            budget.spend(one, one.steps)
        rows.append(HospitalEpsilon.of(name, budget.report()))
    return tuple(rows)


def spent_by_hospitals(scenario: Scenario, trust: Mapping[str, Path]) -> WholeHospital:
    """Return what a run with ``privacy.level = "hospital"`` has cost.

    Args:
        scenario: What was run.
        trust: The trust file of each hospital by name.

    Raises:
        StateError: No hospital has an account of it.
    """
    delta, aggregators = scenario.privacy.delta, scenario.aggregation.aggregators
    colluding = scenario.privacy.colluding_aggregators or aggregators - 1
    spent = {name: DurableSumLedger(TrustFile.load(path).state).spent() for name, path in trust.items()}
    longest = max(spent.values(), key=len)
    if not longest:
        raise StateError("no hospital has paid for a round: none of their accounts has an entry")
    one = longest[-1]
    epsilons = {name: epsilon_of_sums(sums, delta) for name, sums in spent.items()}
    total = one.variance * aggregators / (aggregators - colluding)
    noise_of_mean = math.sqrt(total) / one.l2_sensitivity / scenario.hospitals.count
    return WholeHospital(
        epsilon=max(epsilons.values()),
        delta=delta,
        hospitals=epsilons,
        rounds=sum(each.rounds for each in longest),
        noise_multiplier=math.sqrt(one.variance) / one.l2_sensitivity,
        noise_of_mean=noise_of_mean,
        # The bound of the L1 norm is that of the L2 norm times the root of the number of parameters.
        noise_length=noise_of_mean * one.l1_sensitivity / one.l2_sensitivity,
        aggregators=aggregators,
        colluding=colluding,
        adjacency=(
            "one whole hospital: all that it contributed is replaced by zeros; who takes part is public"
        ),
        assumptions=(
            f"the server and up to {colluding} of {aggregators} aggregators may put all they know together;"
            f" {aggregators - colluding} at least drew their noise as the protocol says and keep it to"
            " themselves; Skellam noise of integers, composed by Renyi divergences"
        ),
    )
