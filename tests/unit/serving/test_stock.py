"""What is prepared ahead: never more than the service may still answer."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from fedsec.errors import ProtocolError
from fedsec.nn import Reveal
from fedsec.nn.engine import Mode
from fedsec.ring import RingArray
from fedsec.serving.stock import Stock
from fedsec.sharing.replicated import RepShare


@dataclass
class CountingEngine:
    """Counts what is prepared, and computes nothing."""

    mode: Mode = "dealt"
    reads_inputs: bool = False
    prepared: dict[Reveal, int] = field(default_factory=dict)

    def prepare(self, images: int, reveal: Reveal) -> None:
        self.prepared[reveal] = self.ready(reveal) + images

    def ready(self, reveal: Reveal) -> int:
        return self.prepared.get(reveal, 0)

    def image_bytes(self, reveal: Reveal) -> int:
        del reveal
        return 1000

    def predict(self, x: RepShare, reveal: Reveal) -> RingArray:
        raise NotImplementedError


def test_a_service_of_three_images_prepares_three() -> None:
    engine = CountingEngine()
    stock = Stock(engine, ("logits", "label"), 3)

    while stock.due(0.0, idle=True) is not None:
        stock.prepare(*stock.wanted())

    assert engine.prepared == {"logits": 3}
    with pytest.raises(ProtocolError, match="within the stock"):
        stock.prepare(1, "logits")


def test_who_asks_for_something_else_does_not_stop_what_others_asked_for() -> None:
    engine = CountingEngine()
    stock = Stock(engine, ("logits", "label", "top3"), 3)
    stock.asked("label", 0.0)

    while stock.due(1.0, idle=True) is not None:
        stock.prepare(*stock.wanted())

    assert engine.prepared == {"label": 3, "logits": 3}
    engine.prepared["logits"] = 0
    assert stock.due(1.0, idle=True) == 0.0
    assert stock.wanted()[1] == "logits"
