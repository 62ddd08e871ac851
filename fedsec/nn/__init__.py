"""Networks as plans, planned with proven bounds and computed in the clear or over shares.

The steps of a plan are in ``fedsec.nn.plan``, layers in the clear in ``fedsec.nn.network``, and the two ways
to compute in ``fedsec.nn.plaintext`` and ``fedsec.nn.layers`` (both have a ``predict``).
"""

from fedsec.nn import layers, plaintext
from fedsec.nn.accuracy import error_bound
from fedsec.nn.network import Network
from fedsec.nn.plan import REVEALS, Plan, Reveal, WeightSpec
from fedsec.nn.planner import plan_network
from fedsec.nn.weights import (
    Weights,
    check_shares,
    decode_output,
    encode_input,
    encode_weights,
    load_weights,
    save_weights,
    share_weights,
)

__all__ = [
    "REVEALS",
    "Network",
    "Plan",
    "Reveal",
    "WeightSpec",
    "Weights",
    "check_shares",
    "decode_output",
    "encode_input",
    "encode_weights",
    "error_bound",
    "layers",
    "load_weights",
    "plaintext",
    "plan_network",
    "save_weights",
    "share_weights",
]
