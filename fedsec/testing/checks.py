"""The four checks of a protocol: value, cost, view and teeth.

The view check is two tests. *Fixed inputs*: only the streams vary, so every byte of every message must be
uniform. *Random inputs*: each bit that a party receives must be a fair coin, whatever is known of the inputs
(bits of all components, so of the secrets too), of the receiver's streams and of its earlier messages; two
calls in one session are looked at together. Each test misses mutants that the other finds. They are evidence,
not a proof: a protocol's docstring gives the argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from fedsec.errors import UsageError
from fedsec.mpc.costs import Cost, ProtocolFunction
from fedsec.mpc.party import Party
from fedsec.mpc.simulator import Draw, RecordingParty, SimulationResult, View, simulate
from fedsec.ring import RING64, KeyedStream, Ring, RingArray, derive_key
from fedsec.sharing import boolean, replicated
from fedsec.sharing.boolean import BitShare
from fedsec.sharing.replicated import RepShare
from fedsec.testing.inputs import PARTIES, Dealt, Input, Row, are_planes, rows_of
from fedsec.testing.mutants import Mutant, make_stream
from fedsec.testing.statistics import (
    CELL_BITS,
    Span,
    fair_by_parity,
    fair_in_cells,
    row_as_integer,
    uniform_bytes,
)

VIEW_LANES = 1 << 15
VALUE_LANES = 1 << 10
P_LIMIT = 1e-9
"""A p-value below this is a leak; honest protocols give one in a billion checks, mutants 1e-12 and less."""

CALLS = 2

Agrees = Callable[[RingArray, RingArray], bool]


class CheckError(AssertionError):
    """A protocol failed one of its checks."""


@dataclass(frozen=True)
class Example:
    """A protocol with everything its checks need.

    Attributes:
        protocol: The protocol, declared with ``@protocol``, or a broken twin of one.
        inputs: Its arguments without the party, by name: ``Secret``, ``Additive``, ``Bits``, or a public
            value.
        plain: The same function of the secrets in the clear.
        agrees: Whether result and plain result agree; equality of all words if not given.
        ring: Ring of the session.
        simulated: For protocols that open something: the messages that party i receives, computed from its
            own arguments and the result alone (party id, result, *arguments) -> list of arrays. Replaces the
            view check's two tests.
        broken: Further twins of the protocol, broken by hand, that the view check must catch.
    """

    protocol: Callable[..., Any]
    inputs: Mapping[str, Any]
    plain: Callable[..., Any] | None = None
    agrees: Agrees = field(default=np.array_equal)
    ring: Ring = RING64
    simulated: Callable[..., list[RingArray]] | None = None
    broken: Sequence[Callable[..., Any]] = ()


@dataclass(frozen=True)
class ViewReport:
    """P-values of the view check, the worst over all parties, corrected for the number of looks.

    Attributes:
        fixed: Of "every byte of every message is uniform while the inputs stay the same".
        random: Of "every bit received is a fair coin whatever the receiver knows".
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
        CheckError: The results differ.
        UsageError: The example has no plain function.
    """
    if example.plain is None:
        raise UsageError("a value check needs the plain function")
    stream = _stream(seed, "value")
    places = {name: i for i, name in enumerate(_secrets(example))}
    dealt = {
        name: spec.deal(VALUE_LANES, example.ring, stream, places[name])
        for name, spec in _secrets(example).items()
    }
    done = simulate(
        lambda party: example.protocol(party, **_arguments(example, dealt, party.id, VALUE_LANES)),
        seed=_key(seed, "value session"),
        ring=example.ring,
    )
    public = {name: value for name, value in example.inputs.items() if name not in dealt}
    plain = {name: value.plain for name, value in dealt.items()} | public
    expected = np.asarray(example.plain(**{name: plain[name] for name in example.inputs}))
    for result in _joined(done.results):
        if not example.agrees(result, expected):
            wrong = int(np.sum(result != expected)) if result.shape == expected.shape else "all"
            raise CheckError(
                f"{_name(example)} gives other results than the plain function: {wrong} of {expected.size} "
                f"elements differ, shapes {result.shape} and {expected.shape}"
            )


def check_cost(example: Example, seed: bytes) -> Cost:
    """Compare the declared cost with what the channels counted, and return it.

    Raises:
        CheckError: Rounds or bytes differ.
        UsageError: The protocol was not declared with ``@protocol``.
    """
    if not isinstance(example.protocol, ProtocolFunction):
        raise UsageError(f"{_name(example)} declares no cost; decorate it with @protocol")
    stream = _stream(seed, "cost")
    dealt = {
        name: spec.deal(VALUE_LANES, example.ring, stream, None) for name, spec in _secrets(example).items()
    }
    done = simulate(
        lambda party: example.protocol(party, **_arguments(example, dealt, party.id, VALUE_LANES)),
        seed=_key(seed, "cost session"),
        record=True,
        ring=example.ring,
    )
    for party_id in range(PARTIES):
        declared = example.protocol.cost(**_arguments(example, dealt, party_id, VALUE_LANES))
        if declared != done.cost:
            raise CheckError(f"{_name(example)} declares {declared}, the channels counted {done.cost}")
    return done.cost


def view_report(example: Example, seed: bytes, mutant: Mutant | None = None) -> ViewReport:
    """Run both view tests, on the protocol as it is or with broken streams."""
    return ViewReport(
        fixed=_fixed_inputs(example, _key(seed, "fixed"), mutant),
        random=_random_inputs(example, _key(seed, "random"), mutant),
    )


def check_view(example: Example, seed: bytes) -> None:
    """Check that what each party sees tells it nothing, by the two tests or by the example's own simulation.

    Raises:
        CheckError: A leak was found.
    """
    if example.simulated is not None:
        if not _view_is_simulated(example, _key(seed, "simulated")):
            raise CheckError(
                f"{_name(example)} sends something that its receiver's arguments and result do not determine"
            )
        return
    report = view_report(example, seed)
    if not report.hides:
        raise CheckError(f"{_name(example)} leaks: {report}")


def check_teeth(example: Example, seed: bytes) -> None:
    """Check that the view check fails on every broken twin of the protocol.

    Raises:
        CheckError: A broken twin passed the view check.
        UsageError: There is no broken twin: the protocol uses no stream and none was given.
    """
    escaped: list[str] = []
    twins = [Example(**{**example.__dict__, "protocol": broken, "broken": ()}) for broken in example.broken]
    for twin in twins:
        try:
            check_view(twin, seed)
        except CheckError:
            continue
        escaped.append(_name(twin))
    if example.simulated is None:
        reports = {mutant: view_report(example, seed, mutant) for mutant in Mutant}
        escaped += [f"{mutant.value} ({report})" for mutant, report in reports.items() if report.hides]
    elif not twins:
        raise UsageError(f"{_name(example)} has no broken twin; a check that nothing can fail proves nothing")
    if escaped:
        raise CheckError(f"the view check of {_name(example)} does not notice: {', '.join(escaped)}")


def _fixed_inputs(example: Example, seed: bytes, mutant: Mutant | None) -> float:
    stream = _stream(seed, "inputs")
    dealt = {
        name: spec.repeat(spec.deal(1, example.ring, stream, None), VIEW_LANES)
        for name, spec in _secrets(example).items()
    }
    done = _session(example, [dealt], seed, mutant)
    worst, looks = 1.0, 0
    for view in done.views:
        for message in view.received():
            samples = np.ascontiguousarray(message.words).view(np.uint8)
            planes = are_planes(message.words, VIEW_LANES)
            samples = samples.reshape(len(message.words), -1).T if planes else samples.reshape(VIEW_LANES, -1)
            worst, looks = min(worst, uniform_bytes(samples)), looks + 1
    return min(1.0, worst * max(looks, 1))


def _random_inputs(example: Example, seed: bytes, mutant: Mutant | None) -> float:
    stream = _stream(seed, "inputs")
    calls = [
        {name: spec.deal(VIEW_LANES, example.ring, stream, None) for name, spec in _secrets(example).items()}
        for _ in range(CALLS)
    ]
    done = _session(example, calls, seed, mutant)
    inputs = [
        [row for name, spec in _secrets(example).items() for row in spec.knowledge(dealt[name], VIEW_LANES)]
        for dealt in calls
    ]
    worst, looks = 1.0, 0
    for view in done.views:
        known = [row for rows in inputs for row in rows]
        known += _known_streams(done.views, view.party_id, mutant)
        p, targets = _coins(view, known, inputs)
        worst, looks = min(worst, p), looks + targets
    return min(1.0, worst * max(looks, 1))


def _coins(view: View, known: list[Row], inputs: Sequence[list[Row]]) -> tuple[float, int]:
    """Return the worst p-value over the bits that a party received, and their number."""
    span = Span(VIEW_LANES)
    for row in known:
        span.add(row_as_integer(row))
    rows = [
        [row for message in view.received(call) for row in rows_of(message.words, VIEW_LANES)]
        for call in range(CALLS)
    ]
    worst = 1.0
    seen = np.array(known, dtype=np.uint64).reshape(len(known), VIEW_LANES // 64)
    for call in range(CALLS):
        for i, target in enumerate(rows[call]):
            if not span.add(row_as_integer(target)):
                return 0.0, sum(map(len, rows))  # an XOR of known bits: no coin at all
            # Cells of what stands nearest: the same bit of the call before, and the inputs.
            near = [rows[0][i]] if call and i < len(rows[0]) else []
            near += [row for pair in zip(*inputs, strict=True) for row in pair] if call else inputs[0]
            worst = min(worst, fair_by_parity(target, seen), fair_in_cells(target, near[:CELL_BITS]))
            seen = np.concatenate([seen, target[np.newaxis]])
    return worst, sum(map(len, rows))


def _known_streams(views: Sequence[View], party_id: int, mutant: Mutant | None) -> list[Row]:
    """Return bits of everything that anyone drew from a stream whose key this party holds."""
    rows: dict[bytes, Row] = {}
    events = [event for view in views for call in view.calls for event in call if isinstance(event, Draw)]
    for event in events:
        # Words drawn once for all lanes are a constant of every lane, which is known anyway.
        varies = are_planes(event.words, VIEW_LANES) or event.words.size % VIEW_LANES == 0
        if varies and (party_id in event.pair or mutant is Mutant.KNOWN_TO_ALL):
            rows |= {row.tobytes(): row for row in rows_of(event.words, VIEW_LANES)}
    return list(rows.values())


def _session(
    example: Example, calls: Sequence[Mapping[str, Dealt]], seed: bytes, mutant: Mutant | None
) -> SimulationResult[Any]:
    """Run the protocol once for each set of inputs, in one recorded session."""

    def program(party: Party) -> Any:
        result = None
        for i, dealt in enumerate(calls):
            if i and isinstance(party, RecordingParty):
                party.view.next_call()
            result = example.protocol(party, **_arguments(example, dealt, party.id, VIEW_LANES))
        return result

    return simulate(
        program,
        seed=_key(seed, "session"),
        record=True,
        ring=example.ring,
        make_stream=partial(make_stream, mutant),
    )


def _view_is_simulated(example: Example, seed: bytes) -> bool:
    if example.simulated is None:
        return False
    stream = _stream(seed, "inputs")
    dealt = {
        name: spec.deal(VIEW_LANES, example.ring, stream, None) for name, spec in _secrets(example).items()
    }
    done = _session(example, [dealt], seed, None)
    for view, result in zip(done.views, done.results, strict=True):
        arguments = _arguments(example, dealt, view.party_id, VIEW_LANES)
        expected = example.simulated(view.party_id, result, **arguments)
        seen = [message.words for message in view.received()]
        if len(seen) != len(expected) or not all(map(np.array_equal, seen, expected)):
            return False
    return True


def _secrets(example: Example) -> dict[str, Input]:
    return {name: spec for name, spec in example.inputs.items() if isinstance(spec, Input)}


def _arguments(example: Example, dealt: Mapping[str, Dealt], party_id: int, lanes: int) -> dict[str, Any]:
    return {
        name: spec.share(dealt[name], party_id, lanes) if isinstance(spec, Input) else spec
        for name, spec in example.inputs.items()
    }


def _joined(results: Sequence[Any]) -> list[RingArray]:
    """Return the secrets behind three shares, or what each party that got something opened has."""
    if all(isinstance(result, RepShare) for result in results):
        return [replicated.reconstruct(results)]
    if all(isinstance(result, BitShare) for result in results):
        planes = boolean.reconstruct(results)
        return [boolean.unpack_bits(planes, results[0].count)]
    return [np.asarray(result) for result in results if result is not None]


def _name(example: Example) -> str:
    return str(getattr(example.protocol, "__name__", "protocol"))


def _key(seed: bytes, purpose: str) -> bytes:
    return derive_key(seed, purpose=f"testing/{purpose}")


def _stream(seed: bytes, purpose: str) -> KeyedStream:
    return KeyedStream(_key(seed, purpose))
