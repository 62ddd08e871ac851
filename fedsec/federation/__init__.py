"""Flower side of fedsec: what an existing app needs to become secure, and how to run it here.

The public names below are loaded when they are first used; none of them loads TensorFlow, and
``secure_aggregation`` does without the server's side.

========================  ===================================================================
``secure_aggregation``    the hospital's line: ``ClientApp(mods=[secure_aggregation])``
``SecureAggregation``     the server's line: ``SecureAggregation(FedAvg(), aggregators=...)``
``RoundPlan``             the public constants of the rounds, if the defaults do not fit
``HospitalLevel``         of a ``RoundPlan``: noise that the aggregators add and nobody holds
========================  ===================================================================
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedsec.aggregation.noise.planning import HospitalLevel
    from fedsec.federation.mod import secure_aggregation
    from fedsec.federation.plan import RoundPlan
    from fedsec.federation.strategy import SecureAggregation

__all__ = ["HospitalLevel", "RoundPlan", "SecureAggregation", "secure_aggregation"]

_HOMES = {
    "HospitalLevel": "fedsec.aggregation.noise.planning",
    "RoundPlan": "fedsec.federation.plan",
    "SecureAggregation": "fedsec.federation.strategy",
    "secure_aggregation": "fedsec.federation.mod",
}


def __getattr__(name: str) -> object:
    """Load a public name on first use and keep it."""
    if name not in _HOMES:
        raise AttributeError(
            f"module 'fedsec.federation' has no attribute {name!r}; public names: {', '.join(__all__)}"
        )
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
