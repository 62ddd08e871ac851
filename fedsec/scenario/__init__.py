"""Experiments as data: frozen dataclasses from TOML, with overrides and exact error texts."""

from fedsec.scenario.scenario import (
    AggregationSettings,
    HospitalSettings,
    Scenario,
    ServingSettings,
    StrategySettings,
    TrainingSettings,
)
from fedsec.scenario.study import StudySettings

__all__ = [
    "AggregationSettings",
    "HospitalSettings",
    "Scenario",
    "ServingSettings",
    "StrategySettings",
    "StudySettings",
    "TrainingSettings",
]
