"""Three serving loops in one process over pairs of sockets: agreement, charges, answers, ends."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path

import msgspec
import numpy as np
import pytest

from fedsec.errors import DeadlineError, FedsecError, PeerLostError, ProtocolError, ServiceEndedError
from fedsec.nn import Reveal
from fedsec.nn.engine import Mode
from fedsec.ring import RING64, RingArray
from fedsec.serving import parts
from fedsec.serving.agreement import Ballot, Proposal, RequestKey
from fedsec.serving.ledger import Ledger, ServiceBook
from fedsec.serving.limits import Limits
from fedsec.serving.loop import ServiceLoop
from fedsec.serving.messages import Entry, Query
from fedsec.serving.stock import BUSY, MOST_IMAGES, PORTION_S, STOCK_IMAGES, Stock
from fedsec.serving.table import Table
from fedsec.serving.waiting import Ticket, WaitingRoom
from fedsec.sharing.replicated import RepShare
from fedsec.transport import Channel, Deadline, Peer, Role, Route, SocketChannel
from fedsec.transport.hosting import Guests

NAMES = ("alice", "bob", "carol")
LIMITS = Limits(heartbeat_s=0.05, silence_s=20.0)
USER = b"u" * 32


def double(x: RepShare) -> RingArray:
    """The tiny model: twice the image, without any message."""
    return (x.own * np.uint64(2)).reshape(len(x.own), -1)


Compute = Callable[[RepShare], RingArray]


def at_once() -> None:
    """A portion that takes no time."""


class TinyEngine:
    """Takes what is prepared, as a dealt one would, and notes the order of all calls."""

    mode: Mode = "dealt"
    reads_inputs = True

    def __init__(
        self, compute: Compute, calls: list[tuple[str, int, Reveal]], portion: Callable[[], None]
    ) -> None:
        self.calls = calls
        self.stock: dict[Reveal, int] = {}
        self._compute = compute
        self._portion = portion

    def image_bytes(self, reveal: Reveal) -> int:
        return 1 << 16

    def ready(self, reveal: Reveal) -> int:
        return self.stock.get(reveal, 0)

    def prepare(self, images: int, reveal: Reveal) -> None:
        self.calls.append(("prepare", images, reveal))
        self._portion()
        self.stock[reveal] = self.ready(reveal) + images

    def predict(self, x: RepShare, reveal: Reveal) -> RingArray:
        self.calls.append(("predict", len(x.own), reveal))
        self.stock[reveal] = max(0, self.ready(reveal) - len(x.own))
        return self._compute(x)


NO_ROUTE = Route(Query, frozenset(), lambda _call: None)
"""Requests come into the room without any connection here."""


def links_between(names: tuple[str, ...]) -> dict[tuple[str, str], SocketChannel]:
    links = {}
    for one, other in combinations(names, 2):
        for end, name, peer in zip(socket.socketpair(), (one, other), (other, one), strict=True):
            known = Peer(peer, Role.PARTY, peer.encode().ljust(32), peer.encode().ljust(32).hex())
            links[name, peer] = SocketChannel(end, name, known)
    return links


@dataclass
class Seat:
    """One party of the test."""

    links: tuple[Channel, Channel]
    engine: TinyEngine
    book: ServiceBook
    room: WaitingRoom
    leaving: threading.Event
    loop: ServiceLoop
    outcome: list[object] = field(default_factory=list)
    thread: threading.Thread | None = None

    def run(self) -> None:
        try:
            self.outcome.append(self.loop.run())
            self.room.close(ServiceEndedError("ended"))
        except FedsecError as error:
            self.outcome.append(error)
            self.room.close(error)
        for link in self.links:
            link.close()


Start = Callable[..., list[Seat]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    seats: list[Seat] = []

    def make(
        *,
        num_requests: int | None = None,
        quota: int | None = None,
        compute: Compute | dict[int, Compute] = double,
        run: tuple[int, ...] = (0, 1, 2),
        limits: Limits = LIMITS,
        portion: Callable[[], None] = at_once,
        reveals: tuple[Reveal, ...] = ("logits", "label"),
        mode: Mode = "dealt",
    ) -> list[Seat]:
        mesh = links_between(NAMES)
        for me in range(3):
            following, previous = (me + 1) % 3, (me - 1) % 3
            links = mesh[NAMES[me], NAMES[previous]], mesh[NAMES[me], NAMES[following]]
            computed = compute if callable(compute) else compute.get(me, double)
            engine = TinyEngine(computed, [], portion)
            engine.mode = mode
            ledger = Ledger(tmp_path / NAMES[me])
            book = ledger.open_service(b"s" * 16, b"m" * 16, num_requests=num_requests, quota=quota)
            room, leaving = (
                WaitingRoom(max_images=1000, max_per_user=100, max_images_per_user=1000, longest_s=60),
                threading.Event(),
            )
            loop = ServiceLoop(
                Table(me, *links, limits.silence_s),
                engine,
                Stock(engine, reveals),
                book=book,
                room=room,
                guests=Guests(NO_ROUTE, lambda _guest, _call: None, room.bell, 1.0),
                input_shape=(2, 2),
                fraction_bits=0,
                limits=limits,
                leaving=leaving,
            )
            seats.append(Seat(links, engine, book, room, leaving, loop))
        for me in run:
            seats[me].thread = threading.Thread(target=seats[me].run, daemon=True)
            seats[me].thread.start()
        return seats

    yield make
    for seat in seats:
        for link in seat.links:
            link.close()
        if seat.thread is not None:
            seat.thread.join(60)
            assert not seat.thread.is_alive()


def key(number: int, user: bytes = USER) -> RequestKey:
    return RequestKey(user, number.to_bytes(16, "big"))


def images(count: int, seed: int = 1) -> np.ndarray:
    return np.arange(seed, seed + count * 4, dtype=np.uint64) * np.uint64(2**40 + 7)


def ask(
    seats: list[Seat],
    number: int,
    secret: np.ndarray,
    *,
    user: bytes = USER,
    parties: tuple[int, ...] = (1, 2, 0),
    reveal: Reveal = "logits",
) -> list[Ticket]:
    bodies = parts.split(secret)
    tickets = {}
    for me in parties:
        read = partial(parts.join, me, bodies[me], secret.size, RING64)
        tickets[me] = seats[me].room.admit(key(number, user), secret.size // 4, reveal, read)
    return [tickets[me] for me in sorted(tickets)]


def answer(tickets: list[Ticket]) -> np.ndarray:
    total = np.zeros(1, np.uint64)
    for ticket in tickets:
        assert ticket.done.wait(60)
        total = total + np.frombuffer(ticket.outcome(), np.uint64)
    return total


def ends(seats: list[Seat]) -> list[object]:
    for seat in seats:
        if seat.thread is not None:
            seat.thread.join(60)
    return [seat.outcome[0] if seat.outcome else None for seat in seats]


def test_answers_reach_the_asker_and_the_service_ends_exactly_at_its_number(start: Start) -> None:
    seats = start(num_requests=3)
    for number in range(3):
        secret = images(1, seed=number)
        np.testing.assert_array_equal(answer(ask(seats, number, secret)), 2 * secret)
    assert ends(seats) == [[], [], []]
    assert [seat.book.answered() for seat in seats] == [3, 3, 3]
    with pytest.raises(ServiceEndedError):
        ask(seats, 9, images(1))


def test_a_request_of_three_images_counts_three(start: Start) -> None:
    seats = start(num_requests=3)
    np.testing.assert_array_equal(answer(ask(seats, 0, images(3))), 2 * images(3))
    assert ends(seats) == [[], [], []]


def test_threat_33_parallel_clients_never_get_more_than_the_number(start: Start) -> None:
    seats = start(num_requests=5)
    asked: list[list[Ticket]] = []
    refused = 0
    for number in range(12):
        with contextlib.suppress(ServiceEndedError):
            asked.append(ask(seats, number, images(1), user=bytes([number]) * 32))
    ends(seats)
    answered = 0
    for tickets in asked:
        outcomes = [ticket.answer is not None for ticket in tickets]
        assert len(set(outcomes)) == 1  # all three parties answer, or none
        answered += outcomes[0]
        refused += isinstance(tickets[0].error, ServiceEndedError)
    assert answered == 5
    assert refused == len(asked) - 5


def test_threat_33_a_users_quota_is_kept_while_others_are_served(start: Start) -> None:
    seats = start(num_requests=4, quota=2)
    first, second, third = (ask(seats, number, images(1)) for number in range(3))
    other = ask(seats, 7, images(2), user=b"v" * 32)
    for tickets in (first, second, other):
        answer(tickets)
    assert third[0].done.wait(60)
    with pytest.raises(FedsecError):
        third[0].outcome()
    assert ends(seats) == [[], [], []]


def test_threat_51_parts_under_another_certificate_never_join(start: Start) -> None:
    seats = start()
    stolen = ask(seats, 1, images(1), user=b"a" * 32, parties=(0,))
    spliced = ask(seats, 1, images(1), user=b"b" * 32, parties=(1, 2))
    np.testing.assert_array_equal(answer(ask(seats, 2, images(1))), 2 * images(1))
    until(lambda: stolen[0].lacking == "bob and carol got no part of it")
    assert not any(ticket.done.is_set() for ticket in stolen + spliced)
    assert seats[0].book.answered() == 1


def test_a_request_whose_parts_come_late_is_answered_when_they_are_there(start: Start) -> None:
    seats = start()
    bodies = parts.split(images(1))
    tickets = {}
    for me in (0, 2, 1):
        read = partial(parts.join, me, bodies[me], 4, RING64)
        tickets[me] = seats[me].room.admit(key(1), 1, "logits", read)
        time.sleep(0.15)
    np.testing.assert_array_equal(answer([tickets[me] for me in range(3)]), 2 * images(1))


def test_threat_34_an_absurd_row_leaves_its_neighbours_bit_identical(start: Start) -> None:
    """Both wait before the loops start, so they go out in one batch."""
    seats = start(run=())
    honest = ask(seats, 1, images(2))
    liar = ask(seats, 2, np.full(4, 2**62, np.uint64), user=b"z" * 32)
    for seat in seats:
        seat.thread = threading.Thread(target=seat.run, daemon=True)
        seat.thread.start()
    np.testing.assert_array_equal(answer(honest), 2 * images(2))
    answer(liar)


@pytest.mark.parametrize("who", [0, 1, 2])
def test_one_party_that_leaves_ends_the_service_everywhere_by_name(start: Start, who: int) -> None:
    seats = start()
    answer(ask(seats, 1, images(1)))
    seats[who].leaving.set()
    seats[who].room.wake()
    assert ends(seats) == [[NAMES[who]]] * 3


@pytest.mark.parametrize("who", [0, 1, 2])
def test_threat_43_an_idle_party_that_dies_is_noticed(start: Start, who: int) -> None:
    seats = start()
    answer(ask(seats, 1, images(1)))
    for link in seats[who].links:
        link.close()
    for me, outcome in enumerate(ends(seats)):
        assert isinstance(outcome, PeerLostError), me


@pytest.mark.parametrize("who", [0, 1, 2])
def test_threat_43_a_silent_party_is_noticed_within_the_deadline(start: Start, who: int) -> None:
    others = tuple(me for me in range(3) if me != who)
    began = time.monotonic()
    seats = start(run=others, limits=replace(LIMITS, silence_s=0.5))
    outcomes = [ends(seats)[me] for me in others]
    assert time.monotonic() - began < 15
    assert all(isinstance(outcome, PeerLostError) for outcome in outcomes)
    assert any(isinstance(outcome, DeadlineError) and NAMES[who] in str(outcome) for outcome in outcomes)


def test_a_failed_computation_is_charged_to_the_user_but_not_counted_as_answered(start: Start) -> None:
    def broken(x: RepShare) -> RingArray:
        raise ProtocolError("carol lied")

    seats = start(num_requests=5, quota=5, compute=broken)
    tickets = ask(seats, 1, images(2))
    for ticket in tickets:
        assert ticket.done.wait(60)
        with pytest.raises(ProtocolError):
            ticket.outcome()
    assert [seat.book.left() for seat in seats] == [5, 5, 5]
    assert [seat.book.left_for(USER) for seat in seats] == [3, 3, 3]


def test_the_charge_is_on_disk_before_the_computation(start: Start) -> None:
    seen: list[bool] = []

    def look(x: RepShare) -> RingArray:
        # A connection of its own sees committed rows only.
        other = Ledger(seats[0].book.ledger.path)
        seen.append(ServiceBook(other, b"s" * 16, b"m" * 16, None, None).used(key(1)))
        other.close()
        return double(x)

    seats = start(compute={0: look})
    answer(ask(seats, 1, images(1)))
    assert seen == [True]


def test_threat_18_an_id_that_was_answered_is_refused(start: Start) -> None:
    seats = start()
    answer(ask(seats, 1, images(1)))
    again = ask(seats, 1, images(1))
    for ticket in again:
        assert ticket.done.wait(60)
    with pytest.raises(ProtocolError, match="fresh"):
        again[0].outcome()


def test_a_malformed_step_ends_the_service_and_names_the_sender(start: Start) -> None:
    seats = start(run=(1,), limits=replace(LIMITS, silence_s=2.0))
    seats[0].links[1].send("serve_proposal", b"\xc1 not msgpack", Deadline.after(30))
    outcome = ends(seats)[1]
    assert isinstance(outcome, ProtocolError)
    assert "alice" in str(outcome)


def test_looking_for_hopeless_requests_reads_the_book_once_a_certificate(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    seats = start(num_requests=100, quota=3, run=())
    waiting = [ask(seats, number, images(1), parties=(0,))[0] for number in range(20)]
    hopeless = ask(seats, 90, images(4), user=b"v" * 32, parties=(0,))[0]
    queries: list[str] = []
    read_one = Ledger.read_one

    def count(ledger: Ledger, query: str, values: tuple[bytes, ...]) -> int | None:
        queries.append(query)
        return read_one(ledger, query, values)

    monkeypatch.setattr(Ledger, "read_one", count)
    seats[0].loop._refuse_hopeless()
    # Each certificate's, once; the service's own count is in memory.
    assert len(queries) == 2
    with pytest.raises(FedsecError, match="3 more images"):
        hopeless.outcome()
    assert not any(ticket.done.is_set() for ticket in waiting)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_while_nobody_asks_all_three_prepare_in_one_order_up_to_the_stock(start: Start) -> None:
    seats = start()
    until(lambda: all(seat.engine.ready("logits") == STOCK_IMAGES for seat in seats))
    calls = seats[0].engine.calls
    assert {name for name, _, _ in calls} == {"prepare"}
    assert all(1 <= count <= MOST_IMAGES for _, count, _ in calls)
    answer(ask(seats, 1, images(3), reveal="label"))
    # From now on for what was asked for last; what is there stays there.
    until(lambda: all(seat.engine.ready("label") == STOCK_IMAGES for seat in seats))
    assert all(seat.engine.ready("logits") == STOCK_IMAGES for seat in seats)
    assert all(seat.engine.calls == calls for seat in seats)


def all_have_begun(seats: list[Seat], calls: int) -> bool:
    return all(len(seat.engine.calls) == calls for seat in seats)


def test_threat_34_what_waits_at_one_party_only_does_not_keep_the_others_from_preparing(start: Start) -> None:
    seats = start(run=())
    ask(seats, 100, images(1), user=b"e" * 32, parties=(0,))
    for seat in seats:
        seat.thread = threading.Thread(target=seat.run, daemon=True)
        seat.thread.start()
    until(lambda: all(seat.engine.ready("logits") == STOCK_IMAGES for seat in seats))
    assert len(seats[0].room.held()) == 1


def test_a_request_waits_for_one_portion_at_most(start: Start) -> None:
    """Portions take far longer than they should, and each as long as the test wants: none ends by itself."""
    may_end = threading.Semaphore(0)

    def portion() -> None:
        time.sleep(10 * PORTION_S * BUSY)
        may_end.acquire(timeout=60)

    seats = start(portion=portion)
    one_by_one = [("prepare", 1, "logits"), ("predict", 1, "logits")]
    try:
        for number in range(3):
            until(partial(all_have_begun, seats, 2 * number + 1))
            asked = ask(seats, number, images(1))
            may_end.release(len(seats))
            np.testing.assert_array_equal(answer(asked), 2 * images(1))
        assert all(seat.engine.calls[:6] == 3 * one_by_one for seat in seats)
    finally:
        may_end.release(100)


def test_nothing_is_prepared_in_plain_mode(start: Start) -> None:
    seats = start(run=(), mode="plain")
    for seat in seats:
        seat.thread = threading.Thread(target=seat.run, daemon=True)
        seat.thread.start()
    answer(ask(seats, 1, images(1)))
    time.sleep(0.1)
    assert seats[0].engine.calls == [("predict", 1, "logits")]


@pytest.mark.parametrize(
    ("count", "reveal"), [(MOST_IMAGES + 1, "logits"), (MOST_IMAGES, "top3"), (1, "probabilities")]
)
def test_a_leader_that_demands_more_than_it_may_is_left(start: Start, count: int, reveal: Reveal) -> None:
    seats = start(run=(1,), reveals=("logits",))
    demand = Proposal((), None, count, reveal)
    seats[0].links[1].send("serve_proposal", msgspec.msgpack.encode(demand), Deadline.after(30))
    outcome = ends(seats)[1]
    assert isinstance(outcome, ProtocolError)
    assert seats[1].engine.calls == []


def test_followers_say_ahead_what_they_hold_and_nothing_is_decided_without_the_leader(start: Start) -> None:
    seats = start(run=(1, 2))
    ask(seats, 1, images(1), parties=(1, 2))
    ballots = [
        msgspec.msgpack.decode(link.receive("serve_ballot", max_bytes=1000, deadline=Deadline.after(30)))
        for link in seats[0].links
    ]
    named = [[USER, key(1).request, 1, "logits"]]
    assert ballots == [[[], False, named, False]] * 2
    assert [seat.engine.calls for seat in seats] == [[], [], []]


def ballot_at(link: Channel) -> Ballot:
    frame = link.receive("serve_ballot", max_bytes=1000, deadline=Deadline.after(30))
    return msgspec.msgpack.decode(frame, type=Ballot)


@pytest.mark.parametrize("passed_on", [True, False])
def test_a_batch_is_agreed_whether_or_not_the_leader_passes_ballots_on(start: Start, passed_on: bool) -> None:
    seats = start(run=(1, 2))
    ask(seats, 1, images(1), parties=(1, 2))
    ballots = {1: ballot_at(seats[0].links[1]), 2: ballot_at(seats[0].links[0])}
    entries = (Entry(*key(1), 1),)
    # If they have crossed with the proposal, the followers tell each other.
    ahead = (ballots[1], ballots[2]) if passed_on else (None, None)
    proposal = msgspec.msgpack.encode(Proposal(entries, Ballot((0,)), ahead=ahead))
    for link in seats[0].links:
        link.send("serve_proposal", proposal, Deadline.after(30))
    until(lambda: all(("predict", 1, "logits") in seat.engine.calls for seat in seats[1:]))
    assert [seat.book.answered() for seat in seats] == [0, 1, 1]


def test_followers_whose_ballots_cross_with_proposals_tell_each_other_at_once(start: Start) -> None:
    """As on a slow line: the proposal must not have to come first."""
    seats = start(run=(1, 2))
    for number, told in ((1, False), (2, True), (3, True), (4, False)):
        ask(seats, number, images(1), parties=(1, 2))
        ballots = {1: ballot_at(seats[0].links[1]), 2: ballot_at(seats[0].links[0])}
        assert [ballot.told for ballot in ballots.values()] == [told, told]
        # The third time they come in time again.
        ahead = (ballots[1], ballots[2]) if number >= 3 else (None, None)
        proposal = msgspec.msgpack.encode(Proposal((Entry(*key(number), 1),), Ballot((0,)), ahead=ahead))
        for link in seats[0].links:
            link.send("serve_proposal", proposal, Deadline.after(30))
        until(lambda number=number: all(seat.book.answered() == number for seat in seats[1:]))


def test_a_leader_that_passes_on_another_ballot_than_was_cast_is_left(start: Start) -> None:
    seats = start(run=(1,))
    ask(seats, 1, images(1), parties=(1,))
    cast = ballot_at(seats[0].links[1])
    other = Ballot((), ahead=(Entry(*key(2), 1),))
    assert cast.ahead == (Entry(*key(1), 1),)
    proposal = Proposal((Entry(*key(2), 1),), Ballot((0,)), ahead=(other, None))
    seats[0].links[1].send("serve_proposal", msgspec.msgpack.encode(proposal), Deadline.after(30))
    outcome = ends(seats)[1]
    assert isinstance(outcome, ProtocolError)
    assert "alice" in str(outcome)
    assert "ballot" in str(outcome)


def test_what_waits_for_a_decision_is_charged_already_and_taken_back_if_there_is_none(start: Start) -> None:
    seats = start(limits=replace(LIMITS, heartbeat_s=0.05))
    alone = ask(seats, 1, images(1), parties=(1,))[0]
    ledger = seats[1].book.ledger
    until(lambda: ledger.answered(b"s" * 16) == 1)
    assert seats[1].book.answered() == 0
    seats[1].room.withdraw(alone, DeadlineError("given up"))
    until(lambda: ledger.answered(b"s" * 16) == 0)
    np.testing.assert_array_equal(answer(ask(seats, 2, images(1))), 2 * images(1))
    assert [seat.book.ledger.answered(b"s" * 16) for seat in seats] == [1, 1, 1]


def test_a_leader_that_proposes_more_than_a_batch_is_left(start: Start) -> None:
    seats = start(run=(1,))
    most = LIMITS.batch_images
    for number in range(2):
        ask(seats, number, images(most // 2 + 1), parties=(1,))
    seats[0].links[1].receive("serve_ballot", max_bytes=1000, deadline=Deadline.after(30))
    entries = tuple(Entry(*key(number), most // 2 + 1) for number in range(2))
    proposal = Proposal(entries, Ballot((0, 0)))
    seats[0].links[1].send("serve_proposal", msgspec.msgpack.encode(proposal), Deadline.after(30))
    outcome = ends(seats)[1]
    assert isinstance(outcome, ProtocolError)
    assert f"at most {most} images in a proposal of" in str(outcome)


def test_threat_34_a_follower_says_only_once_ahead_what_the_leader_never_proposes(start: Start) -> None:
    """A ballot without the next request would cost that one another vote."""
    seats = start(run=(1, 2))
    ask(seats, 100, images(1), user=b"e" * 32, parties=(1, 2))
    heartbeat = msgspec.msgpack.encode(Proposal((), Ballot(())))
    for link in seats[0].links:
        link.receive("serve_ballot", max_bytes=1000, deadline=Deadline.after(30))
        link.send("serve_proposal", heartbeat, Deadline.after(30))
    time.sleep(0.1)
    ask(seats, 1, images(1), parties=(1, 2))
    for link in seats[0].links:
        ballot = msgspec.msgpack.decode(
            link.receive("serve_ballot", max_bytes=1000, deadline=Deadline.after(30)), type=Ballot
        )
        assert [entry.request for entry in ballot.ahead or ()] == [key(100).request, key(1).request]


def test_requests_that_reveal_different_things_are_computed_apart(start: Start) -> None:
    seats = start(run=())
    tickets = [
        ask(seats, number, images(1), user=bytes([number]) * 32, reveal=("logits", "label")[number % 2])
        for number in range(8)
    ]
    for seat in seats:
        seat.thread = threading.Thread(target=seat.run, daemon=True)
        seat.thread.start()
    for waiting in tickets:
        np.testing.assert_array_equal(answer(waiting), 2 * images(1))
    batches = [(count, reveal) for name, count, reveal in seats[1].engine.calls if name == "predict"]
    assert batches[:2] == [(4, "logits"), (4, "label")]


def test_many_threads_of_clients_get_their_own_answers_in_one_order(start: Start) -> None:
    seats = start()
    wrong: list[int] = []

    def client(user: int) -> None:
        for number in range(15):
            secret = images(1 + number % 3, seed=1000 * user + number)
            reveal: Reveal = "label" if user % 3 == 0 else "logits"
            # Parts may come in any order.
            order = [(0, 1, 2), (2, 1, 0), (1, 0, 2)][(user + number) % 3]
            got = answer(ask(seats, number, secret, user=bytes([user]) * 32, parties=order, reveal=reveal))
            if not np.array_equal(got, 2 * secret):
                wrong.append(user)

    threads = [threading.Thread(target=client, args=(user,)) for user in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert wrong == []
    until(lambda: seats[0].engine.calls == seats[1].engine.calls == seats[2].engine.calls)
    assert [seat.book.answered() for seat in seats] == [12 * 30] * 3


def test_what_waits_at_one_party_only_holds_up_nobody(start: Start) -> None:
    seats = start(run=())
    # Whoever had to sit out a rest of theirs would wait for longer than this test does.
    proposer = seats[0].loop._proposer
    proposer.first_rest_s = proposer.longest_rest_s = 600.0
    for party in range(3):
        for number in range(4):
            ask(seats, 100 + number, images(1), user=bytes([200 + party]) * 32, parties=(party,))
    for seat in seats:
        seat.thread = threading.Thread(target=seat.run, daemon=True)
        seat.thread.start()
    for number in range(20):
        np.testing.assert_array_equal(answer(ask(seats, number, images(1))), 2 * images(1))
