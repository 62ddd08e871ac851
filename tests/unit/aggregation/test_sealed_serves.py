"""A hospital may pin the plan under which a model for nobody is served: a server cannot name another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from aggregation_world import World

from fedsec.aggregation import plan_encoding
from fedsec.aggregation.announcement import Announcement
from fedsec.aggregation.sealed.terms import Sealed
from fedsec.aggregation.trust import TrustFile
from fedsec.errors import TrustError

PINNED, OTHER = bytes(range(32)), bytes(32)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as one:
        yield one


def last_round(world: World, serves: bytes) -> Announcement:
    parties = tuple(one.name for one in world.parties[:3])
    encoding = plan_encoding(2 * world.hospital_count, 1.0, 1000, 10.0)
    sealed = Sealed(parties, 24, 0, keep_closed=True, serves=serves)
    return world.announcement(reveal_to="nobody", sealed=sealed, encoding=encoding)


def test_a_plan_that_a_hospital_did_not_pin_is_refused_before_training(world: World, tmp_path: Path) -> None:
    any_plan = world.trust(world.hospitals[0], reveal_to=("nobody",))
    pinning = replace(any_plan, limits=replace(any_plan.limits, serves=(PINNED.hex(),)))
    pinning.save(tmp_path / "trust.toml")
    assert TrustFile.load(tmp_path / "trust.toml").limits.serves == (PINNED.hex(),)

    any_plan.check_announced(last_round(world, OTHER))
    pinning.check_announced(last_round(world, PINNED))
    # Served under no plan is served not at all.
    pinning.check_announced(last_round(world, b""))
    with pytest.raises(TrustError, match=r"serves = 0000.*outside the limits of the trust file"):
        pinning.check_announced(last_round(world, OTHER))
