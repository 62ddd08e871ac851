"""Noise nobody holds, behind the two lines: what a strategy promises, refuses and when it stops."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from flower_site import HOSPITALS, START, Run, Site, SpyGrid, numpy_app, open_site, secured
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, Strategy

from fedsec.aggregation.noise.planning import HospitalLevel
from fedsec.aggregation.trust import TrustFile, TrustLimits
from fedsec.cluster.keys import write_trust_files
from fedsec.errors import RangeError, UsageError
from fedsec.federation.grid import node_configs
from fedsec.federation.mod import SecureAggregationMod
from fedsec.federation.plan import RoundPlan
from fedsec.federation.strategy import SecureAggregation
from fedsec.privacy.ledger import DurableSumLedger
from fedsec.privacy.skellam_accounting import epsilon_of_sums

_seeds = itertools.count(1)
CLIP = 1.0
LIMITS = TrustLimits(weights=("equal",), largest_clip=CLIP, smallest_clip=CLIP, hospital_epsilon=1000.0)


@pytest.fixture(scope="module")
def private_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    one = open_site(tmp_path_factory.mktemp("private"))
    write_trust_files(one.keys, one.cluster, LIMITS)
    yield one
    for index in range(3):
        one.stop(index)


def plan(**privacy: float) -> RoundPlan:
    wanted = HospitalLevel(l2_norm_clip=CLIP, **privacy)  # type: ignore[arg-type]
    return RoundPlan(weights="equal", upload_seconds=30, collect_seconds=30, privacy=wanted)


def average() -> Strategy:
    return FedAvg(fraction_evaluate=0.0)


def train(site: Site, mod: SecureAggregationMod, inner: Strategy, planned: RoundPlan, **options: Any) -> Run:
    # Hospitals send no update twice: every run trains with a seed of its own.
    return secured(site, mod, inner, plan=planned, **{"seed": next(_seeds), **options})


def test_a_run_spends_its_target_and_every_hospital_has_paid(
    private_site: Site, mod: SecureAggregationMod
) -> None:
    paid = [len(spent(private_site, index)) for index in range(HOSPITALS)]
    # Whatever is made of a private average is as private: any strategy that uses averages only.
    adam = FedAdam(fraction_evaluate=0.0, eta=0.05)
    done = train(private_site, mod, adam, plan(target_epsilon=50.0), rounds=2)
    assert [len(one.result.included) for one in done.rounds if one.result] == [HOSPITALS] * 2
    for index in range(HOSPITALS):
        sums = spent(private_site, index)[paid[index] :]
        assert len(sums) == 2
        assert 49.9 < epsilon_of_sums(sums, 1e-5) <= 50.0


def spent(site: Site, index: int) -> tuple[object, ...]:
    return DurableSumLedger(TrustFile.load(site.trust[index]).state).spent()


def test_the_average_is_that_of_clipped_updates_and_noise_of_the_announced_size(
    private_site: Site, mod: SecureAggregationMod
) -> None:
    done = train(private_site, mod, average(), plan(noise_multiplier=0.05), rounds=1, seed=1111)
    (one,) = done.rounds
    assert one.result is not None
    plain = np.mean([clipped(index) for index in range(HOSPITALS)], axis=0)
    opened = np.concatenate([array.ravel() for array in one.result.arrays])
    # Three aggregators add their noise, each of it enough alone.
    sigma = math.sqrt(3) * 0.05 * CLIP / HOSPITALS
    # Twelve deviations, and half a word of rounding: exceeded with a probability below 1e-30.
    assert np.abs(opened - plain).max() < 12 * sigma + 1e-4
    assert np.abs(opened - plain).max() <= one.result.error_bound
    assert np.abs(opened - plain).max() > sigma / 1000
    assert one.result.metrics == {}


def clipped(index: int) -> np.ndarray:
    """What hospital ``index`` trains in round 1, scaled down to the clip in plain numpy."""
    grid = SpyGrid(numpy_app(), node_configs(HOSPITALS, None))
    arrays = ArrayRecord({name: Array(array) for name, array in START.items()})
    FedAvg(fraction_evaluate=0.0).start(grid, arrays, num_rounds=1, train_config=ConfigRecord({"seed": 1111}))
    # Replies come in the order of the hospitals.
    (reply,) = (one for one in grid.replies if one.metadata.src_node_id == nodes(grid)[index])
    trained = reply.content.array_records["arrays"]
    update = np.concatenate(
        [(trained[name].numpy().astype(np.float64) - START[name]).ravel() for name in START]
    )
    return update * min(1.0, CLIP / float(np.linalg.norm(update)))


def nodes(grid: SpyGrid) -> list[int]:
    return sorted(grid.get_node_ids())


def test_a_run_stops_before_its_target_is_exceeded_and_says_so(
    private_site: Site, mod: SecureAggregationMod
) -> None:
    rounds = []
    strategy = SecureAggregation(
        average(),
        private_site.cluster,
        private_site.keys.identity("server"),
        plan=plan(target_epsilon=50.0),
        on_round=rounds.append,
    )
    try:
        for _ in range(2):
            grid = SpyGrid(numpy_app(mod), node_configs(HOSPITALS, private_site.trust))
            arrays = ArrayRecord({name: Array(array) for name, array in START.items()})
            strategy.start(grid, arrays, num_rounds=1, train_config=ConfigRecord({"seed": next(_seeds)}))
        assert 49.9 < (strategy.epsilon or 0.0) <= 50.0
    finally:
        strategy.close()
    assert [len(one.result.included) if one.result else 0 for one in rounds] == [HOSPITALS, 0]
    assert "the budget is spent: one more round would make epsilon" in rounds[1].aborted
    assert not grid.sent


def test_a_hospital_whose_training_fails_has_paid_and_one_without_numbers_is_in_the_sum(
    private_site: Site, mod: SecureAggregationMod
) -> None:
    """The server sees the failure, without any noise; not what is not finite, nor a count of records."""

    def change(index: int, arrays: dict[str, np.ndarray], metrics: dict[str, float]) -> None:
        if index == 1:
            raise ValueError("a record that the training code cannot take")
        if index == 2:
            next(iter(arrays.values()))[...] = np.nan
        if index == 3:
            metrics["num-examples"] = 0
        if index == 4:
            del metrics["num-examples"]

    paid = [len(spent(private_site, index)) for index in range(HOSPITALS)]
    done = train(private_site, mod, average(), plan(target_epsilon=50.0), rounds=1, change=change)
    (one,) = done.rounds
    assert one.result is not None
    assert one.result.included == tuple(f"hospital-{index:02}" for index in (0, 2, 3, 4))
    assert [len(spent(private_site, index)) - before for index, before in enumerate(paid)] == [1] * HOSPITALS


def test_hospitals_whose_budget_is_spent_refuse_and_the_round_has_no_average(
    private_site: Site, mod: SecureAggregationMod
) -> None:
    done = train(private_site, mod, average(), plan(noise_multiplier=0.01), rounds=1)
    (one,) = done.rounds
    assert one.result is None
    assert dict(one.statuses) == {"trust": HOSPITALS}


REFUSED = [
    ({"weights": "examples"}, "weights='equal'"),
    ({"train_metrics": {"loss": (0.0, 1.0)}}, "opens no metrics"),
    ({"evaluate_metrics": {"loss": (0.0, 1.0)}}, "opens no metrics"),
    ({"reveal_to": "hospitals"}, "do not go together"),
]


@pytest.mark.parametrize(("fields", "text"), REFUSED)
def test_a_plan_that_would_open_something_without_noise_is_refused(
    site: Site, fields: dict[str, object], text: str
) -> None:
    wanted = dataclasses.replace(plan(target_epsilon=8.0), **fields)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=text):
        SecureAggregation(average(), site.cluster, site.keys.identity("server"), plan=wanted)


def test_a_strategy_that_lets_hospitals_evaluate_is_refused_with_what_to_use_instead(site: Site) -> None:
    with pytest.raises(UsageError, match=r"fraction_evaluate to 0\.0 and give start\(\) an evaluate_fn"):
        SecureAggregation(FedAvg(), site.cluster, site.keys.identity("server"), plan=plan(target_epsilon=8.0))


def test_so_much_noise_that_it_fits_no_ring_is_refused_by_name(
    private_site: Site, mod: SecureAggregationMod
) -> None:
    with pytest.raises(RangeError, match="do not fit"):
        train(private_site, mod, average(), plan(noise_multiplier=1e6), rounds=1)
