"""The four checks fail when they should: on wrong results, wrong costs, leaks and missing teeth."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedsec.errors import UsageError
from fedsec.mpc import PROTOCOLS, Cost, Party, multiply, protocol, reveal
from fedsec.ring import RING64, KeyedStream, Ring, RingArray, derive_key
from fedsec.sharing.replicated import RepShare
from fedsec.testing import Additive, Bits, CheckError, Example, Mutant, Secret, check_protocol, view_report
from fedsec.testing.checks import check_cost, check_teeth, check_value, check_view
from fedsec.testing.inputs import rows_of
from fedsec.testing.plugin import SEED_VARIABLE, seed_of_this_run

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
    """The table of p-values in the docs: neither test alone catches all four."""
    report = view_report(Example(multiply, INPUTS), SEED, mutant)

    notices_fixed = {Mutant.NO_MASK, Mutant.LOW_HALF}
    notices_random = {Mutant.NO_MASK, Mutant.KNOWN_TO_ALL, Mutant.USED_TWICE}
    assert (report.fixed < 1e-12) == (mutant in notices_fixed)
    assert (report.random < 1e-12) == (mutant in notices_random)
    assert not report.hides


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
def test_inputs_add_up_and_repeat_one_lane(spec: Secret | Bits) -> None:
    dealt = spec.deal(128, RING64, _stream(), 0)
    one = spec.repeat(spec.deal(1, RING64, _stream(), None), 128)

    join: Callable[..., Any] = np.bitwise_xor.reduce if isinstance(spec, Bits) else np.add.reduce
    for inputs in (dealt, one):
        assert np.array_equal(join(np.stack(inputs.components)), inputs.plain)
    lanes = one.plain.T if isinstance(spec, Bits) else one.plain
    assert np.all(lanes == lanes[0])


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
    made = check_protocol(multiply, inputs=INPUTS)(product)

    (mark,) = made.pytestmark  # type: ignore[attr-defined]
    assert list(mark.args[1]) == ["value", "cost", "view", "teeth"]
    assert made.__name__ == "product"
