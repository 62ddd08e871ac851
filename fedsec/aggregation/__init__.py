"""Secure aggregation: hospitals share one vector a round; only the sum over an agreed set is opened.

=================  ============================================================================
``trust``          a hospital's own file: pinned keys and limits
``announcement``   everything a round depends on, signed by the server
``planner``        scales that cannot wrap; ``encoding`` turns updates into words and back
``client``         a hospital: accept, submit, receipt
``aggregator``     the state machine of one aggregator; ``round`` is one round in it
``collector``      the server: announce, collect
``service``        an aggregator behind a port; ``memory`` has all roles in one process
=================  ============================================================================
"""

from fedsec.aggregation.aggregator import Aggregator
from fedsec.aggregation.announcement import Announcement, Member, RoundId, decode_announcement, encode_config
from fedsec.aggregation.client import HospitalClient
from fedsec.aggregation.collector import Collector, RoundResult
from fedsec.aggregation.encoding import ClipReport, decode_sum, encode_update
from fedsec.aggregation.memory import MemoryNetwork
from fedsec.aggregation.messages import Signed
from fedsec.aggregation.planner import ArraySpec, Encoding, Layout, MetricSpec, plan_encoding
from fedsec.aggregation.policy import Policy
from fedsec.aggregation.receipts import InclusionReceipt
from fedsec.aggregation.service import AggregatorService
from fedsec.aggregation.trust import TrustFile, TrustLimits

__all__ = [
    "Aggregator",
    "AggregatorService",
    "Announcement",
    "ArraySpec",
    "ClipReport",
    "Collector",
    "Encoding",
    "HospitalClient",
    "InclusionReceipt",
    "Layout",
    "Member",
    "MemoryNetwork",
    "MetricSpec",
    "Policy",
    "RoundId",
    "RoundResult",
    "Signed",
    "TrustFile",
    "TrustLimits",
    "decode_announcement",
    "decode_sum",
    "encode_config",
    "encode_update",
    "plan_encoding",
]
