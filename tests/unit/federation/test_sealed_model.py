"""A model that stays in shares, seen from Flower: ordinary arrays in the app, initial ones at the server."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from flower_site import PLAN, START, Run, Site, numpy_app, run, secured
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    Strategy,
)

from fedsec.aggregation.announcement import Announcement, RoundId
from fedsec.aggregation.client import HospitalClient
from fedsec.aggregation.collector import RoundResult
from fedsec.aggregation.sealed.terms import SealedAt
from fedsec.aggregation.trust import TrustFile
from fedsec.errors import FedsecError, PeerLostError, ProtocolError, TrustError, UsageError
from fedsec.federation.mod import SecureAggregationMod
from fedsec.federation.plan import RoundPlan
from fedsec.federation.records import STORED
from fedsec.federation.sealed import SealedRun
from fedsec.federation.strategy import SecureAggregation

_seeds = itertools.count(70_001)


def plan(reveal_to: str, **fields: Any) -> RoundPlan:
    return dataclasses.replace(PLAN, reveal_to=reveal_to, **fields)


@pytest.fixture
def sealed_site(site: Site, tmp_path: Path) -> Site:
    """The site with trust files of hospitals that admit sealed rounds."""
    paths = []
    for path in site.trust:
        file = TrustFile.load(path)
        limits = dataclasses.replace(file.limits, reveal_to=("hospitals", "nobody"))
        paths.append(tmp_path / path.name)
        dataclasses.replace(file, limits=limits).save(paths[-1])
    return dataclasses.replace(site, trust=paths)


class Given:
    """A mod behind ours: what the app is given."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, dict[str, np.ndarray]]] = []

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        arrays = message.content["arrays"]
        assert isinstance(arrays, ArrayRecord)
        turn = int(str(message.content.config_records["config"]["server-round"]))
        self.seen.append(
            (message.metadata.message_type, turn, {name: one.numpy() for name, one in arrays.items()})
        )
        return call_next(message, context)

    def model(self, phase: str, turn: int) -> dict[str, np.ndarray]:
        """The arrays of one exchange: the same at every hospital."""
        models = [arrays for *when, arrays in self.seen if when == [phase, turn]]
        for other in models[1:]:
            assert all(np.array_equal(other[name], models[0][name]) for name in other)
        return models[0]


def plain(inner: Strategy, seed: int, rounds: int = 3) -> Run:
    return run(numpy_app(), inner, seed=seed, rounds=rounds)


def test_three_rounds_are_those_of_plain_flower_and_the_server_keeps_the_initial_model(
    sealed_site: Site, mod: SecureAggregationMod
) -> None:
    seed, given = next(_seeds), Given()

    done = secured(sealed_site, mod, FedAvg(), given, plan=plan("hospitals"), seed=seed)

    assert [(one.phase, one.aborted) for one in done.rounds] == [("train", ""), ("evaluate", "")] * 3
    bound = 2.0**-24
    for turn in (1, 2, 3):
        (train,) = [one for one in done.rounds if (one.phase, one.server_round) == ("train", turn)]
        assert train.result
        assert (train.result.state, train.result.arrays) == (turn, ())
        bound += train.result.error_bound
        expected = plain(FedAvg(fraction_evaluate=0.0), seed, turn).result.arrays
        for name, array in given.model("evaluate", turn).items():
            assert (array.dtype, array.shape) == (START[name].dtype, START[name].shape)
            # Plain Flower averages in float32, whose rounding is wider than the bound.
            assert np.abs(array - expected[name].numpy()).max() < bound + 3e-7
    number, last = mod.last_sealed(sealed_site.trust[1])
    assert number == 3
    for name, array in last.items():
        np.testing.assert_array_equal(array, given.model("evaluate", 3)[name])
        np.testing.assert_array_equal(done.result.arrays[name].numpy(), START[name])
    for sent in done.grid.sent:
        arrays = sent.content["arrays"]
        assert isinstance(arrays, ArrayRecord)
        assert all(np.array_equal(arrays[name].numpy(), START[name]) for name in START)
    assert {str(one.content["fedsec"]["status"]) for one in done.grid.replies} == {STORED}
    assert done.result.evaluate_metrics_clientapp[3]["accuracy"] == pytest.approx(0.63, abs=0.1)


def test_for_nobody_the_last_state_is_closed_and_evaluated_by_nobody(
    sealed_site: Site, mod: SecureAggregationMod
) -> None:
    strategy = SecureAggregation(
        FedAvg(), sealed_site.cluster, sealed_site.keys.identity("server"), plan=plan("nobody")
    )
    assert strategy.sealed is None
    given = Given()
    try:
        run(numpy_app(mod, given), strategy, sealed_site.trust, seed=next(_seeds), rounds=2)
    finally:
        strategy.close()

    last = strategy.sealed
    assert last == SealedAt(last.session, 2, closed=True) if last else False
    assert {(phase, turn) for phase, turn, _ in given.seen} == {("train", 1), ("evaluate", 1), ("train", 2)}
    with pytest.raises(TrustError, match="closed"):
        mod.last_sealed(sealed_site.trust[0])


@pytest.mark.parametrize(
    "inner",
    [
        FedAdam(),
        FedAvgM(),
        DifferentialPrivacyClientSideFixedClipping(FedAvg(), 0.1, 1.0, 5),
    ],
    ids=lambda one: type(one).__name__,
)
def test_strategies_that_need_the_average_are_refused_by_name(site: Site, inner: Strategy) -> None:
    with pytest.raises(UsageError, match=f"{type(inner).__name__} needs the average in the clear"):
        SecureAggregation(inner, site.cluster, site.keys.identity("server"), plan=plan("hospitals"))


@pytest.mark.parametrize("inner", [FedAvg(), FedProx(proximal_mu=0.0)], ids=lambda one: type(one).__name__)
def test_strategies_that_take_the_mean_are_taken(site: Site, inner: Strategy) -> None:
    SecureAggregation(inner, site.cluster, site.keys.identity("server"), plan=plan("hospitals")).close()


def test_evaluation_on_the_server_is_refused_before_anything_begins(site: Site) -> None:
    strategy = SecureAggregation(FedAvg(), site.cluster, site.keys.identity("server"), plan=plan("hospitals"))
    arrays = ArrayRecord({name: Array(array) for name, array in START.items()})
    try:
        with pytest.raises(UsageError, match="let the hospitals evaluate"):
            strategy.start(None, arrays, evaluate_fn=lambda _round, _arrays: MetricRecord({}))  # type: ignore[arg-type]
    finally:
        strategy.close()


def test_three_parties_are_needed(site: Site) -> None:
    two = dataclasses.replace(site.cluster, parties=site.cluster.parties[:2])
    with pytest.raises(UsageError, match="three computing parties"):
        SecureAggregation(FedAvg(), two, site.keys.identity("server"), plan=plan("nobody"))


def test_a_hospital_that_does_not_admit_it_trains_nothing(site: Site, mod: SecureAggregationMod) -> None:
    given = Given()

    done = secured(site, mod, FedAvg(), given, plan=plan("hospitals"), seed=next(_seeds), rounds=1)

    assert given.seen == []
    assert done.rounds[0].statuses == {"trust": 5}
    assert "minimum cohort" in done.rounds[0].aborted


@pytest.mark.parametrize("error", [TrustError, ProtocolError, PeerLostError, UsageError])
def test_why_a_hospital_does_not_take_a_sealed_model_is_not_told(
    sealed_site: Site,
    mod: SecureAggregationMod,
    monkeypatch: pytest.MonkeyPatch,
    error: type[FedsecError],
) -> None:
    def refuse(*_: object) -> None:
        raise error("the sealed model is farther from the initial one than it can be")

    monkeypatch.setattr(HospitalClient, "sealed_model", refuse)
    given = Given()

    done = secured(sealed_site, mod, FedAvg(), given, plan=plan("hospitals"), seed=next(_seeds), rounds=1)

    assert given.seen == []
    # What a hospital answers whose training failed.
    assert [one.statuses for one in done.rounds if one.phase == "train"] == [{FedsecError.code: 5}]


def test_a_state_that_hospitals_do_not_take_costs_a_step_back_and_not_the_run(
    sealed_site: Site, mod: SecureAggregationMod, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = HospitalClient.sealed_model

    def refuse_second(client: HospitalClient, announcement: Announcement, *rest: Any) -> Any:
        if announcement.sealed is not None and announcement.sealed.base == 2:
            raise ProtocolError("the sealed model is farther from the initial one than it can be")
        return real(client, announcement, *rest)

    monkeypatch.setattr(HospitalClient, "sealed_model", refuse_second)
    given = Given()

    done = secured(sealed_site, mod, FedAvg(), given, plan=plan("hospitals"), seed=next(_seeds), rounds=4)

    trained = {one.server_round: one for one in done.rounds if one.phase == "train"}
    assert "goes back from state 2 to state 1" in trained[3].aborted
    assert [bool(trained[turn].result) for turn in (1, 2, 3, 4)] == [True, True, False, True]
    for name, array in given.model("train", 4).items():
        np.testing.assert_array_equal(array, given.model("train", 2)[name], err_msg="round 4 is from state 1")
    assert mod.last_sealed(sealed_site.trust[0])[0] == 4


@pytest.mark.parametrize(
    ("statuses", "phase", "goes_back"),
    [
        ({"failed": 5}, "train", True),
        ({"failed": 3, "stored": 1, "no_answer": 1}, "train", True),
        ({"no_answer": 5}, "train", False),
        ({"stored": 5}, "train", False),
        ({"failed": 1, "stored": 4}, "train", False),
        # An app without an evaluation answers so in every round.
        ({"failed": 5}, "evaluate", False),
    ],
)
def test_a_run_goes_back_once_and_only_from_a_state_that_nobody_could_train(
    site: Site, statuses: dict[str, int], phase: Literal["train", "evaluate"], goes_back: bool
) -> None:
    sealed = SealedRun(plan("hospitals"), site.cluster, FedAvg())
    session = bytes(16)
    for number in (1, 2):
        part = sealed.part_of(RoundId(session, number, "train"))
        assert part is not None
        assert sealed.took(part, _result(number)) == ""

    assert bool(sealed.aborted(RoundId(session, 3, phase), statuses)) == goes_back

    assert sealed.last == SealedAt(session, 1 if goes_back else 2, closed=False)
    # The parties have no state before that one.
    again = sealed.aborted(RoundId(session, 4, "train"), {"failed": 5})
    assert bool(again) != goes_back
    assert sealed.last == SealedAt(session, 1, closed=False)


def _result(state: int) -> RoundResult:
    nothing = np.empty(0, np.uint32)
    return RoundResult(
        arrays=(), total_weight=1, metrics={}, included=(), excluded={}, error_bound=0.0, words=nothing,
        state=state,
    )  # fmt: skip
