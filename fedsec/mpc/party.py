"""One computing party: its number, its two links and the keyed streams it shares with each neighbour."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np

from fedsec.errors import ProtocolError, UsageError
from fedsec.ring import RING64, KeyedStream, Ring, RingArray, derive_key, ring_of
from fedsec.sharing.replicated import PARTIES
from fedsec.transport import Channel, Deadline, exchange

BIT_WORDS = RING64
"""Bit planes travel and are computed on in words of 64 bits, whatever the ring."""

DEFAULT_WAIT_S = 30.0
"""Longest wait for a neighbour's message; a prediction takes milliseconds, a lost peer is noticed at once."""


class Stream(Protocol):
    """What a party needs of a keyed stream."""

    def words(self, shape: int | tuple[int, ...], ring: Ring = ...) -> RingArray:
        """Return the next ring elements."""


class BlockStreams(Protocol):
    """The streams of dealt material: one of its own for every block."""

    def block(self, context: bytes) -> Stream:
        """Return the stream of the block that ``context`` names; a context is used once."""


@dataclass(frozen=True, slots=True)
class PairStreams:
    """The streams that two parties share and the third does not know, one key a purpose."""

    zero_words: Stream
    zero_bits: Stream
    masks: Stream
    dealt: BlockStreams


STREAM_PURPOSES = ("mpc/zero words", "mpc/zero bits", "mpc/masks")
DEALT_PURPOSE = "mpc/dealt"


class DealtStreams:
    """A key for each block of dealt material, from one secret of the pair.

    Were all blocks cut from one stream, a party that prepares another block than the dealer would take as a
    mask what the dealer took as a share: two messages under one mask. So the context names everything that
    the ends must agree on; ends that do not get unrelated words.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def block(self, context: bytes) -> KeyedStream:
        """Return the stream of a block."""
        return KeyedStream(derive_key(self._secret, purpose="mpc/dealt block", context=context))


def pair_streams(secret: bytes) -> PairStreams:
    """Derive the streams of a pair from its session secret, one key a purpose."""
    words, bits, masks = (KeyedStream(derive_key(secret, purpose=purpose)) for purpose in STREAM_PURPOSES)
    return PairStreams(words, bits, masks, DealtStreams(derive_key(secret, purpose=DEALT_PURPOSE)))


@dataclass(frozen=True, slots=True)
class Layout:
    """Shape and ring of one array inside a message; its size is known before the message comes."""

    shape: tuple[int, ...]
    ring: Ring

    @classmethod
    def of(cls, words: RingArray) -> Layout:
        """Return the layout of an array like ``words``."""
        return cls(words.shape, ring_of(words))

    @property
    def size_bytes(self) -> int:
        """Bytes on the wire: little-endian words in C order."""
        return prod(self.shape) * self.ring.element_bytes


class Party:
    """This process' side of a three-party session.

    Every party runs the same protocol functions, each on its own shares. A party is used by one thread. When
    a wait fails, the streams of the three parties may stand at different places, so the session is over:
    every later exchange raises, and a new session with new keys is needed.

    Attributes:
        id: 0, 1 or 2. Party i holds the components i ("own") and i + 1 ("next") of a replicated sharing.
        ring: The ring of this session.
        wait_s: Longest wait for one message in seconds.
    """

    def __init__(
        self,
        party_id: int,
        *,
        previous: Channel,
        following: Channel,
        previous_streams: PairStreams,
        following_streams: PairStreams,
        ring: Ring = RING64,
        wait_s: float = DEFAULT_WAIT_S,
    ) -> None:
        """Join a session whose keys are already agreed; ``session.establish`` is the usual way.

        Args:
            party_id: 0, 1 or 2.
            previous: Link to party id - 1.
            following: Link to party id + 1.
            previous_streams: Streams shared with party id - 1.
            following_streams: Streams shared with party id + 1.
            ring: Ring of the session.
            wait_s: Longest wait for one message in seconds.

        Raises:
            UsageError: The id is not 0, 1 or 2.
        """
        if party_id not in range(PARTIES):
            raise UsageError(f"a computing party has id 0, 1 or 2, got {party_id}")
        self.id = party_id
        self.ring = ring
        self.wait_s = wait_s
        self._channels = {self.previous_id: previous, self.following_id: following}
        self._streams = {self.previous_id: previous_streams, self.following_id: following_streams}
        self._labels = ["session"]
        self._over = False
        self._blocks = 0

    def __repr__(self) -> str:
        return f"Party(id={self.id}, ring={self.ring})"

    @property
    def previous_id(self) -> int:
        """Id of the party before this one in the circle 0, 1, 2."""
        return (self.id - 1) % PARTIES

    @property
    def following_id(self) -> int:
        """Id of the party after this one in the circle 0, 1, 2."""
        return (self.id + 1) % PARTIES

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Label the messages inside with ``name``, below the label of the protocol that is running.

        Any error inside ends the session at this party. It may have taken stream words that the others did
        not: went it on, the words that mask its next message could be those that party 0 has dealt with.
        """
        outer = self._labels[-1]
        self._labels.append(name if len(self._labels) == 1 else f"{outer}/{name}")
        try:
            yield
        except BaseException:
            self.end()
            raise
        finally:
            self._labels.pop()

    def stream_with(self, other: int) -> Stream:
        """Return the mask stream shared with party ``other``.

        Both must take the same amounts in the same order.

        Raises:
            UsageError: ``other`` is this party or no party.
        """
        self._require_neighbour(other)
        return self._streams[other].masks

    def _require_neighbour(self, other: int) -> None:
        if other not in self._streams:
            raise UsageError(
                f"party {self.id} shares streams with parties {sorted(self._streams)}, not with {other}"
            )

    def dealt_stream_with(self, other: int, context: bytes) -> Stream:
        """Return the stream of one block of dealt material that is shared with party ``other``.

        Args:
            other: Another party.
            context: Names the block: its index from ``take_index``, and all that the ends must agree on.

        Raises:
            UsageError: ``other`` is this party or no party.
        """
        self._require_neighbour(other)
        return self._streams[other].dealt.block(context)

    def take_index(self) -> int:
        """Return the number of the next dealt block of this session; no block ever gets it again."""
        self._blocks += 1
        return self._blocks - 1

    def end(self) -> None:
        """End the session at this party: every later exchange raises."""
        self._over = True

    def require_open(self) -> None:
        """Refuse to go on in a session that has ended.

        Raises:
            ProtocolError: It has.
        """
        if self._over:
            raise ProtocolError(
                f"the session of party {self.id} ended with an earlier error; establish a new one"
            )

    def zero_share(self, shape: tuple[int, ...], ring: Ring | None = None) -> RingArray:
        """Return this party's part of a fresh additive sharing of zeros: F(k_(i-1,i)) - F(k_(i,i+1)).

        Neither other party knows both streams, so to each of them the part is uniform. The ring is the
        session's if not given.
        """
        earlier = self._streams[self.previous_id].zero_words.words(shape, ring or self.ring)
        earlier -= self._streams[self.following_id].zero_words.words(shape, ring or self.ring)
        return earlier

    def zero_bits(self, shape: tuple[int, ...]) -> RingArray:
        """Return this party's part of a fresh XOR sharing of zeros: 64-bit words of bit planes."""
        earlier = self._streams[self.previous_id].zero_bits.words(shape, BIT_WORDS)
        earlier ^= self._streams[self.following_id].zero_bits.words(shape, BIT_WORDS)
        return earlier

    def pass_back(self, words: RingArray) -> RingArray:
        """Send ``words`` to the previous party and return what the following one sent; one round.

        All three parties pass arrays of one shape and dtype.

        Raises:
            PeerLostError, DeadlineError, ProtocolError: As ``exchange``.
        """
        layout = Layout.of(words)
        received = self.exchange({self.previous_id: [words]}, {self.following_id: [layout]})
        return received[self.following_id][0]

    def swap(self, other: int, words: RingArray) -> RingArray:
        """Send ``words`` to party ``other`` and return what it sent; one round, of two parties only.

        Both pass arrays of one shape and dtype.

        Raises:
            PeerLostError, DeadlineError, ProtocolError: As ``exchange``.
        """
        self.require_open()
        data = words.data if words.flags.c_contiguous else np.ascontiguousarray(words).data
        self._over = True
        message = self._channels[other].swap(self._labels[-1], data, Deadline.after(self.wait_s))
        self._over = False
        received: RingArray = np.ndarray(words.shape, words.dtype, message)
        return received

    def exchange(
        self,
        sends: Mapping[int, Sequence[RingArray]],
        receives: Mapping[int, Sequence[Layout]],
    ) -> dict[int, list[RingArray]]:
        """Send arrays to and receive arrays from the other parties at the same time; at most one round.

        Args:
            sends: Arrays for each receiver; those for one receiver make one message.
            receives: Layout of the arrays expected from each sender.

        Returns:
            The arrays of each sender.

        Raises:
            PeerLostError: A named party closed its link. The session is over.
            DeadlineError: A named party did not send within ``wait_s``. The session is over.
            ProtocolError: A message has another label, sequence or size than expected, or the session was
                over before.
        """
        self.require_open()
        label = self._labels[-1]
        outgoing = [(self._channels[to], label, _pack(arrays)) for to, arrays in sends.items()]
        incoming = [
            (self._channels[sender], label, sum(layout.size_bytes for layout in layouts))
            for sender, layouts in receives.items()
        ]
        self._over = True
        messages = exchange(outgoing, incoming, Deadline.after(self.wait_s))
        self._over = False
        return {
            sender: _unpack(message, layouts)
            for (sender, layouts), message in zip(receives.items(), messages, strict=True)
        }


def _pack(arrays: Sequence[RingArray]) -> memoryview | bytes:
    """Return the little-endian words of all arrays in order; a single array is not copied."""
    if len(arrays) == 1 and arrays[0].flags.c_contiguous:
        return arrays[0].data
    views = [np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for array in arrays]
    return views[0] if len(views) == 1 else b"".join(views)


def _unpack(message: bytearray, layouts: Sequence[Layout]) -> list[RingArray]:
    if len(layouts) == 1:
        return [_words_of(message, layouts[0], 0)]
    arrays: list[RingArray] = []
    start = 0
    for layout in layouts:
        arrays.append(_words_of(message, layout, start))
        start += layout.size_bytes
    return arrays


def _words_of(message: bytearray, layout: Layout, start: int) -> RingArray:
    words: RingArray = np.ndarray(layout.shape, layout.ring.dtype, message, start)
    return words
