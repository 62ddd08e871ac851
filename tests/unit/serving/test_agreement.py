"""The rules of who is answered: pure, so every case can be named."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsec.errors import ProtocolError, ServiceEndedError, TrustError
from fedsec.nn import Reveal
from fedsec.serving.agreement import (
    Ballot,
    Proposer,
    RequestKey,
    Verdict,
    Wish,
    combine,
    fits_ahead,
    judge,
    key_of,
    read_ballot,
)
from fedsec.serving.messages import MAX_IMAGES, Entry
from fedsec.serving.refusals import refusal
from fedsec.serving.spending import Account

ALICE, BOB = b"a" * 32, b"b" * 32


def entry(number: int, user: bytes = ALICE, images: int = 1, reveal: Reveal = "logits") -> Entry:
    return Entry(user, number.to_bytes(16, "big"), images, reveal)


@dataclass
class FakeBook:
    """Charges in memory, as a plain model of what the ledger promises."""

    num_requests: int | None = None
    quota: int | None = None
    charged: dict[RequestKey, int] = field(default_factory=dict)

    def used(self, key: RequestKey) -> bool:
        return key in self.charged

    def left(self) -> int | None:
        return None if self.num_requests is None else self.num_requests - sum(self.charged.values())

    def short_of_epsilon(self, fingerprint: bytes | None, images: int) -> Account | None:
        return None

    def left_for(self, fingerprint: bytes) -> int | None:
        mine = sum(n for key, n in self.charged.items() if key.fingerprint == fingerprint)
        return None if self.quota is None else self.quota - mine


def held(*entries: Entry) -> dict[RequestKey, Wish]:
    return {key_of(one): Wish(one.images, one.reveal) for one in entries}


def test_a_part_that_is_here_is_accepted_and_one_that_is_not_may_come_later() -> None:
    verdicts = judge([entry(1), entry(2)], held(entry(1)), FakeBook())
    assert verdicts == (Verdict.ACCEPT, Verdict.ABSENT)
    assert not Verdict.ABSENT.final


def test_threat_51_the_same_id_under_another_certificate_is_another_request() -> None:
    assert judge([entry(1, ALICE)], held(entry(1, BOB)), FakeBook()) == (Verdict.ABSENT,)


def test_parts_of_different_numbers_of_images_never_join() -> None:
    assert judge([entry(1, images=2)], held(entry(1, images=3)), FakeBook()) == (Verdict.DIFFERS,)
    assert Verdict.DIFFERS.final


def test_parts_that_reveal_different_things_never_join() -> None:
    asked = [entry(1, reveal="label")]
    assert judge(asked, held(entry(1)), FakeBook()) == (Verdict.DIFFERS,)
    assert read_ballot(Ballot((), ahead=(entry(1),)), asked) == (Verdict.DIFFERS,)


def test_threat_18_a_charged_id_is_refused() -> None:
    book = FakeBook(charged={key_of(entry(1)): 1})
    assert judge([entry(1)], held(entry(1)), book) == (Verdict.REPEATED,)


def test_threat_33_requests_that_fit_alone_but_not_together_are_put_off_not_refused() -> None:
    both = [entry(1, images=2), entry(2, images=2)]
    assert judge(both, held(*both), FakeBook(num_requests=3)) == (Verdict.ACCEPT, Verdict.CROWDED)
    assert judge(both, held(*both), FakeBook(quota=3)) == (Verdict.ACCEPT, Verdict.CROWDED)
    assert not Verdict.CROWDED.final


def test_threat_33_what_can_never_fit_is_refused_for_good() -> None:
    asks = [entry(1, images=4)]
    assert judge(asks, held(*asks), FakeBook(num_requests=3)) == (Verdict.ENDED,)
    assert judge(asks, held(*asks), FakeBook(quota=3)) == (Verdict.QUOTA,)


def test_one_quota_does_not_use_up_anothers() -> None:
    asks = [entry(1, ALICE, 2), entry(2, BOB, 2)]
    assert judge(asks, held(*asks), FakeBook(quota=2)) == (Verdict.ACCEPT, Verdict.ACCEPT)


def test_an_entry_named_twice_is_accepted_once() -> None:
    verdicts = judge([entry(1), entry(1)], held(entry(1)), FakeBook())
    assert verdicts[0] is Verdict.ACCEPT
    assert verdicts[1] is not Verdict.ACCEPT


def test_a_batch_is_the_and_of_all_accepts() -> None:
    for column in itertools.product(Verdict, repeat=3):
        joined = combine([Ballot((verdict,)) for verdict in column], [entry(1)])[0]
        assert (joined is Verdict.ACCEPT) == all(verdict is Verdict.ACCEPT for verdict in column)
        assert joined.final == any(verdict.final for verdict in column)


def test_a_ballot_cast_ahead_accepts_what_it_names_and_nothing_else() -> None:
    ahead = Ballot((), ahead=(entry(1), entry(2, images=3)))
    asked = [entry(2, images=3), entry(1), entry(1, BOB), entry(3), entry(2, images=2)]
    assert read_ballot(ahead, asked) == (
        Verdict.ACCEPT,
        Verdict.ACCEPT,
        Verdict.ABSENT,
        Verdict.ABSENT,
        Verdict.DIFFERS,
    )


def test_what_is_accepted_together_is_named_once_and_reveals_one_thing() -> None:
    everything = (entry(1), entry(2, reveal="label"), entry(3))
    ballots = [Ballot((), ahead=everything)] * 3
    asked = [entry(1), entry(1), entry(2, reveal="label"), entry(3)]
    crowded, accept = Verdict.CROWDED, Verdict.ACCEPT
    assert combine(ballots, asked) == (accept, crowded, crowded, accept)


@pytest.mark.parametrize("ballot", [(), (0, 0), (99,)])
def test_a_ballot_that_does_not_fit_the_proposal_ends_the_service(ballot: tuple[int, ...]) -> None:
    with pytest.raises(ProtocolError, match="ballot"):
        combine([Ballot((0,)), Ballot(ballot)], [entry(1)])


def test_a_ballot_is_cast_ahead_only_if_everything_held_fits_together() -> None:
    both = held(entry(1, images=2), entry(2, images=2))
    assert fits_ahead(both, FakeBook(num_requests=4)) == (entry(1, images=2), entry(2, images=2))
    assert fits_ahead(both, FakeBook(num_requests=3)) is None
    assert fits_ahead(both, FakeBook(quota=3)) is None
    assert fits_ahead(both, FakeBook(charged={key_of(entry(1)): 1})) is None
    assert fits_ahead(held(*map(entry, range(MAX_IMAGES))), FakeBook()) is not None
    assert fits_ahead(held(*map(entry, range(MAX_IMAGES + 1))), FakeBook()) is None


@pytest.mark.parametrize(
    ("verdict", "error"),
    [
        (Verdict.DIFFERS, ProtocolError),
        (Verdict.REPEATED, ProtocolError),
        (Verdict.QUOTA, TrustError),
        (Verdict.ENDED, ServiceEndedError),
    ],
)
def test_each_final_verdict_has_its_error(verdict: Verdict, error: type[Exception]) -> None:
    assert type(refusal(verdict, 3, FakeBook(num_requests=2, quota=1), ALICE)) is error


requests = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from([ALICE, BOB]), st.integers(1, 5)), max_size=12
)


@settings(deadline=None)
@given(requests, st.integers(0, 12), st.integers(0, 12), st.sets(st.integers(0, 9)))
def test_threat_33_whatever_is_accepted_together_fits_both_limits(
    asks: list[tuple[int, bytes, int]], num_requests: int, quota: int, missing: set[int]
) -> None:
    entries = [entry(number, user, images) for number, user, images in asks]
    book = FakeBook(num_requests=num_requests, quota=quota)
    here = held(*(one for (number, _, _), one in zip(asks, entries, strict=True) if number not in missing))
    verdicts = judge(entries, here, book)
    accepted = [one for one, verdict in zip(entries, verdicts, strict=True) if verdict is Verdict.ACCEPT]
    assert len({key_of(one) for one in accepted}) == len(accepted)
    assert sum(one.images for one in accepted) <= num_requests
    for user in (ALICE, BOB):
        assert sum(one.images for one in accepted if one.fingerprint == user) <= quota


def both_accept(*entries: Entry) -> list[set[Entry]]:
    return [set(entries), set(entries)]


def test_the_leader_proposes_oldest_first_and_at_most_a_batch() -> None:
    waiting = [entry(1, images=3), entry(2, images=3), entry(3, images=1)]
    chosen = Proposer(batch_images=4).choose(held(*waiting), 0.0, both_accept(*waiting))
    assert chosen == (waiting[0], waiting[2])


def test_a_proposal_reveals_one_thing() -> None:
    waiting = [entry(1, reveal="label"), entry(2), entry(3, reveal="label")]
    chosen = Proposer(batch_images=4).choose(held(*waiting), 0.0, both_accept(*waiting))
    assert chosen == (waiting[0], waiting[2])


def test_the_leader_waits_for_the_followers_to_say_what_they_hold() -> None:
    proposer, one = Proposer(batch_images=4), entry(1)
    for ahead in ([], [{one}]):
        assert proposer.choose(held(one), 5.0, ahead) == ()
        assert proposer.next_due(held(one), 5.0, ahead) == pytest.approx(0.001)
    assert proposer.choose(held(one), 5.0, both_accept(one)) == (one,)
    assert proposer.next_due(held(one), 5.0, both_accept(one)) == 0.0
    # Not for ever: a follower whose requests do not fit together says nothing before it is asked.
    assert proposer.choose(held(one), 5.002, []) == (one,)


def test_a_ballot_that_lacks_a_request_is_used_up_at_once() -> None:
    """Something else that waits at one follower only must not hold up what is everywhere."""
    one, other = entry(1), entry(2)
    assert Proposer(batch_images=4).choose(held(one), 5.0, [{other}]) == (one,)


def test_what_is_put_off_rests_twice_as_long_every_time_up_to_a_bound() -> None:
    proposer, one, now = Proposer(batch_images=4), entry(1), 10.0
    rests = []
    for _ in range(9):
        assert proposer.choose(held(one), now, [set()]) == (one,)
        proposer.settle([one], [Verdict.ABSENT], now)
        assert proposer.choose(held(one), now, [set()]) == ()
        rest = proposer.next_due(held(one), now, [set()])
        assert rest is not None
        rests.append(rest)
        now += rest + 1e-9
    assert rests[:3] == pytest.approx([0.001, 0.002, 0.004])
    assert rests[-1] == pytest.approx(0.05)
    # As soon as both followers have it, it rests no more.
    proposer.settle([one], [Verdict.ABSENT], now)
    assert proposer.choose(held(one), now, both_accept(one)) == (one,)


def test_the_leader_forgets_the_rests_of_what_is_gone() -> None:
    proposer = Proposer(batch_images=4)
    proposer.settle([entry(1)], [Verdict.ABSENT], 0.0)
    assert proposer.choose({}, 0.0) == ()
    assert proposer.choose(held(entry(1)), 0.0, [set()]) == (entry(1),)
    assert proposer.next_due({}, 0.0) is None


@pytest.mark.parametrize("hostile", [{"images": 3}, {"reveal": "label"}])
def test_threat_34_what_waits_at_the_leader_alone_is_no_earlier_again_and_again(
    hostile: dict[str, object],
) -> None:
    """Three older requests that lack parts, each of which keeps ours out of its proposal, on slow links."""
    proposer, ours, step_s = Proposer(batch_images=4), entry(9, BOB, images=2), 0.02
    older = [entry(number, **hostile) for number in range(3)]  # type: ignore[arg-type]
    now = 0.0
    # They have long come to the longest rest: with three steps in its time, one of them is always due.
    for step in range(60):
        proposed = proposer.choose(held(*older[: step + 1]), now, [set()])
        proposer.settle(proposed, [Verdict.ABSENT] * len(proposed), now)
        now += step_s
    for _ in range(len(older) + 1):
        proposed = proposer.choose(held(*older, ours), now, [set()])
        if ours in proposed:
            return
        proposer.settle(proposed, [Verdict.ABSENT] * len(proposed), now)
        now += step_s
    pytest.fail("ours was never proposed")


def test_only_what_was_put_off_again_and_again_counts_as_nothing_to_do() -> None:
    proposer, one, now = Proposer(batch_images=4), entry(1), 0.0
    assert proposer.idle({})
    for _ in range(7):
        assert not proposer.idle(held(one))
        proposer.settle([one], [Verdict.ABSENT], now)
    assert proposer.idle(held(one))
    assert not proposer.idle(held(one, entry(2)))
