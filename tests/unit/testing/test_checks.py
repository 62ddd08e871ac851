"""The four checks fail when they should: on wrong results, wrong costs, leaks and missing teeth."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedsec.errors import UsageError
from fedsec.mpc import PROTOCOLS, Cost, Party, multiply, protocol, reshare, reveal, reveal_to
from fedsec.ring import RING64, KeyedStream, Ring, RingArray, derive_key
from fedsec.sharing.boolean import unpack_bits
from fedsec.sharing.replicated import RepShare
from fedsec.testing import Additive, Bits, CheckError, Example, Mutant, Secret, check_protocol, view_report
from fedsec.testing.checks import check_cost, check_teeth, check_value, check_view
from fedsec.testing.fixed_inputs import p_of_fixed_inputs
from fedsec.testing.inputs import rows_of
from fedsec.testing.plugin import SEED_VARIABLE, seed_of_this_run
from fedsec.transport import Deadline

SEED = secrets.token_bytes(32)
INPUTS = {"x": Secret(), "y": Secret()}


def product(x: Any, y: Any) -> Any:
    return x * y


def unmasked(party: Party, x: RepShare, y: RepShare) -> RepShare:
    """Multiply without the zero share: the results are right."""
    z_own = x.own * (y.own + y.next) + x.next * y.own
    return RepShare(z_own, party.pass_back(z_own))


def test_a_wrong_result_fails_the_value_check() -> None:
    with pytest.raises(CheckError, match="multiply gives other results"):
        check_value(Example(multiply, INPUTS, plain=lambda x, y: x * y + 1), SEED)
    with pytest.raises(CheckError, match="shapes"):
        check_value(Example(multiply, INPUTS, plain=lambda x, y: (x * y)[:-1]), SEED)


def test_a_result_wrong_at_one_edge_value_fails_the_value_check() -> None:
    def almost(x: Any, y: Any) -> Any:
        return np.where((x == 2**63) & (y == 2**64 - 1), 0, x * y)

    with pytest.raises(CheckError):
        check_value(Example(multiply, INPUTS, plain=almost), SEED)


@pytest.mark.parametrize("declared", [Cost.each(2, 8192), Cost.each(1, 8191), Cost(1, (8192, 8192, 0))])
def test_a_wrong_declaration_fails_the_cost_check(declared: Cost) -> None:
    @protocol(cost=lambda x, y: declared, source="this test")
    def misdeclared(party: Party, x: RepShare, y: RepShare) -> RepShare:
        """Multiply. Cost: wrong. Security: as multiply."""
        return multiply.function(party, x, y)

    try:
        with pytest.raises(CheckError, match="the channels counted"):
            check_cost(Example(misdeclared, INPUTS), SEED)
    finally:
        del PROTOCOLS[f"{misdeclared.__module__}.{misdeclared.__qualname__}"]


def test_a_protocol_without_a_mask_gives_the_right_value_and_fails_the_view_check() -> None:
    example = Example(unmasked, INPUTS, plain=product)

    check_value(example, SEED)
    with pytest.raises(CheckError, match="unmasked leaks"):
        check_view(example, SEED)


@pytest.mark.parametrize("mutant", Mutant)
def test_each_broken_stream_leaves_the_value_right_and_is_noticed_by_one_of_the_tests(mutant: Mutant) -> None:
    """The table in the tutorial."""
    report = view_report(Example(multiply, INPUTS), SEED, mutant)

    notices_fixed = {Mutant.NO_MASK, Mutant.LOW_HALF, Mutant.KNOWN_TO_ALL, Mutant.USED_TWICE}
    notices_random = {Mutant.NO_MASK, Mutant.KNOWN_TO_ALL, Mutant.USED_TWICE}
    assert (report.fixed < 1e-12) == (mutant in notices_fixed)
    assert (report.random < 1e-12) == (mutant in notices_random)
    assert not report.hides


def test_a_leak_that_half_of_all_inputs_show_is_noticed_with_fixed_inputs_every_time() -> None:
    def sometimes_unmasked(party: Party, words: RingArray) -> RepShare:
        masked = party.zero_share(words.shape)
        if party.id == 0:
            masked = np.where(words >> np.uint64(40) & np.uint64(1), np.uint64(0), masked)
        return RepShare(masked + words, party.pass_back(masked + words))

    example = Example(sometimes_unmasked, {"words": Additive()})
    for _ in range(8):
        assert p_of_fixed_inputs(example, 1 << 14, secrets.token_bytes(32), None) < 1e-12


def test_a_view_check_that_notices_nothing_fails_the_teeth_check() -> None:
    def silent(party: Party, x: RepShare) -> RepShare:
        return x

    with pytest.raises(CheckError, match="does not notice: no mask"):
        check_teeth(Example(silent, {"x": Secret()}), SEED)


def test_a_broken_twin_that_escapes_fails_the_teeth_check() -> None:
    with pytest.raises(CheckError, match="does not notice: multiply"):
        check_teeth(Example(multiply, INPUTS, broken=(multiply,)), SEED)
    check_teeth(Example(multiply, INPUTS, broken=(unmasked,)), SEED)


def _nothing(party_id: int, result: RingArray, x: RepShare) -> list[RingArray]:
    return []


def test_an_opening_with_a_wrong_simulation_or_without_teeth_fails() -> None:
    with pytest.raises(CheckError, match="do not determine"):
        check_view(Example(reveal, {"x": Secret()}, simulated=_nothing), SEED)
    with pytest.raises(UsageError, match="no broken twin"):
        check_teeth(Example(reveal, {"x": Secret()}, simulated=_nothing), SEED)


def test_an_example_that_cannot_be_checked_says_so() -> None:
    with pytest.raises(UsageError, match="needs the plain function"):
        check_value(Example(multiply, INPUTS), SEED)
    with pytest.raises(UsageError, match="declares no cost"):
        check_cost(Example(unmasked, INPUTS), SEED)
    with pytest.raises(UsageError, match="does not fall into"):
        rows_of(np.zeros(5, dtype=RING64.dtype), lanes=64)
    with pytest.raises(UsageError, match="do not fit the 8-bit ring"):
        Secret(low=-129).deal(64, Ring(8), _stream(), None)


def _stream() -> KeyedStream:
    return KeyedStream(derive_key(SEED, purpose="test inputs"))


@pytest.mark.parametrize("spec", [Secret((2,), low=-5, high=9), Additive((3,)), Bits(2)])
def test_inputs_add_up_and_fill_runs_of_lanes(spec: Secret | Bits) -> None:
    dealt = spec.deal(128, RING64, _stream(), 0)
    kinds = spec.deal(4, RING64, _stream(), None)
    runs = spec.repeat(kinds, 4, 128)

    join: Callable[..., Any] = np.bitwise_xor.reduce if isinstance(spec, Bits) else np.add.reduce
    for inputs in (dealt, kinds, runs):
        assert np.array_equal(join(np.stack(inputs.components)), inputs.plain)
    if isinstance(spec, Bits):
        one_by_one, all_lanes = (
            [unpack_bits(d.plain[i : i + 1], n) for i in range(2)] for d, n in ((kinds, 4), (runs, 128))
        )
        assert [list(np.repeat(row, 32)) for row in one_by_one] == [list(row) for row in all_lanes]
    else:
        assert np.array_equal(
            runs.plain.reshape(4, 32, -1), np.repeat(kinds.plain[:, np.newaxis], 32, axis=1)
        )


def test_values_stay_in_their_range_and_meet_the_edges() -> None:
    values = Secret(low=-5, high=9, edges=(4,)).deal(200, RING64, _stream(), 1).plain.view(np.int64)

    assert set(values) <= set(range(-5, 10))
    assert {-5, 9, 0, 1, -1, 4} <= set(values)


def test_the_seed_comes_from_the_environment_if_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SEED_VARIABLE, SEED.hex())
    assert seed_of_this_run() == SEED
    monkeypatch.setenv(SEED_VARIABLE, "abc")
    with pytest.raises(UsageError, match="64 hex digits"):
        seed_of_this_run()
    monkeypatch.delenv(SEED_VARIABLE)
    assert seed_of_this_run() != seed_of_this_run()


def test_the_decorator_gives_one_test_four_ways() -> None:
    def test_product(x: Any, y: Any) -> Any:
        return x * y

    made = check_protocol(multiply, inputs=INPUTS)(test_product)

    (mark,) = made.pytestmark  # type: ignore[attr-defined]
    assert list(mark.args[1]) == ["value", "cost", "view", "teeth"]
    assert made.__name__ == "test_product"


def test_an_example_that_pytest_would_not_collect_is_refused() -> None:
    """Its four checks would vanish without a word."""
    with pytest.raises(UsageError, match="begin with test_, got 'product'; call it test_product"):
        check_protocol(multiply, inputs=INPUTS)(product)


def test_a_result_for_nobody_fails_the_value_check() -> None:
    def nothing(party: Party, x: RepShare, y: RepShare) -> None:
        return None

    def not_for_party_2(party: Party, x: RepShare, y: RepShare) -> RingArray | None:
        opened = reveal(party, multiply(party, x, y))
        return None if party.id == 2 else opened

    with pytest.raises(CheckError, match=r"a result to parties \[\], it should to \[0, 1, 2\]"):
        check_value(Example(nothing, INPUTS, plain=product), SEED)
    with pytest.raises(CheckError, match=r"a result to parties \[0, 1\]"):
        check_value(Example(not_for_party_2, INPUTS, plain=product), SEED)


def test_a_result_for_more_than_the_receivers_fails_the_value_check() -> None:
    def to_everyone(party: Party, x: RepShare, receiver: int) -> RingArray:
        return reveal(party, x)

    inputs = {"x": Secret(), "receiver": 1}
    for function, fails in ((reveal_to, False), (to_everyone, True)):
        example = Example(function, inputs, plain=lambda x, receiver: x, receivers=(1,))
        if fails:
            with pytest.raises(CheckError, match=r"it should to \[1\]"):
                check_value(example, SEED)
        else:
            check_value(example, SEED)
    for receivers in ((), (3,)):
        with pytest.raises(UsageError, match="receivers are party ids"):
            Example(reveal_to, inputs, receivers=receivers)


@pytest.mark.parametrize(
    ("read", "checks"),
    [(True, (check_value, check_view)), (False, (check_value,))],
    ids=["read", "left in the channel"],
)
def test_what_is_sent_beside_exchange_is_noticed(read: bool, checks: tuple[Callable[..., None], ...]) -> None:
    def aside(party: Party, words: RingArray) -> RepShare:
        shared = reshare(party, words)
        deadline = Deadline.after(5)
        party._channels[party.previous_id].send("aside", words.tobytes(), deadline)
        if read:
            party._channels[party.following_id].receive("aside", max_bytes=1 << 26, deadline=deadline)
        return shared

    example = Example(aside, {"words": Additive()}, plain=lambda words: words)
    for check in checks:
        with pytest.raises(CheckError, match=r"aside sent party-\d \d+ bytes, of which \d+ went through"):
            check(example, SEED)
