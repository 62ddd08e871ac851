"""Engines: what is refused before anything starts, what the processes hand over, and the apps themselves."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fedsec.cli.main import main
from fedsec.errors import DeadlineError, FedsecError, PeerLostError, RoundAbortedError
from fedsec.lab import engines
from fedsec.lab.engines import ENGINES, MOST_SUPERNODES, _follow, _round_seconds, _traffic
from fedsec.lab.handover import Handover
from fedsec.lab.progress import Reporter
from fedsec.lab.result import RoundReport
from fedsec.scenario import Scenario
from fedsec.transport import MeterReading

ROOT = Path(__file__).resolve().parents[3]
SCENARIO = str(ROOT / "scenarios" / "ten-equal-hospitals")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["run", SCENARIO, *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


def test_without_ray_its_engine_says_what_to_install_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else find(name))

    assert "pip install 'fedsec[ray]'" in refused(capsys, "--engine", "ray")
    assert list(tmp_path.iterdir()) == []


def test_a_deployment_too_large_for_one_machine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = f"hospitals.count={MOST_SUPERNODES + 1}"

    assert f"at most {MOST_SUPERNODES} hospitals" in refused(capsys, "--engine", "deployment", "--set", sizes)
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_is_none_is_answered_with_all_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["run", SCENARIO, "--engine", "rays"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert all(f"'{engine}'" in said for engine in ENGINES)


def report(number: int, **changes: Any) -> RoundReport:
    values = {
        "round": number,
        "accuracy": 0.5,
        "loss": 1.0,
        "included": 2,
        "hospitals": 3,
        "difference": None,
        "error_bound": 1e-9,
        "seconds": 2.5,
        "statuses": {"stored": 2, "failed": 1},
        "names": ("hospital-00", "hospital-02"),
    }
    return RoundReport(**{**values, **changes})


def test_rounds_are_handed_over_one_by_one_and_never_by_half(tmp_path: Path) -> None:
    (tmp_path / "flower").mkdir()
    writer, reader = Handover(tmp_path), Handover(tmp_path)
    assert reader.rounds(0) == []
    writer.add_round(report(1))
    writer.add_round(report(2, included=0, error_bound=None, aborted="too few", names=()))
    with (tmp_path / "flower" / "rounds.jsonl").open("a") as file:
        file.write('{"round": 3, "accu')

    assert reader.rounds(0) == [
        report(1),
        report(2, included=0, error_bound=None, aborted="too few", names=()),
    ]
    assert [one.round for one in reader.rounds(1)] == [2]
    assert reader.rounds(2) == []


def test_the_end_is_handed_over_with_its_error(tmp_path: Path) -> None:
    (tmp_path / "flower").mkdir()
    handover = Handover(tmp_path)
    assert not handover.ended
    handover.end({"error": "RoundAbortedError", "text": "none of 2 rounds"})
    assert handover.ended
    with pytest.raises(RoundAbortedError, match="none of 2 rounds"):
        handover.check()
    # The class comes from a file: only ours are ever made from it.
    for name in ("SystemExit", "Any", "__name__", "annotations"):
        handover.end({"error": name, "text": "odd"})
        with pytest.raises(FedsecError, match="odd"):
            handover.check()
    handover.end({})
    handover.check()


@pytest.mark.parametrize(("reveal_to", "exchanges"), [("server", 1), ("hospitals", 2), ("nobody", 2)])
def test_a_round_that_hospitals_evaluate_has_the_time_of_two_exchanges(
    reveal_to: str, exchanges: int
) -> None:
    scenario = Scenario().override(f"aggregation.reveal_to={reveal_to}", "aggregation.upload_seconds=5000")
    assert exchanges * 5000 < _round_seconds(scenario) < exchanges * 5000 + 1000


def test_bytes_of_processes_that_are_gone_are_what_the_parties_counted() -> None:
    def reading(peers: dict[str, tuple[int, int, int, int]]) -> MeterReading:
        return MeterReading(0, 0, 0, {}, peers)

    traffic = _traffic(
        {
            "party-0": reading(
                {"hospital-00": (1, 10, 2, 200), "server": (3, 30, 4, 400), "owner": (1, 1, 1, 1)}
            ),
            "party-1": reading({"hospital-01": (1, 7, 1, 70), "party-0": (9, 9, 9, 9)}),
        }
    )

    assert traffic == {
        "hospitals": Counter(sent_bytes=270, received_bytes=17),
        "server": Counter(sent_bytes=400, received_bytes=30),
    }


class FakeFlower:
    """Flower's programs on paper: they say whether the app has ended, and can be found dead."""

    def __init__(self, *, ended: bool = False, dead: bool = False) -> None:
        self._ended, self._dead = ended, dead

    def ended(self) -> bool:
        return self._ended

    def check(self) -> None:
        if self._dead:
            raise PeerLostError("expected superlink to run; it ended")

    def last_words(self) -> str:
        return "End of flower-run.log: ImportError"


def following(folder: Path, flower: FakeFlower) -> list[RoundReport]:
    (folder / "flower").mkdir(exist_ok=True)
    heard: list[RoundReport] = []
    experiment: Any = SimpleNamespace(
        scenario=Scenario(),
        cluster=SimpleNamespace(watch=lambda: None),
        reporter=Reporter(),
        folder=SimpleNamespace(logs=folder / "logs"),
    )
    _follow(experiment, cast(Any, flower), Handover(folder), heard.append)
    return heard


def test_rounds_are_told_until_the_end(tmp_path: Path) -> None:
    (tmp_path / "flower").mkdir()
    handover = Handover(tmp_path)
    handover.add_round(report(1))
    handover.add_round(report(2))
    handover.end({})

    assert [one.round for one in following(tmp_path, FakeFlower(ended=True))] == [1, 2]


def test_an_app_that_ends_without_a_word_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(FedsecError, match=r"ended without a result\. End of flower-run\.log: ImportError"):
        following(tmp_path, FakeFlower(ended=True))


def test_a_program_that_dies_is_named(tmp_path: Path) -> None:
    with pytest.raises(PeerLostError, match="expected superlink to run"):
        following(tmp_path, FakeFlower(dead=True))


def test_a_round_that_does_not_come_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "START_S", -1e6)
    with pytest.raises(DeadlineError, match=r"Flower's server app in round 1 .*logs"):
        following(tmp_path, FakeFlower())
