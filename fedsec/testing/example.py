"""One example of a protocol, and running it recorded: what all four checks work on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from fedsec.errors import UsageError
from fedsec.mpc.party import Party
from fedsec.mpc.simulator import NAMES, Draw, Received, RecordingParty, SimulationResult, View, simulate
from fedsec.ring import RING64, KeyedStream, Ring, RingArray, derive_key
from fedsec.testing.inputs import PARTIES, Dealt, Input
from fedsec.testing.mutants import Mutant, make_stream

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
        receivers: Ids of the parties that get a result; the others must return None.
    """

    protocol: Callable[..., Any]
    inputs: Mapping[str, Any]
    plain: Callable[..., Any] | None = None
    agrees: Agrees = field(default=np.array_equal)
    ring: Ring = RING64
    simulated: Callable[..., list[RingArray]] | None = None
    broken: Sequence[Callable[..., Any]] = ()
    receivers: Sequence[int] = tuple(range(PARTIES))

    def __post_init__(self) -> None:
        """Refuse receivers that are no parties."""
        if not self.receivers or not set(self.receivers) <= set(range(PARTIES)):
            raise UsageError(f"receivers are party ids, 0, 1 or 2, at least one; got {list(self.receivers)}")

    @property
    def name(self) -> str:
        """The protocol's name, for messages."""
        return str(getattr(self.protocol, "__name__", "protocol"))

    @property
    def secrets(self) -> dict[str, Input]:
        """The inputs that are secret."""
        return {name: spec for name, spec in self.inputs.items() if isinstance(spec, Input)}

    def deal(self, lanes: int, stream: KeyedStream, *, edges: bool = False) -> dict[str, Dealt]:
        """Draw all secret inputs; with ``edges``, every combination of edge values is among the lanes."""
        return {
            name: spec.deal(lanes, self.ring, stream, place if edges else None)
            for place, (name, spec) in enumerate(self.secrets.items())
        }

    def arguments(self, dealt: Mapping[str, Dealt], party_id: int, lanes: int) -> dict[str, Any]:
        """Return what one party passes to the protocol beside itself."""
        return {
            name: spec.share(dealt[name], party_id, lanes) if isinstance(spec, Input) else spec
            for name, spec in self.inputs.items()
        }


def record_calls(
    example: Example,
    calls: Sequence[Mapping[str, Dealt]],
    lanes: int,
    seed: bytes,
    mutant: Mutant | None = None,
) -> SimulationResult[Any]:
    """Run the protocol once for each set of inputs, in one recorded session.

    Raises:
        CheckError: A party sent something beside ``Party.exchange``, so the views are not all that was seen.
    """

    def program(party: Party) -> Any:
        result = None
        for i, dealt in enumerate(calls):
            if i and isinstance(party, RecordingParty):
                party.view.next_call()
            result = example.protocol(party, **example.arguments(dealt, party.id, lanes))
        return result

    done = simulate(
        program,
        seed=key_for(seed, "session"),
        record=True,
        ring=example.ring,
        make_stream=partial(make_stream, mutant),
    )
    _require_whole_views(example, done)
    return done


def known_draws(views: Sequence[View], party_id: int, call: int, mutant: Mutant | None) -> list[RingArray]:
    """Return what anyone drew in one call from streams whose keys this party holds, each draw once."""
    drawn = [event for view in views for event in view.calls[call] if isinstance(event, Draw)]
    known = [d.words for d in drawn if party_id in d.pair or mutant is Mutant.KNOWN_TO_ALL]
    known = [words for words in known if words.size]
    return list({(words.shape, words.tobytes()): words for words in known}.values())


def key_for(seed: bytes, purpose: str) -> bytes:
    """Derive the seed of one part of a check."""
    return derive_key(seed, purpose=f"testing/{purpose}")


def stream_for(seed: bytes, purpose: str) -> KeyedStream:
    """Return the stream of one part of a check."""
    return KeyedStream(key_for(seed, purpose))


def _require_whole_views(example: Example, done: SimulationResult[Any]) -> None:
    """Compare the views with what the channels carried, byte by byte, and with what was sent at all."""
    for view, wire in zip(done.views, done.wire, strict=True):
        events = [event for call in view.calls for event in call if isinstance(event, Received)]
        # The wire has one sender after the other, each in order.
        seen = b"".join(e.words.tobytes() for sender in range(PARTIES) for e in events if e.sender == sender)
        me = NAMES[view.party_id]
        sent = [r.size for log in done.logs.values() for r in log if r.event == "send" and r.receiver == me]
        if seen != wire or sum(sent) != len(wire):
            raise CheckError(
                f"{example.name} sent {me} {sum(sent)} bytes, of which {len(seen)} went through"
                " Party.exchange: the view check sees no others. Send with exchange or pass_back only"
            )
