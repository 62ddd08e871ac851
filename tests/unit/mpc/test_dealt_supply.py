"""Blocks of dealt material: where arrays lie, which streams they come from, numbers that do not return."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsec.errors import ProtocolError, UsageError
from fedsec.mpc import Party, pair_streams, simulate
from fedsec.mpc.dealt import DEALER, FIRST, Fields, Supply, TruncateGate, run_together
from fedsec.mpc.dealt.gates import Rounds, layout
from fedsec.mpc.dealt.protocols import dealt_relu
from fedsec.mpc.dealt.supply import Placement
from fedsec.mpc.party import Layout
from fedsec.ring import RING32, RING64, KeyedStream, Ring, RingArray, fresh_key, fresh_stream
from fedsec.sharing import replicated

RING8, RING16 = Ring(8), Ring(16)


def test_arrays_fill_a_buffer_without_gaps_and_aligned() -> None:
    fields = [layout(RING8, 3), layout(RING64, 2, 5), layout(RING16, 1), layout(RING32, 7)]
    placement = Placement(fields, 3)
    buffer = placement.buffer()

    arrays = placement.views(buffer)

    assert [array.shape for array in arrays] == [(3, 3), (3, 2, 5), (3, 1), (3, 7)]
    assert sum(array.nbytes for array in arrays) == placement.size == len(buffer)
    for number, array in enumerate(arrays):
        array[...] = number
        assert array.flags.aligned
        assert np.shares_memory(array, buffer)
    assert [set(array.ravel().tolist()) for array in arrays] == [{0}, {1}, {2}, {3}]


def test_one_draw_for_all_arrays_is_as_good_as_one_for_each() -> None:
    class Piecewise:
        def __init__(self, key: bytes) -> None:
            self._stream = KeyedStream(key)

        def words(self, shape: int | tuple[int, ...], ring: Ring = RING64) -> RingArray:
            return self._stream.words(shape, ring)

    placement = Placement([layout(RING16, 5), layout(RING64, 3), layout(RING8, 1)], 4)
    key = fresh_key()

    for one, other in zip(placement.drawn(KeyedStream(key)), placement.drawn(Piecewise(key)), strict=True):
        assert np.array_equal(one, other)


def test_a_recorded_session_computes_what_a_plain_one_does() -> None:
    seed = fresh_key()
    shares = replicated.share(np.arange(6, dtype=np.uint64).reshape(2, 3) << np.uint64(9), fresh_stream(), 9)

    def program(party: Party) -> Any:
        return dealt_relu(party, shares[party.id], bits=8, window_bits=20)

    plain = simulate(program, seed=seed).results
    recorded = simulate(program, seed=seed, record=True).results

    for one, other in zip(plain, recorded, strict=True):
        assert np.array_equal(one.own, other.own)
        assert np.array_equal(one.next, other.next)


def test_shares_add_up_to_what_the_dealer_wrote() -> None:
    secret = np.arange(8, dtype=np.uint32).reshape(2, 4)

    def program(party: Party) -> Any:
        gate = TruncateGate(party.id, Layout((4,), RING32), bits=3, window_bits=20, ring=RING32)
        supply = Supply([gate], 2)
        results = []
        for index in range(2):
            (part,) = supply.parts(party, b"block %d" % index)
            shares = [words.copy() for words in part.shares]
            if party.id == DEALER:
                part.shares[0][...] = secret - part.shares[0]
                supply.send(party)
            results.append((shares[0], [pair[0] + pair[1] for pair in part.pairs] or part.masks))
        return results

    done = simulate(program)

    for dealer, first, second in zip(*done.results, strict=True):
        assert np.array_equal(first[0] + second[0], secret)
        assert np.array_equal(dealer[0], first[0])
        assert np.array_equal(dealer[1][0], first[1][0] + second[1][0])
    assert not np.array_equal(done.results[FIRST][0][0], done.results[FIRST][1][0])


def test_every_block_has_its_own_streams_and_shares_none_with_other_purposes() -> None:
    def program(party: Party) -> Any:
        drawn = []
        for other in {0, 1, 2} - {party.id}:
            drawn += [party.dealt_stream_with(other, context).words(50) for context in (b"a", b"b", b"")]
            drawn.append(party.stream_with(other).words(50))
        return np.concatenate(drawn)

    words = np.concatenate(simulate(program).results)

    # Each word is known at both ends of its pair and comes nowhere else.
    assert set(np.unique(words, return_counts=True)[1]) == {2}


def test_streams_of_a_pair_print_no_key() -> None:
    secret = fresh_key()

    streams = pair_streams(secret)

    assert secret.hex() not in repr(streams)
    assert repr(secret) not in repr(streams)


def test_numbers_of_blocks_do_not_come_again() -> None:
    assert simulate(lambda party: [party.take_index() for _ in range(3)]).results == ([0, 1, 2],) * 3


def test_a_party_has_no_dealt_stream_with_itself() -> None:
    with pytest.raises(UsageError, match="shares streams with"):
        simulate(lambda party: party.dealt_stream_with(party.id, b""))


def test_a_session_that_was_ended_stays_ended() -> None:
    def program(party: Party) -> None:
        party.require_open()
        party.end()
        for attempt in (party.require_open, lambda: party.exchange({}, {})):
            with pytest.raises(ProtocolError, match="ended with an earlier error"):
                attempt()

    simulate(program)


@pytest.mark.parametrize("computations", [0, 1, 3])
def test_computations_run_in_step(computations: int) -> None:
    def rounds(start: int) -> Rounds:
        words = np.array([start], dtype=np.uint32)
        for _ in range(2):
            words = words + (yield words)
        return words

    def program(party: Party) -> Any:
        if party.id == DEALER:
            return None
        return run_together(party, [rounds(party.id * 10 + i) for i in range(computations)])

    done = simulate(program, record=True)

    # a + b, then the sum of both sums.
    assert [int(words[0]) for words in done.results[FIRST]] == [2 * (30 + 2 * i) for i in range(computations)]
    assert done.cost.rounds == (2 if computations else 0)
    assert len(done.logs["party-1"]) == (4 if computations else 0)


def test_fields_of_gates_add_up() -> None:
    both = Fields((layout(RING8, 3),), (layout(RING64, 2),)) + Fields((layout(RING32, 2),))

    assert (both.dealt_bytes, both.mask_bytes) == (11, 16)
