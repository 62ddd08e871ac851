"""Who starts both sides of a comparison: what is made of what they leave, and of how they end."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import fedsec
from fedsec.errors import FedsecError, PeerLostError, RoundAbortedError
from fedsec.lab import compare
from fedsec.lab.compare import run_comparison
from fedsec.scenario import Scenario

ROOT = Path(fedsec.__file__).parent.parent

# A side without TensorFlow: it leaves what a real one would, or ends as ENDING says.
SIDE = """
import json, sys
from pathlib import Path
from fedsec.lab.handover import Handover
from fedsec.lab.result import RoundReport

folder, side = Path(sys.argv[1]), sys.argv[2]
handover = Handover(folder / side)
secure = side == "secure"
for number in (1, 2):
    handover.add_round(RoundReport(
        round=number, accuracy=0.5 + number / 10, loss=1.0, included=4, hospitals=5, seconds=1.5,
        difference=DIFFERENCE if secure else None, error_bound=2e-8 if secure else None, names=(),
    ))
count = {"sent_bytes": 100, "received_bytes": 30} if secure else {"sent_bytes": 0, "received_bytes": 0}
measures = {
    "flower": {"sent_bytes": 9000, "received_bytes": 800}, "hospitals": count, "server": count,
    "answered": 8, "client_seconds": 2.5, "memory_before_bytes": 5, "memory_bytes": 7,
}
(handover.folder / "measures.json").write_text(json.dumps(measures))
ENDING
handover.end({})
"""


class NoParties(contextlib.nullcontext[Any]):
    """Stands in for a cluster whose parties nobody asks."""

    def __enter__(self) -> NoParties:
        return self

    def watch(self) -> None:
        pass

    def meters(self) -> dict[str, Any]:
        return {}

    pids = meters


@pytest.fixture
def compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def run(ending: str = "", difference: str = "1e-8", *, parties: bool = False) -> Any:
        if not parties:
            monkeypatch.setattr(compare, "local_cluster", lambda *_: NoParties())
        script = tmp_path / "side.py"
        script.write_text(SIDE.replace("ENDING", ending).replace("DIFFERENCE", difference))
        monkeypatch.setattr(compare, "SIDE_COMMAND", (sys.executable, str(script)))
        return run_comparison(Scenario(name="small").override("hospitals.count=5"), runs=tmp_path / "runs")

    return run


def test_what_both_sides_measured_is_put_together(compared: Any) -> None:
    comparison = compared(parties=True)

    plain, secure = comparison.plain, comparison.secure
    assert [one.accuracy for one in plain.rounds] == [0.6, 0.7]
    assert comparison.within_bound
    # What the server sends over Flower the hospitals receive; channels come on top.
    assert plain.traffic == {
        "hospitals": {"sent_bytes": 800, "received_bytes": 9000},
        "server": {"sent_bytes": 9000, "received_bytes": 800},
    }
    assert secure.traffic["hospitals"] == {"sent_bytes": 900, "received_bytes": 9030}
    assert secure.traffic["server"] == {"sent_bytes": 9100, "received_bytes": 830}
    assert (plain.upload_bytes, secure.upload_bytes) == (100.0, 112.5)
    assert (plain.seconds, plain.client_seconds) == (3.0, 2.5)
    assert secure.memory.keys() == {"hospitals and server", "party-0", "party-1", "party-2"}
    assert all(secure.memory[f"party-{i}"] > 10e6 for i in range(3))
    folder = comparison.folder
    assert json.loads(folder.summary.read_text()) == json.loads(json.dumps(comparison.summary()))
    assert [line["side"] for line in folder.read_metrics("round")] == ["plain", "plain", "secure", "secure"]
    assert folder.comparison_figure.stat().st_size > 10_000


def test_a_difference_above_the_bound_is_no_agreement(compared: Any) -> None:
    assert not compared(difference="3e-8").within_bound


@pytest.mark.parametrize(
    ("ending", "error", "text"),
    [
        ("sys.exit(3)", PeerLostError, "the plain side to run; it ended with exit code 3"),
        (
            "if secure: handover.end({'error': 'RoundAbortedError', 'text': 'too few'}); sys.exit(0)",
            RoundAbortedError,
            "too few",
        ),
        ("(handover.folder / 'measures.json').unlink()", FedsecError, "the plain side left no measures"),
    ],
)
def test_a_side_that_fails_is_named(compared: Any, ending: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        compared(ending)
