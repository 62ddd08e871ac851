"""Rounds and bytes of one prediction, counted at the channels.

The three parties run in threads here, with channels that log. What is counted is what the engine sends;
the agreement on which request comes next and TLS records are in the service's own meters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsec.bench.asker import pictures
from fedsec.mpc import Party, simulate
from fedsec.nn import Plan, Reveal, Weights, encode_input, share_weights
from fedsec.nn.engine import Mode, make_engine
from fedsec.ring import fresh_stream
from fedsec.sharing import replicated
from fedsec.transport import MessageRecord, rounds_of
from fedsec.transport.meter import kind_of

_DEALING = "deal"
"""Kind of the labels of material that is dealt before an image is there."""

Logs = Mapping[str, Sequence[MessageRecord]]


@dataclass(frozen=True, slots=True)
class Counted:
    """What one image cost in one mode and with one kind of answer.

    Attributes:
        rounds: Longest chain of dependent messages between parties once the image is there.
        online: Payload bytes by link once the image is there.
        prepared: Payload bytes by link before.
    """

    rounds: int
    online: dict[str, int]
    prepared: dict[str, int]

    def summary(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {
            "rounds": self.rounds,
            "online_bytes": sum(self.online.values()),
            "prepared_bytes": sum(self.prepared.values()),
            "online_links": self.online,
            "prepared_links": self.prepared,
        }


def count(
    plan: Plan, weights: Weights, mode: Mode, reveal: Reveal, label_epsilon: float | None = None
) -> Counted:
    """Run one prediction in a simulation and count.

    Args:
        plan: The network.
        weights: Its parameters.
        mode: ``"dealt"`` or ``"plain"``.
        reveal: What the user learns.
        label_epsilon: Of a noisy label.
    """
    parameters = share_weights(plan, weights, fresh_stream())
    words = encode_input(plan, pictures((1, *plan.input_shape), plan.input_low, plan.input_high))
    inputs = replicated.share(words, fresh_stream(), plan.fraction_bits)

    def program(party: Party) -> None:
        engine = make_engine(mode, party, plan, parameters[party.id], label_epsilon)
        engine.prepare(1, reveal)
        engine.predict(inputs[party.id], reveal)

    logs = simulate(program, record=True).logs
    online = _only(logs, lambda label: kind_of(label) != _DEALING)
    prepared = _only(logs, lambda label: kind_of(label) == _DEALING)
    return Counted(rounds_of(online), _links(online), _links(prepared))


def _only(logs: Logs, wanted: Callable[[str], bool]) -> Logs:
    return {name: [record for record in log if wanted(record.label)] for name, log in logs.items()}


def _links(logs: Logs) -> dict[str, int]:
    """Return the bytes that went over each link, by ``sender -> receiver``."""
    total: Counter[str] = Counter()
    for log in logs.values():
        for record in log:
            if record.event == "send":
                total[f"{record.sender} -> {record.receiver}"] += record.size
    return dict(sorted(total.items()))
