"""A server that announces other initial parameters in each round learns nothing of a sealed model.

Hospitals refuse a state that is farther from the initial parameters than its rounds can have brought it, and
the server sees who refuses. With initial parameters of its own choice in every announcement it would read
the state by bisection, or test guesses of all of it with two announcements.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from aggregation_world import World, replaced

from fedsec.aggregation import plan_encoding
from fedsec.aggregation.announcement import Announcement
from fedsec.aggregation.client import HospitalClient
from fedsec.aggregation.messages import Signed
from fedsec.aggregation.sealed.messages import StateShare
from fedsec.aggregation.sealed.terms import Sealed, encode_model, origin_of
from fedsec.errors import FedsecError

BITS = 24
CLIPS = (1.0, 0.5)
Arrays = Sequence[npt.NDArray[Any]]
INITIAL = (np.zeros((2, 3), np.float32), np.zeros(4, np.float32))
_generator = np.random.default_rng(7)
SECRET = (_generator.uniform(-0.4, 0.4, (2, 3)), _generator.uniform(-0.4, 0.4, 4))
JUST_ABOVE = 1 + 2.0**-10
"""Of a clip: so far from the initial parameters a state of round 1 is refused."""


@dataclass
class Parties:
    """Three parties that hold the state of round 1, as far as a hospital that fetches it sees them."""

    names: Sequence[str]
    origin: bytes
    bodies: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        words = encode_model(SECRET, BITS)
        first, second = np.random.default_rng(8).integers(0, 2**63, (2, words.size), dtype=np.uint64)
        shares = (first, second, words - first - second)
        self.bodies = {name: one.tobytes() for name, one in zip(self.names, shares, strict=True)}

    def call(self, name: str, *_: object, **__: object) -> tuple[StateShare, bytes]:
        return StateShare(BITS, self.origin), self.bodies[name]

    def close(self) -> None:
        pass


@dataclass
class Attack:
    """A server and the one hospital that it asks, whose aggregators admit every announcement."""

    world: World
    client: Callable[[], HospitalClient]
    parties: Parties
    deceived: bool = False
    rounds: Iterator[int] = field(default_factory=lambda: itertools.count(2))

    def announcement(self, arrays: Arrays = INITIAL, **fields: Any) -> Announcement:
        """Announce a round over the state of round 1, with these arrays as its initial parameters."""
        parties = tuple(one.name for one in self.world.parties)
        values = {
            "round": next(self.rounds),
            "reveal_to": "hospitals",
            "sealed": Sealed(parties, fields.pop("fraction_bits", BITS), 1, keep_closed=False),
            "encoding": plan_encoding(2 * self.world.hospital_count, 1.0, 1000, 10.0),
        }
        return self.world.announcement(arrays, **{**values, **fields})

    def train(self, announcement: Announcement, arrays: Arrays = INITIAL) -> list[npt.NDArray[np.float64]]:
        """Let the hospital take the round, up to the model that it would train."""
        signed: Signed = self.world.sign(announcement)
        for one in self.world.parties:
            self.world.policy.check(one.name, signed)
        if self.deceived:
            self.parties.origin = origin_of(announcement)
        client = self.client()
        accepted = client.accept(signed.payload, signed.signature, arrays, {"lr": 0.01, "epochs": 1})
        return client.sealed_model(accepted, arrays)

    def refused(self, arrays: Arrays) -> bool:
        """All that the server sees: a refusal at once, or that the hospital trains."""
        try:
            self.train(self.announcement(arrays), arrays)
        except FedsecError:
            return True
        return False


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as one:
        yield one


@pytest.fixture(params=["one that has trained before", "one that comes late", "one that is restarted"])
def attack(world: World, request: pytest.FixtureRequest) -> Iterator[Attack]:
    """The attack on a hospital that knows the session, and on hospitals that do not know it yet."""
    clients: list[HospitalClient] = []
    parties = Parties([one.name for one in world.parties], b"")

    def client(folder: str = "state") -> HospitalClient:
        trust = world.trust(world.hospitals[0], reveal_to=("hospitals",))
        trust = replace(trust, secret=b"s" * 32, state=world.folder / folder)
        clients.append(HospitalClient(trust, identity=world.hospitals[0], links=parties))  # type: ignore[arg-type]
        return clients[-1]

    known = client()
    found = Attack(world, lambda: known, parties)
    parties.origin = origin_of(found.announcement())
    if request.param == "one that comes late":
        found.client = lambda: client(f"state-{len(clients)}")
    else:
        found.train(found.announcement())
        # It needs nobody to tell it what the session began from.
        found.deceived = True
    if request.param == "one that is restarted":
        found.client = client
    yield found
    for one in clients:
        one.close()


def test_a_server_cannot_bisect_a_parameter_of_a_sealed_state(attack: Attack) -> None:
    low, high = -0.5, 0.5
    seen = set()
    for _ in range(12):
        middle = (low + high) / 2
        probe = [one.copy() for one in INITIAL]
        # Within its clip of the state exactly if the state's parameter is below the middle.
        probe[1][2] = middle - CLIPS[1] * JUST_ABOVE
        refused = attack.refused(probe)
        seen.add(refused)
        low, high = (middle, high) if refused else (low, middle)

    assert seen == {True}, "every hospital answers every probe alike"
    assert abs(low - SECRET[1][2]) > 0.2, "so the server ends at the end of the range"
    assert not attack.refused(INITIAL), "the control: from the true parameters the hospital trains"


def test_a_server_cannot_test_a_guess_of_a_whole_sealed_state(attack: Attack) -> None:
    wrong = [one.copy() for one in SECRET]
    wrong[0][0, 0] += 0.01
    for guess, far in itertools.product((SECRET, wrong), (1, -1)):
        probe = [
            (one + far * (1e-3 - clip * JUST_ABOVE)).astype(np.float32)
            for one, clip in zip(guess, CLIPS, strict=True)
        ]
        assert attack.refused(probe)


@pytest.mark.parametrize("change", ["clips", "fraction bits", "names"])
def test_clips_and_fraction_bits_are_those_of_the_session_too(attack: Attack, change: str) -> None:
    announcement = attack.announcement(**({"fraction_bits": 20} if change == "fraction bits" else {}))
    if change == "clips":
        arrays = tuple(replaced(spec, clip=0.3) for spec in announcement.arrays)
        announcement = replaced(announcement, arrays=arrays)
    if change == "names":
        arrays = tuple(replaced(spec, name=f"other-{spec.name}") for spec in announcement.arrays)
        announcement = replaced(announcement, arrays=arrays)
    with pytest.raises(FedsecError, match=r"initial parameters|another model"):
        attack.train(announcement)
