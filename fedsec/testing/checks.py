"""The four checks of a protocol: value, cost, view and teeth.

The view check is two tests, ``fixed_inputs`` and ``random_inputs``; each finds mutants that the other misses,
and each module says what its test does not see. They are evidence, not a proof: a protocol's docstring gives
the argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedsec.errors import UsageError
from fedsec.mpc.costs import Cost, ProtocolFunction
from fedsec.ring import RingArray
from fedsec.sharing import boolean, replicated
from fedsec.sharing.boolean import BitShare
from fedsec.sharing.replicated import RepShare
from fedsec.testing.example import CheckError, Example, key_for, record_calls, stream_for
from fedsec.testing.fixed_inputs import p_of_fixed_inputs
from fedsec.testing.inputs import PARTIES
from fedsec.testing.mutants import Mutant
from fedsec.testing.random_inputs import p_of_random_inputs

VIEW_LANES = 1 << 15
VALUE_LANES = 1 << 10
P_LIMIT = 1e-9
"""A p-value below this, corrected for the number of looks, is a leak. A check of an honest protocol has two
of them, so fewer than one in a hundred million fail, the approximate tails included; mutants give 1e-12 and
less."""


@dataclass(frozen=True)
class ViewReport:
    """P-values of the view check, the worst over all parties, corrected for the number of looks.

    Attributes:
        fixed: Of "bytes of messages are uniform while the inputs stay the same, also beside what the receiver
            drew and other messages"; see ``fixed_inputs``.
        random: Of "bits received are fair coins whatever the receiver knows"; see ``random_inputs``.
    """

    fixed: float
    random: float

    @property
    def hides(self) -> bool:
        """Whether neither test found a leak."""
        return min(self.fixed, self.random) >= P_LIMIT

    def __str__(self) -> str:
        return f"fixed inputs p = {self.fixed:.2g}, random inputs p = {self.random:.2g}"


def check_value(example: Example, seed: bytes) -> None:
    """Run the protocol on random and edge values and compare with the plain function.

    Raises:
        CheckError: The results differ, or other parties got one than the example's receivers.
        UsageError: The example has no plain function.
    """
    if example.plain is None:
        raise UsageError("a value check needs the plain function")
    dealt = example.deal(VALUE_LANES, stream_for(seed, "value"), edges=True)
    done = record_calls(example, [dealt], VALUE_LANES, key_for(seed, "value"))
    _require_receivers(example, done.results)
    public = {name: value for name, value in example.inputs.items() if name not in dealt}
    plain = {name: value.plain for name, value in dealt.items()} | public
    expected = np.asarray(example.plain(**{name: plain[name] for name in example.inputs}))
    for result in _joined(done.results):
        if not example.agrees(result, expected):
            wrong = int(np.sum(result != expected)) if result.shape == expected.shape else "all"
            raise CheckError(
                f"{example.name} gives other results than the plain function: {wrong} of {expected.size} "
                f"elements differ, shapes {result.shape} and {expected.shape}"
            )


def check_cost(example: Example, seed: bytes) -> Cost:
    """Compare the declared cost with what the channels counted, and return it.

    Raises:
        CheckError: Rounds or bytes differ.
        UsageError: The protocol was not declared with ``@protocol``.
    """
    if not isinstance(example.protocol, ProtocolFunction):
        raise UsageError(f"{example.name} declares no cost; decorate it with @protocol")
    dealt = example.deal(VALUE_LANES, stream_for(seed, "cost"))
    done = record_calls(example, [dealt], VALUE_LANES, key_for(seed, "cost"))
    for party_id in range(PARTIES):
        declared = example.protocol.cost(**example.arguments(dealt, party_id, VALUE_LANES))
        if declared != done.cost:
            raise CheckError(f"{example.name} declares {declared}, the channels counted {done.cost}")
    return done.cost


def view_report(example: Example, seed: bytes, mutant: Mutant | None = None) -> ViewReport:
    """Run both view tests, on the protocol as it is or with broken streams."""
    return ViewReport(
        fixed=p_of_fixed_inputs(example, VIEW_LANES, key_for(seed, "fixed"), mutant),
        random=p_of_random_inputs(example, VIEW_LANES, key_for(seed, "random"), mutant),
    )


def leaks(example: Example, seed: bytes, mutant: Mutant | None = None) -> bool:
    """Say whether one of the two view tests finds a leak; the cheaper one first, and one is enough."""
    for test, name in ((p_of_random_inputs, "random"), (p_of_fixed_inputs, "fixed")):
        if test(example, VIEW_LANES, key_for(seed, name), mutant) < P_LIMIT:
            return True
    return False


def check_view(example: Example, seed: bytes) -> None:
    """Check that what each party sees tells it nothing, by the two tests or by the example's own simulation.

    Raises:
        CheckError: A leak was found.
    """
    if example.simulated is not None:
        if not _view_is_simulated(example, key_for(seed, "simulated")):
            raise CheckError(
                f"{example.name} sends something that its receiver's arguments and result do not determine"
            )
        return
    report = view_report(example, seed)
    if not report.hides:
        raise CheckError(f"{example.name} leaks: {report}")


def check_teeth(example: Example, seed: bytes) -> None:
    """Check that the view check fails on every broken twin of the protocol.

    Raises:
        CheckError: A broken twin passed the view check.
        UsageError: There is no broken twin: the protocol uses no stream and none was given.
    """
    escaped: list[str] = []
    twins = [replace(example, protocol=broken, broken=()) for broken in example.broken]
    for twin in twins:
        try:
            check_view(twin, seed)
        except CheckError:
            continue
        escaped.append(twin.name)
    if example.simulated is None:
        hidden = [mutant for mutant in Mutant if not leaks(example, seed, mutant)]
        escaped += [f"{mutant.value} ({view_report(example, seed, mutant)})" for mutant in hidden]
    elif not twins:
        raise UsageError(f"{example.name} has no broken twin; a check that nothing can fail proves nothing")
    if escaped:
        raise CheckError(f"the view check of {example.name} does not notice: {', '.join(escaped)}")


def _view_is_simulated(example: Example, seed: bytes) -> bool:
    if example.simulated is None:
        return False
    dealt = example.deal(VIEW_LANES, stream_for(seed, "inputs"))
    done = record_calls(example, [dealt], VIEW_LANES, seed)
    for view, result in zip(done.views, done.results, strict=True):
        arguments = example.arguments(dealt, view.party_id, VIEW_LANES)
        expected = example.simulated(view.party_id, result, **arguments)
        seen = [message.words for message in view.received()]
        if len(seen) != len(expected) or not all(map(np.array_equal, seen, expected)):
            return False
    return True


def _require_receivers(example: Example, results: Sequence[Any]) -> None:
    got = [party_id for party_id, result in enumerate(results) if result is not None]
    if got != sorted(set(example.receivers)):
        raise CheckError(
            f"{example.name} gives a result to parties {got}, it should to {sorted(set(example.receivers))};"
            " an example of a protocol that not all get something from names its receivers"
        )


def _joined(results: Sequence[Any]) -> list[RingArray]:
    """Return the secrets behind three shares, or what each party that got something opened has."""
    if all(isinstance(result, RepShare) for result in results):
        return [replicated.reconstruct(results)]
    if all(isinstance(result, BitShare) for result in results):
        planes = boolean.reconstruct(results)
        return [boolean.unpack_bits(planes, results[0].count)]
    return [np.asarray(result) for result in results if result is not None]
