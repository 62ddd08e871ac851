"""Strategies that would be silently wrong are refused by name; the others pass."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import MetricRecord
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg, Strategy

from fedsec.errors import UsageError
from fedsec.federation.compatibility import REFUSED, check_strategy
from fedsec.federation.strategy import SecureAggregation

MEAN_ONLY = [
    flower.FedAvg,
    flower.FedProx,
    flower.FedAvgM,
    flower.FedAdam,
    flower.FedAdagrad,
    flower.FedYogi,
]


@pytest.mark.parametrize("cls", MEAN_ONLY)
def test_strategies_that_use_the_mean_pass(cls: type[Strategy]) -> None:
    check_strategy(cls())


def test_every_strategy_of_flower_is_either_accepted_or_refused_with_a_reason() -> None:
    accepted = {cls.__name__ for cls in MEAN_ONLY} | {"DifferentialPrivacyClientSideFixedClipping"}
    public = {name for name in flower.__all__ if name not in {"Result", "Strategy"}}
    assert public == accepted | (REFUSED.keys() - {"SecureAggregation"})


@pytest.mark.parametrize(
    "cls",
    [
        flower.Bulyan,
        flower.FedMedian,
        flower.FedTrimmedAvg,
        flower.Krum,
        flower.MultiKrum,
        flower.QFedAvg,
        flower.FedXgbBagging,
        flower.FedXgbCyclic,
    ],
)
def test_strategies_that_look_at_single_updates_are_refused(cls: type[Strategy]) -> None:
    class Mine(cls):  # type: ignore[misc, valid-type]
        """A subclass does not get around the refusal."""

    arguments = {"client_learning_rate": 0.1} if cls is flower.QFedAvg else {}
    for one in (cls, Mine):
        with pytest.raises(UsageError, match=f"{one.__name__} cannot be secured: ") as caught:
            check_strategy(one(**arguments))
        assert REFUSED[cls.__name__] in str(caught.value)


def test_server_side_clipping_is_refused_and_told_where_to_clip() -> None:
    wrapped = flower.DifferentialPrivacyServerSideFixedClipping(FedAvg(), 1.0, 1.0, 10)
    with pytest.raises(UsageError, match="put fixedclipping_mod after"):
        check_strategy(wrapped)


@pytest.mark.parametrize(
    ("wrapped", "reason"),
    [
        (
            lambda: flower.DifferentialPrivacyServerSideAdaptiveClipping(FedAvg(), 1.0, 100),
            "clips single updates on the server",
        ),
        (
            lambda: flower.DifferentialPrivacyClientSideAdaptiveClipping(FedAvg(), 1.0, 100),
            "reads a bit from every hospital's reply",
        ),
        (
            lambda: flower.DifferentialPrivacyServerSideFixedClipping(FedAvg(), 1.0, 1.0, 10),
            "clips single updates on the server",
        ),
    ],
)
def test_wrappers_that_read_single_replies_are_refused(wrapped: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        check_strategy(wrapped())


def test_an_accountant_that_checks_single_replies_is_refused() -> None:
    class Accounting(FedAvg):
        accountant = object()

    with pytest.raises(UsageError, match="Accounting with an accountant cannot be secured: it checks"):
        check_strategy(Accounting())


def test_a_secured_strategy_is_not_secured_again() -> None:
    secured = object.__new__(SecureAggregation)
    with pytest.raises(UsageError, match="it is secured already; wrap a strategy once"):
        check_strategy(secured)


def test_a_wrapped_strategy_is_looked_into() -> None:
    client_side = flower.DifferentialPrivacyClientSideFixedClipping
    check_strategy(client_side(FedAvg(), 1.0, 1.0, 10))
    with pytest.raises(UsageError, match="FedMedian"):
        check_strategy(client_side(flower.FedMedian(), 1.0, 1.0, 10))


@pytest.mark.parametrize("name", ["train_metrics_aggr_fn", "evaluate_metrics_aggr_fn"])
def test_own_metric_functions_are_refused(name: str) -> None:
    functions: dict[str, Any] = {name: lambda _records, _key: MetricRecord()}
    with pytest.raises(UsageError, match=name):
        check_strategy(FedAvg(**functions))
