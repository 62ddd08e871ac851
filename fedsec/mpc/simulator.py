"""All three parties in one process, over channels in memory: for tests, lessons and experiments.

The parties run the code that real ones run, a thread each; only the sockets and the key agreement are
replaced. One process holds every share here, so a simulation protects nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Generic, TypeVar

from fedsec.errors import PeerLostError
from fedsec.mpc.costs import Cost
from fedsec.mpc.party import (
    DEALT_PURPOSE,
    DEFAULT_WAIT_S,
    STREAM_PURPOSES,
    BlockStreams,
    DealtStreams,
    Layout,
    PairStreams,
    Party,
    Stream,
)
from fedsec.ring import RING64, KeyedStream, Ring, RingArray, derive_key, fresh_key
from fedsec.sharing.replicated import PARTIES
from fedsec.transport import MemoryChannel, MessageRecord, Meter, bytes_of, memory_mesh, rounds_of

T = TypeVar("T")

NAMES = ("party-0", "party-1", "party-2")
Pair = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """Words that a party took from a stream it shares with one neighbour."""

    pair: Pair
    words: RingArray


@dataclass(frozen=True, slots=True, eq=False)
class Received:
    """One array of a message that a party received.

    Attributes:
        sender: Id of the sender.
        label: Label of the message.
        words: The array.
        answered: What the party sent to the sender at the same place of the same exchange, if it is of the
            same kind: two parties that open something between them add up both.
    """

    sender: int
    label: str
    words: RingArray
    answered: RingArray | None = None


@dataclass(frozen=True, slots=True)
class View:
    """What one party saw beyond its inputs: its stream words and the messages it received, in order.

    ``calls`` has one list of events for each protocol call that a program separates with ``next_call``.
    """

    party_id: int
    calls: list[list[Draw | Received]] = field(default_factory=lambda: [[]])

    def next_call(self) -> None:
        """Begin the events of another call."""
        self.calls.append([])

    def add(self, event: Draw | Received) -> None:
        """Append an event to the current call."""
        self.calls[-1].append(event)

    def received(self, call: int = 0) -> list[Received]:
        """Return the arrays received in one call."""
        return [event for event in self.calls[call] if isinstance(event, Received)]


MakeStream = Callable[[bytes, View], Stream]
"""Makes the stream of a key for the party whose view is given; a test puts broken streams in here."""


def honest_stream(key: bytes, view: View) -> Stream:
    """Return the keyed stream that real parties use."""
    return KeyedStream(key)


class RecordingStream:
    """A stream that notes in a view what was taken from it."""

    def __init__(self, inner: Stream, pair: Pair, view: View) -> None:
        self._inner = inner
        self._pair = pair
        self._view = view

    def words(self, shape: int | tuple[int, ...], ring: Ring = RING64) -> RingArray:
        """Return the next ring elements."""
        taken = self._inner.words(shape, ring)
        self._view.add(Draw(self._pair, taken.copy()))
        return taken


class _OneStream:
    """A broken stream for all dealt blocks of a pair: a test breaks words, not how keys are derived."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def block(self, context: bytes) -> Stream:
        """Return the one stream."""
        return self._stream


class _RecordingBlocks:
    """Streams of dealt blocks that note in a view what was taken from them."""

    def __init__(self, inner: BlockStreams, pair: Pair, view: View) -> None:
        self._inner = inner
        self._pair = pair
        self._view = view

    def block(self, context: bytes) -> Stream:
        """Return the stream of a block."""
        return RecordingStream(self._inner.block(context), self._pair, self._view)


class RecordingParty(Party):
    """A party of a recorded simulation; ``view`` is what it saw so far."""

    view: View

    def exchange(
        self, sends: Mapping[int, Sequence[RingArray]], receives: Mapping[int, Sequence[Layout]]
    ) -> dict[int, list[RingArray]]:
        """Exchange as every party does, and note what came."""
        label = self._labels[-1]
        messages = super().exchange(sends, receives)
        for sender, arrays in messages.items():
            for place, words in enumerate(arrays):
                mine = sends[sender][place] if place < len(sends.get(sender, ())) else None
                alike = mine is not None and mine.shape == words.shape and mine.dtype == words.dtype
                answered = mine.copy() if mine is not None and alike else None
                self.view.add(Received(sender, label, words.copy(), answered))
        return messages

    def swap(self, other: int, words: RingArray) -> RingArray:
        """Swap as every party does, and note what came."""
        return self.exchange({other: [words]}, {other: [Layout.of(words)]})[other][0]


@dataclass(frozen=True, slots=True)
class SimulationResult(Generic[T]):
    """What the three parties returned and, if recorded, what they sent and saw.

    Attributes:
        results: The program's result at party 0, 1 and 2.
        logs: Message log of each party, by name, as the channels counted; empty unless recorded.
        views: View of each party; empty unless recorded.
        wire: The payload bytes that each party received, as the channels kept them; empty unless recorded.
    """

    results: tuple[T, T, T]
    logs: dict[str, list[MessageRecord]]
    views: tuple[View, ...]
    wire: tuple[bytes, ...]

    @property
    def cost(self) -> Cost:
        """The cost as counted at the channels: longest dependent chain, and bytes each party sent."""
        sent = bytes_of(self.logs)
        first, second, third = (sent.get(name, 0) for name in NAMES)
        return Cost(rounds_of(self.logs), (first, second, third))


def simulate(
    program: Callable[[Party], T],
    *,
    seed: bytes | None = None,
    record: bool = False,
    ring: Ring = RING64,
    wait_s: float = DEFAULT_WAIT_S,
    make_stream: MakeStream = honest_stream,
) -> SimulationResult[T]:
    """Run a program as all three parties at once and return what each of them returned.

    Args:
        program: Called once a party, in its own thread, with that party.
        seed: 32 bytes that fix all pairwise keys, for test vectors; fresh keys if not given.
        record: Keep message logs and views.
        ring: Ring of the session.
        wait_s: Longest wait for one message in seconds.
        make_stream: Makes each party's streams; only tests of broken randomness replace it.

    Raises:
        Whatever the program raised first; the other parties are woken up.
    """
    mesh = memory_mesh(NAMES, record=record)
    views = [View(i) for i in range(PARTIES)]
    secrets = {pair: _pair_key(seed, pair) for pair in combinations(range(PARTIES), 2)}
    meters = [Meter(logging=record) for _ in NAMES]
    for (me, _other), channel in mesh.items():
        channel.meter = meters[NAMES.index(me)]

    def join(i: int) -> Party:
        previous, following = (i - 1) % PARTIES, (i + 1) % PARTIES
        party = (RecordingParty if record else Party)(
            i,
            previous=mesh[NAMES[i], NAMES[previous]],
            following=mesh[NAMES[i], NAMES[following]],
            previous_streams=_streams(secrets, (previous, i), views[i], make_stream, record=record),
            following_streams=_streams(secrets, (i, following), views[i], make_stream, record=record),
            ring=ring,
            wait_s=wait_s,
        )
        if isinstance(party, RecordingParty):
            party.view = views[i]
        return party

    results = _run(program, [join(i) for i in range(PARTIES)], mesh)
    return SimulationResult(
        results=results,
        logs={name: list(meter.log) for name, meter in zip(NAMES, meters, strict=True)} if record else {},
        views=tuple(views) if record else (),
        wire=tuple(_wire(mesh, name) for name in NAMES) if record else (),
    )


def _pair_key(seed: bytes | None, pair: Pair) -> bytes:
    if seed is None:
        return fresh_key()
    return derive_key(seed, purpose="mpc/simulated pair secret", context=bytes(pair))


def _streams(
    secrets: Mapping[Pair, bytes], ends: Pair, view: View, make_stream: MakeStream, *, record: bool
) -> PairStreams:
    pair = (min(ends), max(ends))
    words, bits, masks = (
        make_stream(derive_key(secrets[pair], purpose=purpose), view) for purpose in STREAM_PURPOSES
    )
    secret = derive_key(secrets[pair], purpose=DEALT_PURPOSE)
    honest = make_stream is honest_stream
    dealt: BlockStreams = DealtStreams(secret) if honest else _OneStream(make_stream(secret, view))
    if record:
        words, bits, masks = (RecordingStream(stream, pair, view) for stream in (words, bits, masks))
        dealt = _RecordingBlocks(dealt, pair, view)
    return PairStreams(words, bits, masks, dealt)


def _wire(mesh: Mapping[tuple[str, str], MemoryChannel], name: str) -> bytes:
    return b"".join(
        payload
        for (me, _other), channel in mesh.items()
        if me == name
        for _label, payload in channel.received
    )


def _run(
    program: Callable[[Party], T], parties: Sequence[Party], mesh: Mapping[tuple[str, str], MemoryChannel]
) -> tuple[T, T, T]:
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def body(party: Party) -> None:
        try:
            results[party.id] = program(party)
        except BaseException as error:
            # Whatever it is, the caller's thread raises it again.
            errors.append(error)
            # Those who wait for this party would otherwise wait until their deadline.
            for channel in mesh.values():
                channel.interrupt()

    threads = [threading.Thread(target=body, args=(party,), name=NAMES[party.id]) for party in parties]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        # The first error that is not merely the echo of another party's.
        raise next((error for error in errors if not isinstance(error, PeerLostError)), errors[0])
    return results[0], results[1], results[2]
