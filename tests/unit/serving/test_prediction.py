"""Owner, three parties and users over TLS, all in this process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from fedsec.errors import (
    DeadlineError,
    FedsecError,
    InputError,
    PeerLostError,
    ProtocolError,
    ServiceEndedError,
    TrustError,
    UnsupportedModelError,
    UsageError,
)
from fedsec.nn import Network, Plan, Weights, plaintext, plan_network
from fedsec.nn.network import DenseLayer, FlattenLayer
from fedsec.ring import RING64
from fedsec.serving import asking, messages, parts
from fedsec.serving import client as client_module
from fedsec.serving import limits as limits_module
from fedsec.serving.client import Client
from fedsec.serving.limits import Limits
from fedsec.serving.owner import Owner
from fedsec.serving.weights import plan_to_wire
from fedsec.transport import Channel, Deadline, Role, call, connect
from fedsec.transport.calling import Calling

Model = tuple[Plan, Weights]
LIMITS = Limits(heartbeat_s=0.1, silence_s=20.0, part_s=30.0, setup_s=60.0)


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(count, 6, 6, 1))


@pytest.fixture
def trio(start_trio: Callable[..., Any]) -> Any:
    return start_trio()


def serve(trio: Any, model: Model, **limits: Any) -> Owner:
    owner = trio.owner()
    owner.share(*model)
    owner.serve(**limits)
    return owner


def client(trio: Any, name: str = "user") -> Client:
    return Client.connect(trio.cluster, trio.identity(name))


def channel_to(trio: Any, party: int, name: str = "user") -> Channel:
    return connect(trio.cluster.parties[party], trio.identity(name), deadline=Deadline.after(30))


def test_private_logits_are_the_plans_and_the_service_ends_exactly(trio: Any, model: Model) -> None:
    plan, weights = model
    with serve(trio, model, num_requests=4) as owner, client(trio) as user:
        asked = images(3)
        expected = plaintext.predict(plan, weights, asked)
        np.testing.assert_allclose(user.predict(asked), expected, atol=1e-2)
        np.testing.assert_allclose(user.predict(asked[0, ..., 0]), expected[:1], atol=1e-2)
        assert owner.wait(60).state == "ended"
        assert owner.status().answered == 4
        with pytest.raises(ServiceEndedError, match="has answered its 4 images"):
            user.predict(asked[:1])
    with pytest.raises(ServiceEndedError):
        client(trio)


def test_a_second_service_of_the_same_model_needs_no_second_sharing(trio: Any, model: Model) -> None:
    with serve(trio, model, num_requests=1) as owner:
        for _ in range(2):
            with client(trio) as user:
                user.predict(images(1))
            assert owner.wait(60).state == "ended"
            owner.serve(num_requests=1)
        assert owner.stop().state == "stopped"
        owner.forget()
        with pytest.raises(UsageError, match="share it with all three"):
            owner.serve()


def test_more_images_than_a_request_takes_go_out_in_several(trio: Any, model: Model) -> None:
    plan, weights = model
    with serve(trio, model), client(trio) as user:
        asked = images(130)
        np.testing.assert_allclose(user.predict(asked), plaintext.predict(plan, weights, asked), atol=1e-2)


def test_threat_33_parallel_clients_get_exactly_the_number(trio: Any, model: Model) -> None:
    with serve(trio, model, num_requests=5) as owner:
        clients = [client(trio) for _ in range(4)]

        def ask(user: Client) -> int:
            answered = 0
            try:
                for _ in range(3):
                    user.predict(images(1))
                    answered += 1
            except ServiceEndedError:
                pass
            return answered

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(ask, clients)) == 5
        assert owner.wait(60).answered == 5
        for user in clients:
            user.close()


def test_threat_33_the_quota_is_each_certificates_own(trio: Any, model: Model) -> None:
    with serve(trio, model, quota=2), client(trio) as user, client(trio, "eve") as eve:
        user.predict(images(2))
        with pytest.raises(TrustError, match="0 more images"):
            user.predict(images(1))
        with client(trio) as again, pytest.raises(TrustError):
            again.predict(images(1))
        eve.predict(images(2))


def query_to(trio: Any, party: int, name: str, query: messages.Query, body: bytes) -> FedsecError | None:
    """Send one part under one certificate, as a client of one's own would; returns the error."""
    with channel_to(trio, party, name) as channel:
        try:
            call(
                channel,
                query,
                messages.Answer,
                body=body,
                deadline=Deadline.after(60),
                max_body_bytes=1 << 16,
            )
        except FedsecError as error:
            return error
    return None


@pytest.mark.parametrize("stolen", [(0,), (1, 2), (0, 1, 2)])
def test_threat_51_parts_under_anothers_id_join_nothing(
    start_trio: Callable[..., Any], model: Model, stolen: tuple[int, ...]
) -> None:
    """Eve sends parts under the user's request id at one, two and three parties."""
    trio = start_trio(replace(LIMITS, part_s=2.0))
    with serve(trio, model) as owner, client(trio) as user:
        query = messages.Query(service=user._service, request=b"r" * 16, images=1)
        bodies = parts.split(np.zeros(36, np.uint64))
        jobs = [(party, "eve") for party in stolen] + [(party, "user") for party in range(3)]
        with ThreadPoolExecutor(6) as pool:
            errors = list(pool.map(lambda job: query_to(trio, *job, query, bodies[job[0]]), jobs))
        # The user's own request is answered; Eve's only if it is complete, as a request of her own.
        assert errors[len(stolen) :] == [None, None, None]
        if len(stolen) < 3:
            assert all(isinstance(error, DeadlineError) for error in errors[: len(stolen)])
            assert owner.status().answered == 1
        else:
            assert errors[:3] == [None, None, None]
            assert owner.status().answered == 2


def test_an_incomplete_request_names_who_has_no_part_and_costs_nothing(
    start_trio: Callable[..., Any], model: Model
) -> None:
    # Both parts have to be there together for a while, also on a busy machine.
    trio = start_trio(replace(LIMITS, part_s=4.0))
    with serve(trio, model, quota=1), client(trio) as user:
        query = messages.Query(service=user._service, request=b"r" * 16, images=1)
        bodies = parts.split(np.zeros(36, np.uint64))
        with ThreadPoolExecutor(2) as pool:
            errors = list(pool.map(lambda party: query_to(trio, party, "user", query, bodies[party]), (0, 2)))
        assert all("party-1 got no part of it" in str(error) for error in errors)
        user.predict(images(1))


def test_threat_18_a_request_id_is_good_for_one_answer(trio: Any, model: Model) -> None:
    with serve(trio, model), client(trio) as user:
        query = messages.Query(service=user._service, request=b"r" * 16, images=1)
        bodies = parts.split(np.zeros(36, np.uint64))
        for expected in (type(None), ProtocolError):
            with ThreadPoolExecutor(3) as pool:
                errors = list(
                    pool.map(lambda party: query_to(trio, party, "user", query, bodies[party]), range(3))
                )
            assert [type(error) for error in errors] == [expected] * 3


@pytest.mark.parametrize("change", [-1, 1, 8, 1 << 22])
def test_threat_34_a_part_of_another_size_costs_its_sender_only(trio: Any, model: Model, change: int) -> None:
    with serve(trio, model), client(trio) as user:
        body = parts.split(np.zeros(36, np.uint64))[1]
        wrong = body[:change] if change < 0 else body + bytes(change)
        query = messages.Query(service=user._service, request=b"r" * 16, images=1)
        assert isinstance(query_to(trio, 1, "user", query, wrong), ProtocolError)
        user.predict(images(1))


def test_threat_34_absurd_words_beside_an_honest_request(trio: Any, model: Model) -> None:
    plan, weights = model
    with serve(trio, model), client(trio) as honest, client(trio, "eve") as eve:
        stop = threading.Event()

        def flood() -> None:
            while not stop.is_set():
                eve._ask(np.full((3, 6, 6, 1), 2**62, RING64.dtype), eve._served.forms["logits"], 20)

        thread = threading.Thread(target=flood)
        thread.start()
        asked = images(2)
        for _ in range(10):
            answer = honest.predict(asked)
            np.testing.assert_allclose(answer, plaintext.predict(plan, weights, asked), atol=1e-2)
        stop.set()
        thread.join(60)


BAD_IMAGES = [
    (np.zeros((2, 5, 6, 1)), "shape"),
    (np.zeros((0, 6, 6, 1)), "shape"),
    (np.zeros((2, 6, 6, 1, 1)), "shape"),
    (np.zeros((6, 6), np.uint8), "255"),
    (np.zeros((6, 6), bool), "floating"),
    (np.full((6, 6), np.nan), "NaN"),
    (np.full((6, 6), np.inf), "infinity"),
    (np.full((6, 6), 1.01), "between 0 and 1"),
    (np.full((6, 6), -0.01), "between 0 and 1"),
    (np.array([["a"]]), "floating"),
]


def test_threat_14_what_does_not_fit_is_refused_before_a_byte_is_sent(trio: Any, model: Model) -> None:
    # One service for all: none of them gets as far as using it.
    with serve(trio, model), client(trio) as user:
        before = user.meter.sent_bytes
        for bad, text in BAD_IMAGES:
            with pytest.raises(InputError, match=text):
                user.predict(bad)
        assert user.meter.sent_bytes == before


def test_threat_32_what_the_owner_does_not_offer_is_refused_before_a_byte_is_sent(
    trio: Any, model: Model
) -> None:
    with serve(trio, model), client(trio) as user:
        before = user.meter.sent_bytes
        for reveal in ("label", "everything"):
            with pytest.raises(UsageError, match="the owner of this model allows logits"):
                user.predict(images(1), reveal=reveal)
        assert user.meter.sent_bytes == before


def test_threat_35_sizes_and_steps_are_the_same_for_any_image(trio: Any, model: Model) -> None:
    with serve(trio, model), client(trio) as user:
        sizes = []
        for values in (np.zeros((1, 6, 6, 1)), np.ones((1, 6, 6, 1)), images(1)):
            starts = [len(meter.log) for meter in trio.meters]
            user.predict(values)
            time.sleep(0.05)
            # Heartbeats, proposals and what is dealt ahead come when they come; what depends on the
            # request must not.
            sizes.append(
                [
                    sorted(
                        (record.event, record.sender, record.receiver, record.size)
                        for record in meter.log[start:]
                        if not record.label.startswith(("serve_", "deal/"))
                    )
                    for meter, start in zip(trio.meters, starts, strict=True)
                ]
            )
        assert sizes[0] == sizes[1] == sizes[2]


def test_threat_30_no_party_gets_both_of_what_another_gets(trio: Any, model: Model) -> None:
    """Each body goes to one party: what a party receives from the user is one part's size and no more."""
    with serve(trio, model), client(trio) as user:
        user.predict(images(1))
        for party, meter in enumerate(trio.meters):
            received = sum(
                record.size
                for record in meter.log
                if record.event == "receive" and record.sender == "user" and record.label == "query/request"
            )
            query = messages.Query(service=b"s" * 16, request=b"r" * 16, images=1)
            around = 8 + len(msgspec.msgpack.encode(query))
            assert received == around + parts.body_bytes(party, 36, RING64)


ROLES = [Role.PARTY, Role.HOSPITAL, Role.SERVER, Role.OWNER, Role.USER]
HOLDERS = {
    Role.PARTY: "party-1",
    Role.HOSPITAL: "hospital-00",
    Role.SERVER: "server",
    Role.OWNER: "owner",
    Role.USER: "user",
}
SAMPLES = {
    messages.ShareModel: messages.ShareModel(
        model=b"m" * 16, plan=b"{}", digest=b"d" * 32, sharing=b"h" * 16
    ),
    messages.ShareSealed: messages.ShareSealed(
        model=b"m" * 16,
        plan=b"{}",
        digest=b"d" * 32,
        session=b"t" * 16,
        number=1,
        sources=(),
        words=1,
        fraction_bits=24,
    ),
    messages.ForgetModel: messages.ForgetModel(model=b"m" * 16),
    messages.Serve: messages.Serve(service=b"s" * 16, model=b"m" * 16),
    messages.StopService: messages.StopService(),
    messages.ReadStatus: messages.ReadStatus(),
    messages.ReadCount: messages.ReadCount(service=b"s" * 16),
    messages.ReadLedger: messages.ReadLedger(),
    messages.OpenLink: messages.OpenLink(service=b"s" * 16, terms=b"t" * 32),
    messages.Describe: messages.Describe(),
    messages.Query: messages.Query(service=b"s" * 16, request=b"r" * 16, images=1),
}


def test_threat_40_every_route_refuses_every_other_role(trio: Any) -> None:
    """The matrix is made from the route table itself."""
    routes = trio.services[0].routes()
    assert {route.message for route in routes} == set(SAMPLES)
    for route in routes:
        for role in ROLES:
            if role in route.roles:
                continue
            with channel_to(trio, 0, HOLDERS[role]) as channel, pytest.raises(TrustError, match="is for"):
                call(channel, SAMPLES[route.message], msgspec.Raw, deadline=Deadline.after(30))  # type: ignore[type-var]


def test_a_link_is_taken_from_the_previous_party_only(trio: Any) -> None:
    with channel_to(trio, 0, "party-1") as channel, pytest.raises(TrustError, match="from party-2"):
        call(channel, SAMPLES[messages.OpenLink], messages.LinkOpened, deadline=Deadline.after(30))


def test_serving_needs_the_model_at_all_three_parties(trio: Any, model: Model) -> None:
    with trio.owner() as owner:
        with pytest.raises(UsageError, match="share a model first"):
            owner.serve()
        owner.share(*model)
        with pytest.raises(UsageError, match="at least 1"):
            owner.serve(num_requests=0)
        trio.services[1]._shelf.drop(trio.services[1]._shelf.ids()[0])
        with pytest.raises(UsageError, match="party-1 holds no part"):
            owner.serve()


@pytest.mark.parametrize(
    "other",
    [
        {"num_requests": 4},
        {"answered": 1},
        {"quota": 9},
        {"mode": "plain"},
        {"reveals": ("logits", "label")},
        {"reveals": ("label",)},
    ],
    ids=str,
)
def test_parties_that_were_told_other_terms_do_not_start(
    trio: Any, model: Model, other: dict[str, Any]
) -> None:
    with trio.owner() as owner:
        terms: dict[str, Any] = {"service": b"s" * 16, "model": owner.share(*model), "num_requests": 3}
        told = [messages.Serve(**terms), messages.Serve(**terms), messages.Serve(**(terms | other))]

        def start(party: int) -> FedsecError | None:
            with channel_to(trio, party, "owner") as channel:
                try:
                    call(channel, told[party], messages.Status, deadline=Deadline.after(30))
                except FedsecError as error:
                    return error
            return None

        with ThreadPoolExecutor(3) as pool:
            errors = list(pool.map(start, range(3)))
        assert all(errors)
        assert any("other terms" in str(error) for error in errors)


def test_a_client_refuses_parties_that_describe_different_models(trio: Any, model: Model) -> None:
    with serve(trio, model):
        held = trio.services[2]._service.held
        trio.services[2]._service.held = replace(held, model=b"x" * 16)
        with pytest.raises(ProtocolError, match="party-2 describes another model"):
            client(trio)


def test_a_party_that_ends_its_server_ends_the_service_by_name(trio: Any, model: Model) -> None:
    with serve(trio, model) as owner:
        trio.services[1].stop()
        with pytest.raises(ServiceEndedError, match="stopped by party-1"):
            client(trio)
        assert "party-1" in owner.status().text


def test_a_lost_party_ends_the_service_and_waiting_users_learn_its_name(trio: Any, model: Model) -> None:
    with serve(trio, model) as owner:
        trio.servers[2].stop()
        trio.services[2]._service.break_off()
        with pytest.raises(PeerLostError, match="party-2"):
            owner.wait(60)
        error = query_to(trio, 0, "user", SAMPLES[messages.Query], bytes(64))
        assert isinstance(error, PeerLostError)
        assert "party-2" in str(error)


def test_threat_37_a_model_that_is_too_large_is_refused_before_its_body(
    start_trio: Callable[..., Any], model: Model
) -> None:
    trio = start_trio(replace(LIMITS, model_bytes=100))
    with trio.owner() as owner, pytest.raises(UsageError, match="may have 100 bytes"):
        owner.share(*model)


def test_shelves_are_bounded(start_trio: Callable[..., Any], model: Model) -> None:
    trio = start_trio(replace(LIMITS, models=1))
    with trio.owner() as owner:
        owner.share(*model)
        with pytest.raises(UsageError, match="the most there may be"):
            owner.share(*model)


def test_a_model_that_is_being_served_is_not_forgotten(trio: Any, model: Model) -> None:
    with serve(trio, model) as owner, client(trio) as user:
        with pytest.raises(UsageError, match="being served"):
            owner.forget()
        assert all(service._shelf.ids() for service in trio.services)
        user.predict(images(1))


def test_threat_39_a_link_under_another_key_is_refused(trio: Any) -> None:
    """Also if it has the right name: only a test gets that far, since the server pins keys too."""
    with channel_to(trio, 0, "party-2") as channel:
        peer = replace(channel.peer, name="party-2", public_key=bytes(32))
    request = SimpleNamespace(message=SAMPLES[messages.OpenLink], peer=peer, detach=pytest.fail)
    with pytest.raises(TrustError, match="expected a link from party-2"):
        trio.services[0]._neighbours.open_link(request)


@pytest.mark.parametrize("change", [{"request": b"x" * 16}, {"images": 2}, {"fraction_bits": 1}])
@pytest.mark.parametrize("party", [0, 1, 2])
def test_a_client_throws_away_an_answer_to_something_else(
    trio: Any, model: Model, monkeypatch: pytest.MonkeyPatch, party: int, change: dict[str, Any]
) -> None:
    ask_each = asking.ask_each

    def lie(*arguments: Any) -> Any:
        replies = ask_each(*arguments)
        answer, body = replies[party]
        replies[party] = (msgspec.structs.replace(answer, **change), body)
        return replies

    with serve(trio, model), client(trio) as user:
        monkeypatch.setattr(client_module, "ask_each", lie)
        with pytest.raises(ProtocolError, match=f"party-{party} answered another"):
            user.predict(images(1))


@pytest.mark.parametrize(
    "change",
    [
        {"service": b"x" * 16},
        {"model": b"x" * 16},
        {"plan": b"{}"},
        {"digest": b"x" * 32},
        {"mode": "plain"},
        {"reveals": ("label",)},
    ],
)
@pytest.mark.parametrize("party", [1, 2])
def test_a_client_goes_on_only_if_all_three_describe_the_same(
    model: Model, party: int, change: dict[str, Any]
) -> None:
    text, digest = plan_to_wire(model[0])
    told = [messages.Description(service=b"s" * 16, model=b"m" * 16, plan=text, digest=digest)] * 3
    client_module._check_same(told, ("a", "b", "c"))
    told[party] = msgspec.structs.replace(told[party], **change)
    with pytest.raises(ProtocolError, match=f"{'abc'[party]} describes another model or service than a"):
        client_module._check_same(told, ("a", "b", "c"))


def test_the_plans_largest_step_bounds_batches_and_requests(
    trio: Any, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, weights = model
    monkeypatch.setattr(limits_module, "BATCH_ELEMENTS", 4 * plan.largest_array + 1)
    with serve(trio, model) as owner, client(trio) as user:
        assert [service._service._limits.batch_images for service in trio.services] == [4, 4, 4]
        np.testing.assert_allclose(
            user.predict(images(10)), plaintext.predict(plan, weights, images(10)), atol=1e-2
        )
        assert owner.status().answered == 10
        too_many = messages.Query(service=user._service, request=b"r" * 16, images=5)
        error = query_to(trio, 0, "user", too_many, parts.split(np.zeros(5 * 36, np.uint64))[0])
        assert isinstance(error, UsageError)
        assert "may have 4 images" in str(error)


def test_an_image_that_exceeds_a_batch_is_computed_alone(model: Model) -> None:
    class Large:
        largest_array = 1 << 24

        def with_head(self, _reveal: str, _epsilon: float | None = None) -> Large:
            return self

    assert limits_module.most_images(Large()) == 1  # type: ignore[arg-type]
    assert limits_module.most_images(model[0]) == messages.MAX_IMAGES


def test_threat_37_one_certificate_cannot_fill_the_waiting_room(
    start_trio: Callable[..., Any], model: Model
) -> None:
    """As in the attack: 16 requests of 128 images, of which party 0 alone gets its 64 bytes each."""
    trio = start_trio(replace(LIMITS, part_s=2.0))
    with serve(trio, model), client(trio) as honest:
        queries = [
            messages.Query(service=honest._service, request=bytes([n]) * 16, images=128) for n in range(16)
        ]
        with ThreadPoolExecutor(16) as pool:
            held = [pool.submit(query_to, trio, 0, "eve", query, bytes(64)) for query in queries]
            while sum(wish.images for wish in trio.services[0]._service.room.held().values()) < 256:
                time.sleep(0.01)
            honest.predict(images(1))
            errors = [one.result() for one in held]
    assert sum(isinstance(error, DeadlineError) for error in errors) >= 2
    assert any("too much waits here" in str(error) for error in errors)


@pytest.mark.parametrize("party", range(3))
def test_threat_37_users_that_hang_up_leave_no_request_behind(
    start_trio: Callable[..., Any], model: Model, party: int
) -> None:
    """Parts for one party alone, on connections that its compute thread looks after, which end at once."""
    trio = start_trio(replace(LIMITS, part_s=2.0))
    with serve(trio, model, quota=20) as owner, client(trio) as honest:
        room, bodies = trio.services[party]._service.room, parts.split(np.zeros(36, np.uint64))
        for _ in range(4):
            with client(trio, "eve") as eve:
                eve.predict(images(1))
                channel = eve._served.channels[party]
                query = messages.Query(service=eve._service, request=os.urandom(16), images=1)
                Calling(channel, query, messages.Answer, body=bodies[party], deadline=Deadline.after(30))
                waits = Deadline.after(30)
                while not room.occupied:
                    waits.remaining("the part")
        honest.predict(images(1))
        gone = Deadline.after(30)
        while room.occupied:
            time.sleep(0.01)
            gone.remaining("the end of what was left behind")
        # Nothing of it was charged.
        assert [service._service.book.left_for(_fingerprint(trio, "eve")) for service in trio.services] == [
            16
        ] * 3
        assert owner.status().answered == 5


def _fingerprint(trio: Any, name: str) -> bytes:
    return bytes.fromhex(trio.identity(name).fingerprint)


def test_a_request_that_is_never_decided_is_answered_with_an_error(
    start_trio: Callable[..., Any], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    trio = start_trio(replace(LIMITS, part_s=0.1, answer_s=0.1))
    with serve(trio, model), client(trio) as user:
        # As if the compute thread had reserved it for ever.
        monkeypatch.setattr(trio.services[0]._service.room, "withdraw", lambda *_: None)
        query = messages.Query(service=user._service, request=b"r" * 16, images=1)
        error = query_to(trio, 0, "user", query, parts.split(np.zeros(36, np.uint64))[0])
        assert isinstance(error, DeadlineError)
        assert "of its computation" in str(error)


def test_an_error_while_looking_for_the_culprit_still_closes_the_service(
    trio: Any, model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> FedsecError:
        raise ValueError("canary")

    monkeypatch.setattr(trio.services[0]._neighbours, "explain", broken)
    with serve(trio, model), client(trio):
        service = trio.services[0]._service
        trio.services[2]._service.break_off()
        assert service.await_end(60)
        assert service.status(()).state == "failed"
        with pytest.raises(FedsecError, match="internal error"):
            service.room.check_open()
    assert "canary" not in caplog.text


def test_threat_32_what_the_owner_does_not_allow_is_refused_before_the_part_is_read(
    trio: Any, model: Model
) -> None:
    with serve(trio, model) as owner, client(trio) as user:
        for party in range(3):
            query = messages.Query(service=user._service, request=b"r" * 16, images=1, reveal="label")
            # The body is announced with a size that no part has: it is not even looked at.
            error = query_to(trio, party, "user", query, b"")
            assert isinstance(error, TrustError)
            assert "the owner allows logits" in str(error)
        assert owner.status().answered == 0


def test_the_ledger_names_the_certificate_and_is_for_the_owner(trio: Any, model: Model) -> None:
    with serve(trio, model) as owner, client(trio, "eve") as user:
        user.predict(images(2))
        service = owner.status().service
        for party in range(3):
            with channel_to(trio, party, "owner") as channel:
                page, _ = call(
                    channel, messages.ReadLedger(), messages.LedgerPage, deadline=Deadline.after(30)
                )
                assert [(one.name, one.images, one.reveal) for one in page.queries] == [("eve", 2, "logits")]
                told, _ = call(
                    channel,
                    messages.ReadCount(service=service),
                    messages.ServiceCount,
                    deadline=Deadline.after(30),
                )
                assert (told.known, told.answered) == (True, 2)
                other = messages.ReadCount(service=b"o" * 16)
                assert not call(channel, other, messages.ServiceCount, deadline=Deadline.after(30))[0].known


def test_stopping_answers_what_was_accepted_and_refuses_what_is_new(
    start_trio: Callable[..., Any], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, weights = model
    trio = start_trio(replace(LIMITS, drain_s=30.0, step_s=60.0))
    with serve(trio, model) as owner, client(trio) as user, client(trio, "eve") as late:
        running = [service._service for service in trio.services]
        let_go = threading.Event()
        for service in running:
            # All three: who computes with what was dealt does not wait for the dealer.
            charge = service.book.charge
            slow = lambda batch, charge=charge: (let_go.wait(60), charge(batch))  # noqa: E731
            monkeypatch.setattr(service.book, "charge", slow)
        with ThreadPoolExecutor(2) as pool:
            accepted = pool.submit(user.predict, images(1))
            while [service.room.occupied for service in running] != [1, 1, 1]:
                time.sleep(0.01)
            stopped = pool.submit(owner.stop)
            while any(service.room._ending is None for service in running):
                time.sleep(0.01)
            with pytest.raises(ServiceEndedError, match="being stopped by its owner"):
                late.predict(images(1))
            let_go.set()
            expected = plaintext.predict(plan, weights, images(1))
            np.testing.assert_allclose(accepted.result(60), expected, atol=1e-2)
            last = stopped.result(60)
        assert (last.state, last.by_owner, last.answered) == ("stopped", True, 1)


def test_a_request_that_cannot_be_answered_delays_the_end_by_a_limit_only(
    start_trio: Callable[..., Any], model: Model
) -> None:
    trio = start_trio(replace(LIMITS, part_s=20.0, drain_s=0.2))
    with serve(trio, model) as owner, client(trio) as user:
        bodies = parts.split(np.zeros(36, np.uint64))
        query = messages.Query(service=user._service, request=b"r" * 16, images=1)
        with ThreadPoolExecutor(1) as pool:
            alone = pool.submit(query_to, trio, 0, "user", query, bodies[0])
            while trio.services[0]._service.room.occupied != 1:
                time.sleep(0.01)
            began = time.monotonic()
            assert owner.stop().state == "stopped"
            assert time.monotonic() - began < 15
            assert isinstance(alone.result(30), ServiceEndedError)


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"reveals": ("everything",)}, "reveal: expected logits, probabilities, label, top3, got everything"),
        ({"reveals": ()}, "got none"),
        ({"mode": "fast"}, "mode: expected dealt, plain, got fast"),
        ({"quota": 0}, "quota: expected at least 1"),
    ],
)
def test_what_no_party_knows_is_refused_before_it_is_asked(
    trio: Any, model: Model, asked: dict[str, Any], text: str
) -> None:
    with trio.owner() as owner:
        owner.share(*model)
        with pytest.raises(UsageError, match=text):
            owner.serve(**asked)
        assert owner.status().state == "idle"


def test_what_is_allowed_is_told_in_one_order_and_once(trio: Any, model: Model) -> None:
    with serve(trio, model, reveals=("label", "logits", "label")) as owner, client(trio) as user:
        assert owner.status().reveals == user.reveals == ("logits", "label")
        assert user.predict(images(1), "label").shape == (1,)


def test_a_model_without_classes_has_no_label(trio: Any) -> None:
    one = Network("one", (6, 6, 1), (FlattenLayer("f"), DenseLayer("d", np.ones((36, 1)), np.zeros(1))))
    with trio.owner() as owner:
        owner.share(*plan_network(one))
        with pytest.raises(UnsupportedModelError, match="label"):
            owner.serve(reveals=("label",))
        assert owner.serve(reveals=("logits",)).state == "serving"


@pytest.mark.parametrize("mode", ["dealt", "plain"])
def test_the_status_tells_how_the_service_is(trio: Any, model: Model, mode: Any) -> None:
    with serve(trio, model, mode=mode, num_requests=5, quota=4) as owner, client(trio) as user:
        user.predict(images(2))
        # All three: they prepare in step, and each says what it has when it is asked.
        deadline = Deadline.after(60)
        while mode == "dealt" and any(status.prepared == 0 for status in owner.statuses()):
            deadline.remaining("what is prepared")
            time.sleep(0.01)
        for status in owner.statuses():
            assert (status.state, status.mode, status.reveals) == ("serving", mode, ("logits",))
            assert (status.num_requests, status.quota, status.answered, status.waiting) == (5, 4, 2, 0)
            assert (status.prepared > 0) == (mode == "dealt")
            assert status.since is not None
            assert 0 <= time.time() - status.since < 60
        owner.stop()
        assert [status.prepared for status in owner.statuses()] == [0, 0, 0]
        assert all(service._service._engine is None for service in trio.services)
