"""Which Flower strategies stay right when all they get is one weighted mean.

A strategy that looks at single replies would not fail under secure aggregation: handed the mean as its only
reply it would return it and call it a median. So those are refused by name, before a round begins.
"""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp.strategy import Strategy
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from fedsec.errors import UsageError

_SELECTS = "it picks or trims single updates, which nobody sees here"
_TREES = "it joins trees, which cannot be summed"

REFUSED = {
    "Bulyan": _SELECTS,
    "FedMedian": "it takes a median over single updates, which nobody sees here",
    "FedTrimmedAvg": _SELECTS,
    "Krum": _SELECTS,
    "MultiKrum": _SELECTS,
    "QFedAvg": "it weights each update with that hospital's loss, which nobody sees here",
    "FedXgbBagging": _TREES,
    "FedXgbCyclic": _TREES,
    "DifferentialPrivacyServerSideFixedClipping": (
        "it clips single updates on the server; clip in the hospital: put fixedclipping_mod after "
        "secure_aggregation and wrap with DifferentialPrivacyClientSideFixedClipping"
    ),
    "DifferentialPrivacyServerSideAdaptiveClipping": "it clips single updates on the server",
    "DifferentialPrivacyClientSideAdaptiveClipping": "it reads a bit from every hospital's reply",
    "SecureAggregation": "it is secured already; wrap a strategy once",
}
"""Class names that are refused, subclasses included, each with the reason."""

_METRIC_FUNCTIONS = ("train_metrics_aggr_fn", "evaluate_metrics_aggr_fn")


def check_strategy(strategy: Strategy) -> None:
    """Refuse a strategy, or one that it wraps, that needs more than the weighted mean.

    Raises:
        UsageError: Names the class, or the function, and the reason.
    """
    seen: object | None = strategy
    while isinstance(seen, Strategy):
        _check_class(seen)
        _check_functions(seen)
        # Flower's own wrappers keep what they wrap under this name.
        seen = getattr(seen, "strategy", None)


def _check_class(strategy: Strategy) -> None:
    for cls in type(strategy).__mro__:
        if cls.__name__ in REFUSED:
            raise UsageError(
                f"the strategy {type(strategy).__name__} cannot be secured: {REFUSED[cls.__name__]}. "
                "Strategies that use only the weighted mean work: FedAvg, FedProx, FedAvgM, FedAdam, "
                "FedAdagrad, FedYogi"
            )
    if getattr(strategy, "accountant", None) is not None:
        raise UsageError(
            f"{type(strategy).__name__} with an accountant cannot be secured: it checks the weight and the "
            "number of single replies, and would skip every round. Leave accountant=None"
        )


def _check_functions(strategy: Strategy) -> None:
    for name in _METRIC_FUNCTIONS:
        function = getattr(strategy, name, aggregate_metricrecords)
        if function is not aggregate_metricrecords:
            raise UsageError(
                f"the strategy's own {name} cannot be used: it expects every hospital's metrics, and only "
                "their weighted mean is opened. Leave it out and announce the metrics with their ranges"
            )


def common_content(messages: Sequence[Message], phase: str) -> RecordDict:
    """Return the content that all messages of a round share.

    Raises:
        UsageError: They are of another type, or not the same for all hospitals.
    """
    content = messages[0].content
    for message in messages:
        if message.metadata.message_type != phase:
            raise UsageError(
                f"expected messages of type {phase}, got {message.metadata.message_type}: hospitals answer "
                "no other, since its reply could carry anything"
            )
        if message.content is not content and message.content != content:
            raise UsageError(
                "the inner strategy sends hospitals different models or configs; one announcement covers "
                "all of them, so every hospital must get the same"
            )
    return content
