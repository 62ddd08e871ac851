"""The material of one block: drawn from pairwise streams, dealt in one message."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedsec.mpc.dealt.gates import DEALER, FIRST, SECOND, Fields, Gate, Masks
from fedsec.mpc.party import Layout, Party, Stream
from fedsec.ring import KeyedStream, RingArray, ring_of

Buffer = npt.NDArray[np.uint8]


class Placement:
    """Where the arrays of a block lie in one buffer: the widest words first, so that all are aligned."""

    def __init__(self, fields: Sequence[Layout], images: int) -> None:
        """Place fields, given for one image, for a number of images."""
        self.layouts = [Layout((images, *layout.shape), layout.ring) for layout in fields]
        self.order = sorted(range(len(fields)), key=lambda i: -fields[i].ring.bits)
        starts = [0] * len(fields)
        self.size = 0
        for i in self.order:
            starts[i] = self.size
            self.size += self.layouts[i].size_bytes
        self._places = [
            (layout.shape, layout.ring.dtype, start)
            for layout, start in zip(self.layouts, starts, strict=True)
        ]

    def buffer(self) -> Buffer:
        """Return memory for all arrays."""
        return np.empty(self.size, dtype=np.uint8)

    def views(self, buffer: Buffer) -> list[RingArray]:
        """Return the arrays that lie in a buffer."""
        memory = buffer.data
        return [np.ndarray(shape, dtype, memory, start) for shape, dtype, start in self._places]

    def fill(self, buffer: Buffer, arrays: Sequence[RingArray], stream: Stream) -> None:
        """Overwrite the arrays in a buffer, in the order in which they lie, with words of a stream."""
        if isinstance(stream, KeyedStream):
            stream.fill(buffer)
            return
        # A stream that is watched or broken by a test shows what is taken for what.
        for i in self.order:
            arrays[i][...] = stream.words(arrays[i].shape, ring_of(arrays[i]))

    def drawn(self, stream: Stream) -> list[RingArray]:
        """Return new arrays filled from a stream."""
        buffer = self.buffer()
        arrays = self.views(buffer)
        self.fill(buffer, arrays, stream)
        return arrays


@dataclass(frozen=True, slots=True)
class Part:
    """What one gate gets of a block.

    Attributes:
        shares: The dealt fields, [N, *shape]: at the dealer and at evaluator 1 the words of their stream, at
            evaluator 2 what the dealer sent.
        masks: At an evaluator those parts of joint words that both evaluators know, then its parts of the
            masks.
        pairs: At the dealer the two parts of each joint word that it knows, then both parts of each mask.
    """

    shares: list[RingArray]
    masks: list[RingArray] = field(default_factory=list)
    pairs: list[Masks] = field(default_factory=list)


class Supply:
    """The material of blocks of one size for some gates; it places the arrays once for all blocks."""

    def __init__(self, gates: Sequence[Gate], images: int) -> None:
        """Place the arrays.

        Args:
            gates: The gates in the order in which they are prepared.
            images: Images of a block.
        """
        self._gates = gates
        fields = sum((gate.fields for gate in gates), Fields())
        self._dealt, self._masks = Placement(fields.dealt, images), Placement(fields.masks, images)
        self._joint = Placement(fields.joint, images)
        # The dealer's arrays, which it needs until a block is sent and then for the next one.
        self._outgoing: Buffer | None = None
        self._shares: list[RingArray] = []
        self._parts: list[tuple[Buffer, list[RingArray]]] = []

    def parts(self, party: Party, context: bytes) -> list[Part]:
        """Draw this party's words of the next block; evaluator 2 waits for the dealer's message.

        At the dealer the arrays are those of the block before: that must have been sent.

        Args:
            party: This party.
            context: Names the block; see ``Party.dealt_stream_with``.

        Returns:
            Each gate's part, in order.

        Raises:
            PeerLostError, DeadlineError, ProtocolError: As ``Party.exchange``.
        """
        if party.id == DEALER:
            return self._parts_of_dealer(party, context)
        stream = party.dealt_stream_with(DEALER, context)
        shares = self._dealt.drawn(stream) if party.id == FIRST else self._received(party)
        masks, joint = self._masks.drawn(stream), self._drawn_jointly(party, context)
        return [
            Part(shares[dealt], masks=joint[ours] + masks[open_]) for dealt, open_, ours in self._slices()
        ]

    def _drawn_jointly(self, party: Party, context: bytes) -> list[RingArray]:
        """Return an evaluator's words from the stream that the dealer does not know."""
        if not self._joint.size:
            return []
        other = SECOND if party.id == FIRST else FIRST
        return self._joint.drawn(party.dealt_stream_with(other, context))

    def _parts_of_dealer(self, party: Party, context: bytes) -> list[Part]:
        if self._outgoing is None:
            self._outgoing = self._dealt.buffer()
            self._shares = self._dealt.views(self._outgoing)
            buffers = [self._masks.buffer() for _ in (FIRST, SECOND)]
            self._parts = [(buffer, self._masks.views(buffer)) for buffer in buffers]
        first, second = (party.dealt_stream_with(other, context) for other in (FIRST, SECOND))
        # What evaluator 1 draws the gates overwrite by what evaluator 2 gets.
        self._dealt.fill(self._outgoing, self._shares, first)
        for (buffer, arrays), stream in zip(self._parts, (first, second), strict=True):
            self._masks.fill(buffer, arrays, stream)
        pairs = list(zip(self._parts[0][1], self._parts[1][1], strict=True))
        # Last of what is drawn: an evaluator has no use for its part and leaves it in the stream.
        joint = list(zip(self._joint.drawn(first), self._joint.drawn(second), strict=True))
        return [
            Part(self._shares[dealt], pairs=joint[ours] + pairs[open_])
            for dealt, open_, ours in self._slices()
        ]

    def _received(self, party: Party) -> list[RingArray]:
        placement = self._dealt
        layouts = [placement.layouts[i] for i in placement.order]
        received = party.exchange({}, {DEALER: layouts})[DEALER] if layouts else []
        arrays = dict(zip(placement.order, received, strict=True))
        return [arrays[i] for i in range(len(layouts))]

    def _slices(self) -> Iterator[tuple[slice, slice, slice]]:
        """Yield for each gate which of the dealt arrays, masks and joint words are its own."""
        starts = (0, 0, 0)
        for gate in self._gates:
            numbers = (len(gate.fields.dealt), len(gate.fields.masks), len(gate.fields.joint))
            dealt, masks, joint = (
                slice(start, start + number) for start, number in zip(starts, numbers, strict=True)
            )
            yield dealt, masks, joint
            starts = (dealt.stop, masks.stop, joint.stop)

    def send(self, party: Party) -> None:
        """Send evaluator 2 its shares, when all gates have written them; the other parties do nothing.

        Raises:
            PeerLostError, DeadlineError, ProtocolError: As ``Party.exchange``.
        """
        if self._outgoing is not None and self._outgoing.size:
            party.exchange({SECOND: [self._outgoing]}, {})
