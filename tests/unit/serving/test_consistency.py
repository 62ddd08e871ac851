"""One sharing at all three parties, one session a service: what must agree before anyone is answered."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedsec.errors import FedsecError, ProtocolError, UsageError
from fedsec.mpc.party import Party
from fedsec.mpc.simulator import Received, simulate
from fedsec.nn import Plan, Weights, plaintext
from fedsec.ring import fresh_stream
from fedsec.serving import messages, running
from fedsec.serving.client import Client
from fedsec.serving.consistency import compare_weights
from fedsec.serving.limits import Limits
from fedsec.serving.shelf import HeldModel, Shelf
from fedsec.sharing import replicated
from fedsec.sharing.replicated import RepShare
from fedsec.transport import Deadline, call, connect

Model = tuple[Plan, Weights]
NAMES = ("alice", "bob", "carol")
LIMITS = Limits(heartbeat_s=0.1, silence_s=20.0, part_s=30.0, setup_s=60.0)


@pytest.fixture
def trio(start_trio: Callable[..., Any]) -> Any:
    return start_trio(LIMITS)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(size=(count, 6, 6, 1))


def changed(share: RepShare, component: str) -> RepShare:
    words = getattr(share, component).copy()
    words.flat[-1] += words.dtype.type(1)
    return replace(share, **{component: words})


def shares(seed: int = 1) -> list[list[RepShare]]:
    arrays = [np.arange(6, dtype=np.uint64).reshape(2, 3), np.arange(seed, seed + 3, dtype=np.uint64)]
    split = [replicated.share(array, fresh_stream()) for array in arrays]
    return [list(of_party) for of_party in zip(*split, strict=True)]


def compare(held: list[list[RepShare]]) -> list[str]:
    def program(party: Party) -> str:
        names = {other: NAMES[other] for other in range(3)}
        try:
            compare_weights(party, held[party.id], names)
        except ProtocolError as error:
            return str(error)
        return ""

    return list(simulate(program).results)


def test_parts_of_one_sharing_agree() -> None:
    assert compare(shares()) == ["", "", ""]


@pytest.mark.parametrize(("component", "common_with"), [("own", 0), ("next", 2)])
def test_one_changed_word_is_noticed_at_both_ends(component: str, common_with: int) -> None:
    held = shares()
    held[1][1] = changed(held[1][1], component)
    told = compare(held)
    assert NAMES[common_with] in told[1]
    assert "bob" in told[common_with]
    assert told[2 - common_with] == ""


def test_threat_03_the_tags_tell_nothing_that_can_be_compared_across_sessions() -> None:
    """A fresh key of the pair is in every tag: the same weights give other bytes in every session."""
    held = shares()

    def program(party: Party) -> None:
        compare_weights(party, held[party.id], {other: NAMES[other] for other in range(3)})

    seen: list[bytes] = []
    for _ in range(2):
        for view in simulate(program, record=True).views:
            seen += [one.words.tobytes() for call in view.calls for one in call if isinstance(one, Received)]
    assert len(seen) == 2 * 3 * 2
    assert len(set(seen)) == len(seen)


def test_a_share_that_fails_half_way_leaves_nothing_new_and_nothing_mixed(trio: Any, model: Model) -> None:
    """Two parties were restarted, the third was not: its part is of another splitting."""
    plan, weights = model
    with trio.owner() as owner:
        model_id = owner.share(plan, weights)
        for party in (0, 1):
            trio.services[party]._shelf.drop(model_id)
        with pytest.raises(UsageError, match="held here already"):
            owner.share(plan, weights, model_id=model_id)
        assert [model_id in service._shelf.ids() for service in trio.services] == [False, False, True]
        with pytest.raises(UsageError, match="party-0 holds no part"):
            owner.serve(model_id=model_id)
        owner.forget(model_id)
        owner.share(plan, weights, model_id=model_id)
        owner.serve(model_id=model_id)
        with Client.connect(trio.cluster, trio.identity("user")) as user:
            expected = plaintext.predict(plan, weights, images(2))
            np.testing.assert_allclose(user.predict(images(2)), expected, atol=1e-2)


def test_sharing_a_held_model_again_by_mistake_keeps_it(trio: Any, model: Model) -> None:
    with trio.owner() as owner:
        model_id = owner.share(*model)
        with pytest.raises(UsageError, match="held here already"):
            owner.share(*model, model_id=model_id)
        assert owner.serve(model_id=model_id).state == "serving"


def tamper(trio: Any, party: int, change: Callable[[HeldModel], HeldModel]) -> None:
    shelf = trio.services[party]._shelf
    (model_id,) = shelf.ids()
    held = shelf.get(model_id)
    shelf.drop(model_id)
    shelf.put(change(held))


def test_parts_of_two_sharings_are_not_served(trio: Any, model: Model) -> None:
    with trio.owner() as owner:
        owner.share(*model)
        tamper(trio, 2, lambda held: replace(held, sharing=b"x" * 16))
        with pytest.raises(FedsecError, match="other terms"):
            owner.serve()


def test_an_inconsistent_sharing_is_not_served(trio: Any, model: Model) -> None:
    with trio.owner() as owner:
        owner.share(*model)
        tamper(
            trio,
            1,
            lambda held: replace(held, weights=(changed(held.weights[0], "own"), *held.weights[1:])),
        )
        with pytest.raises(FedsecError, match="another sharing of this model"):
            owner.serve()


def test_every_service_has_a_session_of_its_own(
    trio: Any, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions: list[bytes] = []
    establish = running.establish

    def record(
        party_id: int, previous: Any, following: Any, session: bytes, *rest: Any, **more: Any
    ) -> Party:
        sessions.append(session)
        return establish(party_id, previous, following, session, *rest, **more)

    monkeypatch.setattr(running, "establish", record)
    with trio.owner() as owner:
        owner.share(*model)
        for _ in range(2):
            owner.serve()
            assert sessions[-1] == trio.services[0]._service.terms.digest()
            owner.stop()
    assert sessions[:3] == [sessions[0]] * 3
    assert sessions[3:] == [sessions[3]] * 3
    assert sessions[0] != sessions[3]


def test_the_shelf_keeps_what_it_holds(model: Model) -> None:
    shelf = Shelf(most=2)
    first = HeldModel(b"m" * 16, model[0], b"", b"", b"1" * 16, ())
    shelf.put(first)
    with pytest.raises(UsageError, match="held here already"):
        shelf.put(replace(first, sharing=b"2" * 16))
    assert shelf.get(b"m" * 16) is first
    shelf.drop(b"m" * 16, b"2" * 16)
    assert shelf.ids() == (b"m" * 16,)
    shelf.drop(b"m" * 16, b"1" * 16)
    assert shelf.ids() == ()


def test_a_service_that_waits_for_the_others_can_be_stopped(trio: Any, model: Model) -> None:
    """Only party 0 was told to serve: it waits for a link that never comes."""
    with trio.owner() as owner, ThreadPoolExecutor(1) as pool:
        model_id = owner.share(*model)

        def start() -> str:
            told = messages.Serve(service=b"s" * 16, model=model_id)
            identity = trio.identity("owner")
            with connect(trio.cluster.parties[0], identity, deadline=Deadline.after(30)) as channel:
                return call(channel, told, messages.Status, deadline=Deadline.after(30))[0].state

        reply = pool.submit(start)
        while owner.status().state != "starting":
            time.sleep(0.02)
        began = time.monotonic()
        assert owner.stop().state == "stopped"
        assert time.monotonic() - began < 30
        assert reply.result(30) == "stopped"
