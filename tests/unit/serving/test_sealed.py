"""A model that nobody has is served from the parties' sealed states, and only under the announced plan."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from fedsec.errors import FedsecError, ProtocolError, TrustError, UsageError
from fedsec.nn import Plan, plaintext
from fedsec.nn.plan import Dense
from fedsec.nn.planner import plan_network
from fedsec.nn.sealed import Source, serving_digest
from fedsec.serving import messages
from fedsec.serving.client import Client
from fedsec.serving.limits import Limits
from fedsec.serving.sealed import SealedModel, sharing_of, take
from fedsec.transport import Deadline, call, connect

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))

from sealed_model import NUMBER, STATE_BITS, Sealed, arrays_of, network

LIMITS = Limits(heartbeat_s=0.1, silence_s=20.0, part_s=30.0, setup_s=60.0)
PARTIES = ("party-0", "party-1", "party-2")


@pytest.fixture(scope="module")
def sealed() -> Sealed:
    return Sealed.of(network())


@pytest.fixture
def trio(start_trio: Callable[..., Any]) -> Any:
    return start_trio(LIMITS)


@pytest.fixture
def folders(tmp_path: Path, trio: Any) -> dict[int, Path]:
    return {party: tmp_path / name for party, name in enumerate(PARTIES)}


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(size=(count, 6, 6, 1))


def expected(sealed: Sealed, asked: np.ndarray) -> np.ndarray:
    """The plain twin of the network as it really is, planned by itself."""
    return plaintext.predict(*plan_network(sealed.real), asked)


@pytest.mark.parametrize("mode", ["dealt", "plain"])
def test_answers_are_the_networks_and_the_owner_sends_no_weights(
    trio: Any, folders: dict[int, Path], sealed: Sealed, mode: Any
) -> None:
    sealed.store(folders)
    asked = images(5)
    with trio.owner() as owner:
        owner.share_sealed(sealed.model)
        sent = owner.meter.by_label()
        owner.serve(num_requests=10, mode=mode)
        with Client.connect(trio.cluster, trio.identity("user")) as user:
            np.testing.assert_allclose(user.predict(asked), expected(sealed, asked), atol=1e-2)
            np.testing.assert_allclose(user.predict(asked), expected(sealed, asked), atol=1e-2)
        assert owner.wait(60).answered == 10
    assert not any("share_model" in label for label in sent)


def test_the_same_states_serve_again_after_the_parties_have_forgotten_the_model(
    trio: Any, folders: dict[int, Path], sealed: Sealed
) -> None:
    sealed.store(folders)
    with trio.owner() as owner:
        for _ in range(2):
            model = owner.share_sealed(sealed.model, model_id=b"m" * 16)
            owner.serve(num_requests=1)
            with Client.connect(trio.cluster, trio.identity("user")) as user:
                np.testing.assert_allclose(user.predict(images(1)), expected(sealed, images(1)), atol=1e-2)
            assert owner.wait(60).state == "ended"
            owner.forget(model)


def told(trio: Any, party: int, message: Any, reply: Any, name: str = "owner") -> FedsecError | None:
    with connect(trio.cluster.parties[party], trio.identity(name), deadline=Deadline.after(30)) as channel:
        try:
            call(channel, message, reply, deadline=Deadline.after(20))
        except FedsecError as error:
            return error
    return None


OTHER_PLAN = Plan(
    name="parameters read out", input_shape=(4,), output_shape=(4,), input_low=0.0, input_high=1.0,
    fraction_bits=8,
    layers=(
        Dense(
            name="all", inputs=(0,), input_shape=(4,), output_shape=(4,), weight_fraction_bits=8, bound=64.0
        ),
    ),
)  # fmt: skip


def test_a_plan_that_was_not_announced_reads_nothing_out(
    trio: Any, folders: dict[int, Path], sealed: Sealed
) -> None:
    """One Dense layer of the first words: its answers to unit vectors would be the parameters."""
    sealed.store(folders)
    sources = (Source(0, 1, STATE_BITS - 8), Source(None))
    other = replace(sealed.model, plan=OTHER_PLAN, sources=sources)
    moved = replace(sealed.model, sources=(Source(1), *sealed.model.sources[1:]))
    with trio.owner() as owner:
        for model in (other, moved):
            with pytest.raises(TrustError, match="only under the plan that was announced"):
                owner.share_sealed(model)
        assert all(not status.models for status in owner.statuses())
    # The same state, announced with that plan, would give its parameters away: the check is what hides them.
    sealed.store(folders, serves=serving_digest(OTHER_PLAN, sources))
    with trio.owner() as owner:
        owner.share_sealed(other)
        owner.serve(num_requests=4)
        with Client.connect(trio.cluster, trio.identity("user")) as user:
            read = user.predict(np.eye(4))
    np.testing.assert_allclose(read.reshape(-1)[:12], arrays_of(sealed.real)[0].reshape(-1), atol=0.02)


def test_a_state_without_an_announced_plan_or_one_that_is_not_closed_is_not_served(
    trio: Any, folders: dict[int, Path], sealed: Sealed
) -> None:
    sealed.store(folders, serves=b"")
    with trio.owner() as owner:
        with pytest.raises(TrustError, match="only under the plan that was announced"):
            owner.share_sealed(sealed.model)
        sealed.store(folders, closed=False)
        with pytest.raises(TrustError, match="only the last, closed one is served"):
            owner.share_sealed(sealed.model)


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"number": NUMBER + 1}, (ProtocolError, "no sealed state 8")),
        ({"session": b"another session!"}, (ProtocolError, "no sealed state 7")),
        ({"words": 10}, (UsageError, "67 words with 24 fraction bits, the plan was made for 10 with 24")),
        ({"fraction_bits": 20}, (UsageError, "made for 67 with 20")),
    ],
)
def test_a_state_that_is_not_there_or_of_another_kind_is_refused(
    folders: dict[int, Path], trio: Any, sealed: Sealed, change: dict[str, Any], refusal: tuple[Any, str]
) -> None:
    sealed.store(folders)
    with trio.owner() as owner, pytest.raises(refusal[0], match=refusal[1]):
        owner.share_sealed(replace(sealed.model, **change))


def test_sources_beyond_the_state_are_refused_even_if_they_were_announced(
    folders: dict[int, Path], trio: Any, sealed: Sealed
) -> None:
    sources = (*sealed.model.sources[:-1], Source(64))
    sealed.store(folders, serves=serving_digest(sealed.model.plan, sources))
    with trio.owner() as owner, pytest.raises(UsageError, match="words 64 to 67, the sealed state has 67"):
        owner.share_sealed(replace(sealed.model, sources=sources))


def test_a_part_that_is_too_large_is_refused_before_the_state_is_read(
    folders: dict[int, Path], sealed: Sealed
) -> None:
    class Unread:
        def read(self, *_: object) -> Any:
            raise AssertionError("read")

    with pytest.raises(UsageError, match="may have 100 bytes here, this one has"):
        take(sealed.model.message(b"m" * 16), Unread(), 100)  # type: ignore[arg-type]  # must not be used


def test_a_party_without_its_state_leaves_no_part_at_the_others(
    trio: Any, folders: dict[int, Path], sealed: Sealed
) -> None:
    sealed.store({party: folders[party] for party in (0, 2)})
    with trio.owner() as owner:
        with pytest.raises(ProtocolError, match=r"party-1.*no sealed state 7|no sealed state 7"):
            owner.share_sealed(sealed.model)
        assert [status.models for status in owner.statuses()] == [(), (), ()]


def start_all(trio: Any, model: bytes) -> list[FedsecError | None]:
    message = messages.Serve(service=b"s" * 16, model=model)
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(lambda party: told(trio, party, message, messages.Status), range(3)))


def test_a_model_in_two_sharings_is_not_served_as_one(
    trio: Any, folders: dict[int, Path], sealed: Sealed
) -> None:
    """Under one id: sealed at two parties, given out by its owner at the third."""
    sealed.store(folders)
    message = sealed.model.message(b"m" * 16)
    for party in (0, 1):
        assert told(trio, party, message, messages.ModelHeld) is None
    held = trio.services[1]._shelf.get(b"m" * 16)
    trio.services[2]._shelf.put(replace(held, sharing=b"another sharing!"))
    errors = start_all(trio, b"m" * 16)
    assert all(errors)
    assert any("other terms" in str(error) for error in errors)


def test_states_of_two_splittings_are_noticed_before_anyone_is_answered(
    trio: Any, folders: dict[int, Path], sealed: Sealed
) -> None:
    sealed.store({party: folders[party] for party in (0, 1)})
    Sealed.of(network()).store({2: folders[2]})
    message = sealed.model.message(b"m" * 16)
    assert [told(trio, party, message, messages.ModelHeld) for party in range(3)] == [None] * 3
    errors = start_all(trio, b"m" * 16)
    assert all(errors)
    assert any("another sharing of this model" in str(error) for error in errors)


def test_the_sharing_names_state_plan_and_sources(sealed: Sealed) -> None:
    names = set()
    for change in (
        {},
        {"number": 8},
        {"session": b"another session!"},
        {"sources": sealed.model.sources[::-1]},
    ):
        names.add(sharing_of(replace(sealed.model, **change).message(b"m" * 16)))  # type: ignore[arg-type]  # each fits
    names.add(sharing_of(replace(sealed.model, plan=OTHER_PLAN).message(b"m" * 16)))
    assert len(names) == 5
    assert sharing_of(sealed.model.message(b"n" * 16)) in names


@pytest.mark.parametrize(
    "source",
    [
        [-1, 1, 0],
        [0, 0, 0],
        [0, -3, 0],
        [0, 1 << 63, 0],
        [0, 1, 63],
        [0, 1, -1],
        [1 << 41, 1, 0],
        [0.5, 1, 0],
    ],
)
def test_threat_34_sources_outside_their_range_are_refused(sealed: Sealed, source: list[Any]) -> None:
    good = msgspec.to_builtins(sealed.model.message(b"m" * 16), builtin_types=(bytes,))
    msgspec.convert(good, messages.ShareSealed)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(good | {"sources": [source]}, messages.ShareSealed)


def test_what_the_owner_knows_is_public(sealed: Sealed) -> None:
    """Nothing that the owner is given depends on the parameters."""
    other = Sealed.of(network(seed=8))
    assert other.model == sealed.model
    assert isinstance(other.model, SealedModel)
