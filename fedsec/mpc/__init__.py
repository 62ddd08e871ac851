"""Three-party computation on replicated shares: party, protocols, session keys, simulator.

A protocol is a function of (party, shares...) that all three parties call; ``PROTOCOLS`` lists them with cost
and source.
"""

from fedsec.mpc.comparison import is_negative, relu, select
from fedsec.mpc.costs import PROTOCOLS, Cost, ProtocolFunction, protocol
from fedsec.mpc.linear import conv2d, matmul, sum_pool
from fedsec.mpc.opening import reveal, reveal_to
from fedsec.mpc.party import Layout, PairStreams, Party, pair_streams
from fedsec.mpc.products import and_bits, multiply, reshare
from fedsec.mpc.session import establish
from fedsec.mpc.simulator import SimulationResult, View, simulate
from fedsec.mpc.truncation import truncate

__all__ = [
    "PROTOCOLS",
    "Cost",
    "Layout",
    "PairStreams",
    "Party",
    "ProtocolFunction",
    "SimulationResult",
    "View",
    "and_bits",
    "conv2d",
    "establish",
    "is_negative",
    "matmul",
    "multiply",
    "pair_streams",
    "protocol",
    "relu",
    "reshare",
    "reveal",
    "reveal_to",
    "select",
    "simulate",
    "sum_pool",
    "truncate",
]
