"""Federated learning with secure aggregation, and private prediction by the same parties.

The public names below are loaded when they are first used: ``import fedsec`` alone loads neither
TensorFlow nor Flower nor any of our own engine.

======================  =====================================================================
``Cluster``             the parties: start them here, or name those that run elsewhere
``share``               a Keras model, split over a cluster: ``serve`` and ``stop``
``Client``              asks for private predictions
``Scenario``            a whole experiment as data, from TOML
``run_scenario``        runs one and returns what was measured
``make_private``        a Keras model whose ``fit`` is DP-SGD
``FedsecError``         the root of every exception raised on purpose
======================  =====================================================================
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedsec.cluster.cluster import Cluster
    from fedsec.errors import FedsecError
    from fedsec.lab.run import run_scenario
    from fedsec.lab.share import share
    from fedsec.learning.private.model import make_private
    from fedsec.scenario.scenario import Scenario
    from fedsec.serving.client import Client

__version__ = "0.1.0"

__all__ = [
    "Client",
    "Cluster",
    "FedsecError",
    "Scenario",
    "__version__",
    "make_private",
    "run_scenario",
    "share",
]

_HOMES = {
    "Client": "fedsec.serving.client",
    "Cluster": "fedsec.cluster.cluster",
    "FedsecError": "fedsec.errors",
    "Scenario": "fedsec.scenario.scenario",
    "make_private": "fedsec.learning.private.model",
    "run_scenario": "fedsec.lab.run",
    "share": "fedsec.lab.share",
}


def __getattr__(name: str) -> object:
    """Load a public name on first use and keep it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fedsec' has no attribute {name!r}; public names: {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
