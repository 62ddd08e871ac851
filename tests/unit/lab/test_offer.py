"""What is granted: limits, what is revealed, and how noisy labels are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from fedsec.errors import UsageError
from fedsec.lab.offer import noise_of, usual_reveal
from fedsec.lab.serving import _about_noise
from fedsec.lab.share import SharedModel
from fedsec.nn import Network, plan_network
from fedsec.nn.network import DenseLayer
from fedsec.serving.messages import LabelNoise


class FakeOwner:
    """Hears what is to be served."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def serve(self, num_requests: int | None, **terms: Any) -> None:
        self.asked.append({"num_requests": num_requests, **terms})


def model_of(owner: FakeOwner) -> SharedModel:
    return SharedModel(cast("Any", owner), cast("Any", None), cast("Any", Path()), cast("Any", None))


def test_with_noise_labels_are_served_unless_something_else_is_asked_for() -> None:
    owner = FakeOwner()
    shared = model_of(owner)

    shared.serve(3, label_epsilon=1.5, identity_epsilon=6, total_epsilon=30)
    shared.serve()
    shared.serve(reveals=["label", "top3"], label_epsilon=2.0)

    noises = [LabelNoise(1.5, 6, 30), None, LabelNoise(2.0)]
    assert [asked["noise"] for asked in owner.asked] == noises
    # Whether something else may be revealed beside noise is the owner's check.
    assert [asked["reveals"] for asked in owner.asked] == [("label",), ("logits",), ("label", "top3")]
    assert shared.offer.noise == noises[-1]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ((None, 1.0, None), "identity_epsilon limits what noisy labels spend: give label_epsilon too"),
        ((None, None, 1.0), "total_epsilon limits"),
        ((0.0, None, None), "label_epsilon: expected above 0 and up to 10, got 0"),
        ((11.0, None, None), "got 11"),
        ((float("nan"), None, None), "got nan"),
        ((1.0, 0.0, None), "identity_epsilon: expected above 0"),
        ((1.0, None, float("inf")), "total_epsilon: expected above 0"),
    ],
)
def test_an_epsilon_that_is_none_is_refused(given: tuple[Any, Any, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        noise_of(*given)


def test_who_serves_noise_reads_what_it_costs_and_what_it_does_not_protect() -> None:
    plan, _ = plan_network(Network("ten", (4,), (DenseLayer("d", np.ones((4, 10)), np.zeros(10)),)))

    lines = _about_noise(LabelNoise(3.0, 30.0, None), plan)

    # The table has 175 of 256 entries for the label, 9 for each other: ln(175 / 9) = 2.96756.
    assert lines[0] == "labels are noisy: epsilon 2.96756 an image; 68.4% are the model's own"
    assert lines[1] == "  answers add up; may spend: a certificate 30, all users together without limit"
    assert "a .keras file begins at zero whenever it is served" in lines[2]
    assert "nothing else" in lines[3]
    assert "trained with differential privacy needs no such noise" in lines[4]
    assert _about_noise(None, plan) == []
    assert (usual_reveal(None), usual_reveal(LabelNoise(1.0))) == ("logits", "label")
