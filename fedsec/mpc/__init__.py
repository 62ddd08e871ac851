"""Three-party computation on replicated shares: party, protocols, session keys, simulator.

A protocol is a function of (party, shares...) that all three parties call; ``PROTOCOLS`` lists them with cost
and source.
"""

from fedsec.mpc.activation import piecewise_linear, relu, truncated_relu
from fedsec.mpc.comparison import bits_to_words, is_negative, select
from fedsec.mpc.costs import PROTOCOLS, Cost, ProtocolFunction, protocol
from fedsec.mpc.lifting import lift, multiply_fraction
from fedsec.mpc.linear import conv2d, conv2d_pair, matmul, matmul_pair, sum_pool
from fedsec.mpc.maximum import max_pool, maximum, reduce_max
from fedsec.mpc.opening import reveal, reveal_to
from fedsec.mpc.party import Layout, PairStreams, Party, pair_streams
from fedsec.mpc.products import and_bits, multiply, reshare, share_pair
from fedsec.mpc.ranking import top_k
from fedsec.mpc.session import establish
from fedsec.mpc.simulator import SimulationResult, View, simulate
from fedsec.mpc.truncation import truncate
from fedsec.mpc.two_holders import Pair

__all__ = [
    "PROTOCOLS",
    "Cost",
    "Layout",
    "Pair",
    "PairStreams",
    "Party",
    "ProtocolFunction",
    "SimulationResult",
    "View",
    "and_bits",
    "bits_to_words",
    "conv2d",
    "conv2d_pair",
    "establish",
    "is_negative",
    "lift",
    "matmul",
    "matmul_pair",
    "max_pool",
    "maximum",
    "multiply",
    "multiply_fraction",
    "pair_streams",
    "piecewise_linear",
    "protocol",
    "reduce_max",
    "relu",
    "reshare",
    "reveal",
    "reveal_to",
    "select",
    "share_pair",
    "simulate",
    "sum_pool",
    "top_k",
    "truncate",
    "truncated_relu",
]
