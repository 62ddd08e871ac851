"""When a service is resumed, how often that is tried, and when it is given up."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from fedsec.errors import DeadlineError, FedsecError, PeerLostError, ProtocolError, ServiceEndedError
from fedsec.lab import keeping
from fedsec.serving.messages import Status


class Shared:
    """Stands for a shared model: what waiting and resuming bring, one after the other."""

    def __init__(self, ends: list[Any], resumptions: list[Any], num_requests: int | None = None) -> None:
        self._ends: Iterator[Any] = iter(ends)
        self._resumptions: Iterator[Any] = iter(resumptions)
        self.offer = SimpleNamespace(num_requests=num_requests)

    def last_status(self) -> Status:
        return _next(self._ends)

    def resume(self) -> int | None:
        return _next(self._resumptions)


class Machine:
    """Stands for the cluster of this machine."""

    def __init__(self, lost: list[Any]) -> None:
        self._lost = iter(lost)

    def revive(self) -> list[str]:
        return _next(self._lost)


def _next(outcomes: Iterator[Any]) -> Any:
    outcome = next(outcomes)
    if isinstance(outcome, FedsecError):
        raise outcome
    return outcome


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(keeping.time, "sleep", slept.append)
    return slept


def keep(shared: Shared, cluster: Machine | None = None) -> tuple[int, list[str]]:
    said: list[str] = []
    return keeping.keep(shared, said.append, cluster), [line.split(" ", 1)[1] for line in said]  # type: ignore[arg-type]


ENDED = Status(state="ended", answered=9)
LOST = PeerLostError("party-1 was lost")


@pytest.mark.parametrize("end", [ENDED, Status(state="stopped", answered=9, by_owner=True)])
def test_an_end_that_is_meant_is_the_end(end: Status, rests: list[float]) -> None:
    assert keep(Shared([end], [])) == (9, [])
    assert rests == []


@pytest.mark.parametrize(
    "interruption",
    [
        LOST,
        DeadlineError("party-1 is silent"),
        Status(state="stopped", text="the service was stopped by bob"),
    ],
)
def test_a_lost_or_leaving_party_is_only_an_interruption(interruption: Any, rests: list[float]) -> None:
    answered, said = keep(Shared([interruption, ENDED], [4]), Machine([["party-1"]]))
    assert answered == 9
    text = interruption.text if isinstance(interruption, Status) else str(interruption)
    assert said == [
        f"the service was interrupted: {text}",
        "started again: party-1",
        "the service goes on, with 4 image(s) answered before",
    ]
    assert rests == []


def test_what_sharing_anew_does_not_repair_is_raised(rests: list[float]) -> None:
    with pytest.raises(ProtocolError):
        keep(Shared([ProtocolError("carol lied")], []))
    with pytest.raises(ProtocolError):
        keep(Shared([LOST], [ProtocolError("carol lied")]))
    assert rests == []


def test_a_service_that_has_answered_its_number_is_not_resumed(rests: list[float]) -> None:
    assert keep(Shared([LOST], [None], num_requests=7))[0] == 7


def test_parties_elsewhere_are_waited_for_with_growing_rests_and_said_once(rests: list[float]) -> None:
    away = [PeerLostError("bob is away")] * 4 + [ServiceEndedError("carol ends")] * 4 + [2]
    _, said = keep(Shared([LOST, ENDED], away))
    assert rests == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert said[1:3] == ["waiting: bob is away", "waiting: carol ends"]
    assert len(said) == 4


def test_parties_of_this_machine_that_fail_again_and_again_are_given_up(rests: list[float]) -> None:
    broken = [PeerLostError(f"party-1 ended with exit code 9: {number}") for number in range(9)]
    with pytest.raises(PeerLostError, match="exit code 9: 4"):
        keep(Shared([LOST], []), Machine(broken))
    assert len(rests) == keeping.MOST_STARTS - 1
