"""A party's links, labels and streams; and that an error ends its session."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fedsec.errors import DeadlineError, PeerLostError, ProtocolError, UsageError
from fedsec.mpc import Layout, Party, matmul, multiply, pair_streams, reveal, simulate, truncate
from fedsec.ring import RING32, RING64, Ring, RingArray, fresh_key, fresh_stream
from fedsec.sharing import replicated
from fedsec.sharing.replicated import RepShare
from fedsec.transport import memory_mesh


def test_zero_shares_sum_to_zero_and_none_is_zero() -> None:
    parts = simulate(lambda party: party.zero_share((100,))).results
    bits = simulate(lambda party: party.zero_bits((2, 50))).results

    assert not np.any(parts[0] + parts[1] + parts[2])
    assert not np.any(bits[0] ^ bits[1] ^ bits[2])
    for part in (*parts, *bits):
        assert np.all(part != 0)


def test_a_stream_is_the_same_at_both_ends_and_nowhere_else() -> None:
    def draw(party: Party) -> dict[int, RingArray]:
        return {other: party.stream_with(other).words(50) for other in range(3) if other != party.id}

    drawn = simulate(draw).results

    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.array_equal(drawn[i][j], drawn[j][i])
    assert not np.intersect1d(drawn[0][1], drawn[0][2]).size
    assert not np.intersect1d(drawn[0][1], drawn[1][2]).size


def test_streams_of_different_purposes_share_no_word() -> None:
    streams = pair_streams(fresh_key())

    words = [stream.words(200) for stream in (streams.zero_words, streams.zero_bits, streams.masks)]

    assert np.unique(np.concatenate(words)).size == 600


def test_a_party_has_no_stream_with_itself() -> None:
    with pytest.raises(UsageError, match="not with 1"):
        simulate(lambda party: party.stream_with(1))


def test_pass_back_goes_once_round_the_circle() -> None:
    def program(party: Party) -> int:
        return int(party.pass_back(np.array([party.id], dtype=RING64.dtype))[0])

    assert simulate(program).results == (1, 2, 0)


def test_two_parties_swap_while_the_third_takes_no_part() -> None:
    def program(party: Party) -> list[int]:
        if party.id == 0:
            return []
        # Every second word: what is sent need not be contiguous.
        words = np.arange(6, dtype=np.uint16)[party.id - 1 :: 2]
        return party.swap(3 - party.id, words).tolist()

    assert simulate(program).results == ([], [1, 3, 5], [0, 2, 4])


def test_arrays_of_different_rings_travel_in_one_message() -> None:
    small, large = np.arange(3, dtype=np.uint8), np.arange(4, dtype=np.uint64).reshape(2, 2)

    def program(party: Party) -> list[RingArray]:
        if party.id == 0:
            party.exchange({2: [small, large]}, {})
        if party.id == 2:
            return party.exchange({}, {0: [Layout((3,), Ring(8)), Layout((2, 2), RING64)]})[0]
        return []

    done = simulate(program, record=True)

    assert np.array_equal(done.results[2][0], small)
    assert np.array_equal(done.results[2][1], large)
    assert done.cost.sent == (35, 0, 0)


def test_messages_carry_the_names_of_the_protocols_that_send_them() -> None:
    shares = replicated.share(np.array([3], dtype=RING64.dtype), fresh_stream())

    def program(party: Party) -> RingArray:
        with party.step("predict"):
            square = multiply(party, shares[party.id], shares[party.id])
        return reveal(party, square)

    done = simulate(program, record=True)

    labels = [record.label for record in done.logs["party-0"] if record.event == "send"]
    assert labels == ["predict/multiply", "reveal"]
    assert done.results[1] == 9


def test_parties_that_run_different_protocols_stop_at_the_label() -> None:
    shares = replicated.share(np.array([3], dtype=RING64.dtype), fresh_stream())

    def program(party: Party) -> object:
        if party.id == 1:
            return reveal(party, shares[1])
        return multiply(party, shares[party.id], shares[party.id])

    with pytest.raises(ProtocolError):
        simulate(program)


def test_another_size_than_expected_is_refused() -> None:
    def program(party: Party) -> RingArray:
        return party.pass_back(np.zeros(2 + party.id, dtype=RING64.dtype))

    with pytest.raises(ProtocolError):
        simulate(program)


def test_threat_43_a_silent_party_ends_the_wait_by_name_and_the_session_is_over() -> None:
    mesh = memory_mesh(["a", "b", "c"])
    streams = pair_streams(fresh_key())
    party = Party(
        0, previous=mesh["a", "c"], following=mesh["a", "b"],
        previous_streams=streams, following_streams=streams, wait_s=0.05,
    )  # fmt: skip

    with pytest.raises(DeadlineError, match="b"):
        party.pass_back(np.zeros(1, dtype=RING64.dtype))
    with pytest.raises(ProtocolError, match="establish a new one"):
        party.exchange({}, {})


def test_a_party_that_fails_wakes_the_others_up() -> None:
    def program(party: Party) -> RingArray:
        if party.id == 2:
            raise KeyError("a mistake in the program")
        return party.pass_back(np.zeros(1, dtype=RING64.dtype))

    with pytest.raises(KeyError, match="a mistake"):
        simulate(program)


def test_when_all_links_break_the_error_is_a_lost_peer() -> None:
    def program(party: Party) -> RingArray:
        for channel in party._channels.values():
            channel.interrupt()
        return party.pass_back(np.zeros(1, dtype=RING64.dtype))

    with pytest.raises(PeerLostError):
        simulate(program)


@pytest.mark.parametrize(
    "protocol",
    [
        multiply,
        lambda party, small, large: multiply(party, large, small),
        lambda party, small, large: matmul(party, small.reshape(1, 1), large.reshape(1, 1)),
    ],
    ids=["multiply, first", "multiply, second", "matmul"],
)
def test_a_product_of_two_rings_is_refused(protocol: Callable[..., object]) -> None:
    """Mixed silently, a 32-bit factor would be widened and its components would no longer add up to it."""
    small = replicated.share(np.array([3], dtype=RING32.dtype), fresh_stream(), fraction_bits=2)
    large = replicated.share(np.array([3], dtype=RING64.dtype), fresh_stream(), fraction_bits=2)

    with pytest.raises(UsageError, match="two secrets of one ring"):
        simulate(lambda party: protocol(party, small[party.id], large[party.id]))


def test_a_session_computes_in_the_ring_of_the_shares() -> None:
    small = replicated.share(np.array([20], dtype=RING32.dtype), fresh_stream(), fraction_bits=2)

    def program(party: Party) -> RepShare:
        return multiply(party, truncate(party, small[party.id], 2), small[party.id])

    result = replicated.reconstruct(simulate(program).results)
    assert result.dtype == RING32.dtype
    assert result[0] in (80, 100)  # floor(20 / 4), or one less, times 20


def test_an_error_inside_a_protocol_ends_the_session() -> None:
    """The streams may stand at different places: a mask would be a word that was dealt with before."""

    def fails_after_a_draw(party: Party) -> None:
        party.stream_with(party.previous_id).words(1)
        raise MemoryError

    def program(party: Party) -> None:
        with pytest.raises(MemoryError), party.step("fails"):
            fails_after_a_draw(party)
        party.pass_back(np.zeros(1, dtype=RING64.dtype))

    with pytest.raises(ProtocolError, match="ended with an earlier error"):
        simulate(program)


def test_a_fourth_party_does_not_exist() -> None:
    mesh = memory_mesh(["a", "b", "c"])
    streams = pair_streams(fresh_key())

    with pytest.raises(UsageError, match="id 0, 1 or 2, got 3"):
        Party(
            3, previous=mesh["a", "c"], following=mesh["a", "b"],
            previous_streams=streams, following_streams=streams,
        )  # fmt: skip


def test_a_party_prints_no_key() -> None:
    assert simulate(repr).results[1] == "Party(id=1, ring=Ring(bits=64))"
