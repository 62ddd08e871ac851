"""Requests over channels in memory; the same over TLS is in tests/processes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest

from fedsec.errors import DataError, FedsecError, PeerLostError, ProtocolError, TrustError, UsageError
from fedsec.transport import (
    Call,
    Channel,
    Deadline,
    ErrorReply,
    Limits,
    MemoryChannel,
    Meter,
    Reply,
    Role,
    Route,
    call,
    memory_mesh,
    meter_route,
    read_meter,
    serve_channel,
)
from fedsec.transport.bodies import CHUNK_BYTES, UNASKED_BYTES
from fedsec.transport.server import Occupation


class Ask(msgspec.Struct, tag="ask"):
    number: int


class Told(msgspec.Struct, tag="told"):
    number: int


class Other(msgspec.Struct, tag="other"):
    text: str


class Take(msgspec.Struct, tag="take"):
    pass


def _soon() -> Deadline:
    return Deadline.after(30.0)


Connect = Callable[..., MemoryChannel]


@pytest.fixture
def served() -> Iterator[Connect]:
    threads: list[threading.Thread] = []
    channels: list[MemoryChannel] = []

    def start(*routes: Route, role: Role = Role.HOSPITAL) -> MemoryChannel:
        mesh = memory_mesh(["party-0", "h"], roles={"h": role})
        limits = Limits(idle_s=60, request_s=30)
        thread = threading.Thread(target=serve_channel, args=(mesh["party-0", "h"], routes, limits))
        thread.start()
        threads.append(thread)
        channels.append(mesh["h", "party-0"])
        return mesh["h", "party-0"]

    yield start
    for channel in channels:
        channel.close()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def _echo(request: Call) -> Reply:
    return Reply(Told(request.message.number + 1), request.body.read())


ECHO = Route(Ask, frozenset({Role.HOSPITAL}), _echo, max_body_bytes=3 * CHUNK_BYTES)


@pytest.mark.parametrize(
    "size", [0, 1, UNASKED_BYTES, UNASKED_BYTES + 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES]
)
def test_a_request_with_a_body_is_answered(served: Connect, size: int) -> None:
    channel = served(ECHO)
    body = bytes(i % 251 for i in range(size))
    for _ in range(2):
        told, back = call(channel, Ask(41), Told, body=body, deadline=_soon(), max_body_bytes=size)
        assert told == Told(42)
        assert bytes(back) == body


def test_bytes_are_counted_under_the_tag_of_the_request(served: Connect) -> None:
    channel = served(ECHO)
    call(channel, Ask(1), Told, body=b"12345", deadline=_soon(), max_body_bytes=5)
    assert set(channel.meter.by_label()) == {"ask"}


def test_a_body_can_be_read_in_bounded_pieces(served: Connect) -> None:
    sizes: list[int] = []

    def stream(request: Call) -> Reply:
        sizes.extend(len(chunk) for chunk in request.body.chunks(1000))
        return Reply(Told(request.body.size))

    channel = served(Route(Ask, frozenset({Role.HOSPITAL}), stream, max_body_bytes=10**6))
    told, _ = call(channel, Ask(0), Told, body=bytes(300_000), deadline=_soon())
    assert told.number == sum(sizes) == 300_000
    assert max(sizes) == 1000


@pytest.mark.parametrize("size", [0, 10, UNASKED_BYTES + 1])
@pytest.mark.parametrize("role", [role for role in Role if role is not Role.HOSPITAL])
def test_threat_40_another_role_is_refused_before_its_body_is_read(
    served: Connect, role: Role, size: int
) -> None:
    calls: list[Call] = []

    def never(request: Call) -> Reply:
        calls.append(request)
        return Reply(Told(0))

    open_to_all = Route(Other, frozenset(Role), lambda _request: Reply(Told(7)))
    channel = served(Route(Ask, frozenset({Role.HOSPITAL}), never, 10**9), open_to_all, role=role)
    with pytest.raises(TrustError, match=f"ask is for hospital, not for {role} h"):
        call(channel, Ask(1), Told, body=bytes(size), deadline=_soon())
    assert calls == []
    # The connection stays in step.
    assert call(channel, Other("x"), Told, deadline=_soon())[0] == Told(7)
    # A long body was not even sent.
    assert channel.meter.sent_bytes < UNASKED_BYTES


@pytest.mark.parametrize("size", [11, UNASKED_BYTES + 1, 10**7])
def test_threat_37_too_long_a_body_is_refused_by_its_announced_size(served: Connect, size: int) -> None:
    limit = Route(Ask, frozenset({Role.HOSPITAL}), _echo, max_body_bytes=lambda message: message.number)
    channel = served(limit)
    with pytest.raises(ProtocolError, match=f"party-0: expected at most 10 bytes with ask, got {size}"):
        call(channel, Ask(10), Told, body=bytes(size), deadline=_soon())
    assert call(channel, Ask(10), Told, body=bytes(10), deadline=_soon(), max_body_bytes=10)[0] == Told(11)


def test_an_error_in_a_handler_reaches_the_caller_in_its_class(served: Connect) -> None:
    def fail(request: Call) -> Reply:
        raise DataError(f"no such data: {request.message.number}")

    channel = served(Route(Ask, frozenset({Role.HOSPITAL}), fail, 10**6), Route(Other, frozenset(Role), fail))
    # The unread body does not put the connection out of step.
    for size in (0, 100, 10**6):
        with pytest.raises(DataError, match="party-0: no such data: 3"):
            call(channel, Ask(3), Told, body=bytes(size), deadline=_soon())


def test_threat_45_an_unexpected_error_keeps_its_text_to_itself(
    served: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(request: Call) -> Reply:
        raise ValueError("secret canary 1234")

    channel = served(Route(Ask, frozenset({Role.HOSPITAL}), fail))
    with pytest.raises(FedsecError, match="internal error") as caught:
        call(channel, Ask(3), Told, deadline=_soon())
    assert type(caught.value) is FedsecError
    assert "canary" not in str(caught.value)
    assert "canary" not in caplog.text
    assert "ValueError" in caplog.text


def test_a_handler_without_an_answer_is_an_internal_error(served: Connect) -> None:
    channel = served(Route(Ask, frozenset({Role.HOSPITAL}), lambda _request: None))
    with pytest.raises(FedsecError, match="internal error"):
        call(channel, Ask(3), Told, deadline=_soon())


def test_a_message_of_another_shape_is_refused_and_costs_one_request(served: Connect) -> None:
    class Wrong(msgspec.Struct, tag="ask"):
        number: str

    channel = served(ECHO)
    with pytest.raises(ProtocolError, match="expected a Ask"):
        call(channel, Wrong("canary"), Told, deadline=_soon())
    assert call(channel, Ask(1), Told, deadline=_soon())[0] == Told(2)


def test_an_unknown_request_ends_the_connection(served: Connect) -> None:
    channel = served(ECHO)
    with pytest.raises(PeerLostError):
        call(channel, Other("x"), Told, deadline=_soon())


def test_an_answer_of_another_kind_or_with_too_long_a_body_closes_the_channel(served: Connect) -> None:
    channel = served(ECHO)
    with pytest.raises(ProtocolError, match="expected a Other"):
        call(channel, Ask(1), Other, deadline=_soon())
    with pytest.raises(PeerLostError):
        call(channel, Ask(1), Told, deadline=_soon())
    channel = served(ECHO)
    with pytest.raises(ProtocolError, match="at most 4 bytes with the answer"):
        call(channel, Ask(1), Told, body=b"12345", deadline=_soon(), max_body_bytes=4)


def test_an_error_code_that_nobody_knows_is_the_root_of_the_tree(served: Connect) -> None:
    mesh = memory_mesh(["party-0", "h"])

    def answer() -> None:
        mesh["party-0", "h"].receive("ask/request", max_bytes=100, deadline=_soon())
        payload = b"\1" + bytes(8) + msgspec.msgpack.encode(ErrorReply("new", "text"))
        mesh["party-0", "h"].send("ask/reply", payload, _soon())

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(FedsecError, match="party-0: text"):
        call(mesh["h", "party-0"], Ask(1), Told, deadline=_soon())
    thread.join()


def test_a_handler_can_take_the_connection_over(served: Connect) -> None:
    taken: queue.SimpleQueue[Channel] = queue.SimpleQueue()

    def take(request: Call) -> None:
        taken.put(request.detach(Told(5)))

    channel = served(Route(Take, frozenset({Role.HOSPITAL}), take))
    assert call(channel, Take(), Told, deadline=_soon())[0] == Told(5)
    channel.send("mpc/1", b"share", _soon())
    assert taken.get(timeout=30).receive("mpc/1", max_bytes=5, deadline=_soon()) == b"share"


def test_a_route_can_have_its_own_time(served: Connect) -> None:
    seen: list[float] = []

    def look(request: Call) -> Reply:
        seen.append(request.deadline.seconds)
        return Reply(Told(0))

    roles = frozenset({Role.HOSPITAL})
    channel = served(Route(Ask, roles, look, seconds=77.0), Route(Other, roles, look))
    call(channel, Ask(1), Told, deadline=_soon())
    call(channel, Other("x"), Told, deadline=_soon())
    assert seen == [77.0, 30.0]


def test_a_meter_is_read_by_server_and_owner_only(served: Connect) -> None:
    meter = Meter()
    meter.sent("party-0", "h", "upload/body", 0, 10)
    reading = read_meter(served(meter_route(meter), role=Role.OWNER), _soon())
    assert (reading.sent_bytes, reading.by_label) == (10, {"upload": (1, 10, 0, 0)})
    assert reading.by_peer == {"h": (1, 10, 0, 0)}
    # The Flower server may not be trusted with who asks for predictions.
    reading = read_meter(served(meter_route(meter), role=Role.SERVER), _soon())
    assert (reading.sent_bytes, reading.by_peer) == (10, {})
    with pytest.raises(TrustError):
        read_meter(served(meter_route(meter), role=Role.USER), _soon())


def test_a_message_class_needs_a_tag() -> None:
    class Bare(msgspec.Struct):
        pass

    with pytest.raises(TypeError, match="needs a text tag"):
        _ = Route(Bare, frozenset(), _echo).tag


def test_a_peer_that_sends_more_than_it_announced_is_cut_off(served: Connect) -> None:
    channel = served(ECHO)
    channel.send("ask/request", (5).to_bytes(8, "big") + msgspec.msgpack.encode(Ask(1)), _soon())
    channel.send("ask/body", b"123456", _soon())
    with pytest.raises(PeerLostError):
        channel.receive("ask/reply", max_bytes=100, deadline=_soon())


@pytest.mark.parametrize("payload", [b"", b"1234567"])
def test_a_request_without_a_size_is_cut_off(served: Connect, payload: bytes) -> None:
    channel = served(ECHO)
    channel.send("ask/request", payload, _soon())
    with pytest.raises(PeerLostError):
        channel.receive("ask/reply", max_bytes=100, deadline=_soon())


def test_usage_errors_travel_with_their_narrow_class(served: Connect) -> None:
    def fail(_request: Call) -> Reply:
        raise UsageError("no")

    channel = served(Route(Ask, frozenset({Role.HOSPITAL}), fail))
    with pytest.raises(UsageError, match="party-0: no"):
        call(channel, Ask(1), Told, deadline=_soon())


@pytest.mark.parametrize("message", [b"\x81\xab" + bytes(10) + b"\x80", b"\x81\xa1x" + b"\x91" * 100_000])
def test_threat_38_what_msgspec_does_not_wrap_costs_one_request(served: Connect, message: bytes) -> None:
    """A key that is no UTF-8, and deep nesting: the sender is told, and the connection stays usable."""
    channel = served(ECHO)
    channel.send("ask/request", bytes(8) + message, _soon())
    reply = channel.receive("ask/reply", max_bytes=10_000, deadline=_soon())
    assert b"expected a Ask" in reply
    assert call(channel, Ask(1), Told, deadline=_soon())[0] == Told(2)


def _frame(size: int, rest: bytes) -> bytes:
    return size.to_bytes(8, "big") + rest


def test_a_short_body_travels_in_the_frame_of_its_message(served: Connect) -> None:
    channel = served(ECHO)
    before = channel.meter.messages
    call(channel, Ask(1), Told, body=bytes(UNASKED_BYTES), deadline=_soon(), max_body_bytes=UNASKED_BYTES)
    assert channel.meter.messages - before == 2


def test_a_short_body_may_follow_in_frames_of_its_own(served: Connect) -> None:
    channel = served(ECHO)
    channel.send("ask/request", _frame(5, msgspec.msgpack.encode(Ask(1))), _soon())
    channel.send("ask/body", b"123", _soon())
    channel.send("ask/body", b"45", _soon())
    assert channel.receive("ask/reply", max_bytes=100, deadline=_soon()).endswith(b"12345")


@pytest.mark.parametrize("size", [30, 10**6, 2**62])
def test_threat_37_a_body_that_is_said_to_be_inside_and_is_not_ends_the_connection(
    served: Connect, size: int
) -> None:
    channel = served(ECHO)
    channel.send("ask/request", _frame(1 << 63 | size, msgspec.msgpack.encode(Ask(1))), _soon())
    with pytest.raises(PeerLostError):
        channel.receive("ask/reply", max_bytes=100, deadline=_soon())


def test_threat_37_a_long_body_inside_a_frame_is_measured_like_any_other(served: Connect) -> None:
    channel = served(Route(Ask, frozenset({Role.HOSPITAL}), _echo, max_body_bytes=10))
    inside = _frame(1 << 63 | 100_000, msgspec.msgpack.encode(Ask(1)) + bytes(100_000))
    channel.send("ask/request", inside, _soon())
    assert b"at most 10 bytes" in channel.receive("ask/reply", max_bytes=1000, deadline=_soon())
    assert call(channel, Ask(1), Told, deadline=_soon())[0] == Told(2)


def test_a_connection_that_is_to_end_sends_the_answer_it_is_busy_with() -> None:
    mesh = memory_mesh(["party-0", "h"], roles={"h": Role.HOSPITAL})
    occupation, go_on = Occupation(), threading.Event()

    def slow(request: Call) -> Reply:
        go_on.wait(30)
        return Reply(Told(7))

    routes = [Route(Ask, frozenset({Role.HOSPITAL}), slow)]
    limits = Limits(idle_s=60, request_s=30)
    server = threading.Thread(target=serve_channel, args=(mesh["party-0", "h"], routes, limits, occupation))
    server.start()
    mesh["h", "party-0"].send("ask/request", _frame(0, msgspec.msgpack.encode(Ask(1))), _soon())
    while not occupation.busy:
        time.sleep(0.005)
    occupation.ending = True
    go_on.set()
    assert mesh["h", "party-0"].receive("ask/reply", max_bytes=100, deadline=_soon())[0] == 0
    server.join(60)
    assert not server.is_alive()
