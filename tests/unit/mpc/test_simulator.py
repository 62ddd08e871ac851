"""The simulator: all parties in one process, repeatable and recorded."""

from __future__ import annotations

import sys

import numpy as np

from fedsec.mpc import Party, multiply, relu, reveal, simulate, truncate
from fedsec.mpc.simulator import Draw
from fedsec.ring import RING64, RingArray, encode, fresh_stream, signed
from fedsec.sharing import replicated

SEED = bytes(range(32))


def _square(shares: tuple[replicated.RepShare, ...]) -> object:
    def program(party: Party) -> RingArray:
        return reveal(party, multiply(party, shares[party.id], shares[party.id]))

    return program


def test_a_seed_repeats_every_message_and_no_seed_repeats_none() -> None:
    shares = replicated.share(np.arange(100, dtype=RING64.dtype), fresh_stream())
    program = _square(shares)

    first, again, other = (simulate(program, seed=s, record=True) for s in (SEED, SEED, None))  # type: ignore[arg-type]

    assert first.wire == again.wire
    assert all(mine != theirs for mine, theirs in zip(first.wire, other.wire, strict=True))
    assert np.array_equal(first.results[0], other.results[0])


def test_views_hold_exactly_what_the_channels_carried() -> None:
    shares = replicated.share(np.arange(100, dtype=RING64.dtype), fresh_stream())

    done = simulate(lambda party: relu(party, shares[party.id], 9), record=True)

    for view, wire in zip(done.views, done.wire, strict=True):
        by_sender = sorted(view.received(), key=lambda event: event.sender)
        ordered = [event for s in ((view.party_id - 1) % 3, (view.party_id + 1) % 3) for event in by_sender
                   if event.sender == s]  # fmt: skip
        assert sorted(b"".join(event.words.tobytes() for event in ordered)) == sorted(wire)
    # Two bit streams a party in the tree, and the masks of the transfer and the selection.
    assert all(any(isinstance(event, Draw) for event in view.calls[0]) for view in done.views)


def test_nothing_is_recorded_unless_asked() -> None:
    done = simulate(lambda party: party.id)

    assert done.results == (0, 1, 2)
    assert not done.logs
    assert not done.views
    assert not done.wire


def test_threads_that_switch_often_lose_no_message() -> None:
    shares = replicated.share(np.arange(8, dtype=RING64.dtype), fresh_stream())
    program = _square(shares)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(100):
            opened = simulate(program).results  # type: ignore[arg-type, var-annotated]
            assert np.array_equal(opened[2], np.arange(8) ** 2)
    finally:
        sys.setswitchinterval(before)


def test_known_examples_of_the_tutorials() -> None:
    stream = fresh_stream()
    a, b = (replicated.share(np.array([v], dtype=RING64.dtype), stream) for v in (11, 122))
    price, amount = (replicated.share(encode(np.array([v]), 8), stream, 8) for v in (1.25, -6.5))

    sums = simulate(lambda party: reveal(party, a[party.id] + b[party.id])).results
    product = simulate(
        lambda party: reveal(party, multiply(party, price[party.id], amount[party.id]))
    ).results

    assert [int(value[0]) for value in sums] == [133] * 3
    assert int(signed(product[0])[0]) / 2**16 == 1.25 * -6.5


def test_the_session_keys_are_different_for_every_pair_purpose_and_run() -> None:
    def first_words(party: Party) -> list[bytes]:
        streams = [
            s for pair in party._streams.values() for s in (pair.zero_words, pair.zero_bits, pair.masks)
        ]
        return [stream.words(4).tobytes() for stream in streams]

    taken = [word for _ in range(10) for words in simulate(first_words).results for word in words]

    # Ten sessions of three pairs of three purposes, each seen by two parties.
    assert len(taken) == 10 * 3 * 6
    assert len(set(taken)) == 10 * 3 * 3


def test_threat_35_labels_sizes_and_order_of_messages_are_the_same_for_every_input() -> None:
    def logs(values: RingArray) -> object:
        shares = replicated.share(values, fresh_stream(), fraction_bits=13)

        def program(party: Party) -> None:
            relu(party, truncate(party, multiply(party, shares[party.id], shares[party.id]), 13), 21)

        return simulate(program, record=True).logs

    zeros = np.zeros(70, dtype=RING64.dtype)

    def sent(found: object) -> object:
        assert isinstance(found, dict)
        return {name: [r for r in log if r.event == "send"] for name, log in found.items()}

    assert sent(logs(zeros)) == sent(logs(zeros + np.uint64(12345))) == sent(logs(fresh_stream().words(70)))
