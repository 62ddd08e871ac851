"""The material of one block: drawn from pairwise streams, dealt in one message."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
        self.layouts = [Layout((images, *field.shape), field.ring) for field in fields]
        self.order = sorted(range(len(fields)), key=lambda i: -fields[i].ring.bits)
        self.size = sum(layout.size_bytes for layout in self.layouts)

    def views(self, buffer: Buffer) -> list[RingArray]:
        """Return the arrays that lie in a buffer."""
        arrays: list[RingArray] = [buffer] * len(self.layouts)
        start = 0
        for i in self.order:
            layout = self.layouts[i]
            stop = start + layout.size_bytes
            arrays[i] = buffer[start:stop].view(layout.ring.dtype).reshape(layout.shape)
            start = stop
        return arrays

    def draw(self, stream: Stream, buffer: Buffer) -> list[RingArray]:
        """Fill a buffer from a stream and return the arrays in it."""
        arrays = self.views(buffer)
        if isinstance(stream, KeyedStream):
            stream.fill(buffer)
            return arrays
        # A stream that is watched or broken by a test shows what is taken for what.
        for i in self.order:
            arrays[i][...] = stream.words(arrays[i].shape, ring_of(arrays[i]))
        return arrays


@dataclass(frozen=True, slots=True)
class Part:
    """What one gate gets of a block.

    Attributes:
        shares: The dealt fields, [N, *shape]: at the dealer and at evaluator 1 the words of their stream, at
            evaluator 2 what the dealer sent.
        masks: At an evaluator its parts of the masks.
        pairs: At the dealer both parts of each mask.
    """

    shares: list[RingArray]
    masks: list[RingArray]
    pairs: list[Masks]


class Supply:
    """The material of one block: drawn, handed to each gate in turn, at the dealer then sent."""

    def __init__(self, party: Party, gates: Sequence[Gate], images: int, context: bytes) -> None:
        """Draw this party's words; evaluator 2 waits for the dealer's message.

        Args:
            party: This party.
            gates: The gates in the order in which they are prepared.
            images: Images of the block.
            context: Names the block; see ``Party.dealt_stream_with``.

        Raises:
            PeerLostError, DeadlineError, ProtocolError: As ``Party.exchange``.
        """
        self._party = party
        self._gates = gates
        fields = sum((gate.fields for gate in gates), Fields())
        dealt, masks = Placement(fields.dealt, images), Placement(fields.masks, images)
        # What evaluator 1 draws the dealer overwrites by what evaluator 2 gets, in one message.
        self._buffer: Buffer = np.empty(dealt.size if party.id != SECOND else 0, dtype=np.uint8)
        self._masks: list[RingArray] = []
        self._pairs: list[Masks] = []
        if party.id == DEALER:
            first, second = (party.dealt_stream_with(other, context) for other in (FIRST, SECOND))
            self._shares = dealt.draw(first, self._buffer)
            parts = [masks.draw(stream, _buffer(masks)) for stream in (first, second)]
            self._pairs = list(zip(*parts, strict=True))
        else:
            stream = party.dealt_stream_with(DEALER, context)
            self._shares = dealt.draw(stream, self._buffer) if party.id == FIRST else self._receive(dealt)
            self._masks = masks.draw(stream, _buffer(masks))

    def _receive(self, dealt: Placement) -> list[RingArray]:
        layouts = [dealt.layouts[i] for i in dealt.order]
        received = self._party.exchange({}, {DEALER: layouts})[DEALER] if layouts else []
        arrays = dict(zip(dealt.order, received, strict=True))
        return [arrays[i] for i in range(len(layouts))]

    def __iter__(self) -> Iterator[Part]:
        """Hand out each gate's part, in the order of the gates."""
        share, mask = 0, 0
        for gate in self._gates:
            next_share, next_mask = share + len(gate.fields.dealt), mask + len(gate.fields.masks)
            yield Part(
                self._shares[share:next_share], self._masks[mask:next_mask], self._pairs[mask:next_mask]
            )
            share, mask = next_share, next_mask

    def send(self) -> None:
        """Send evaluator 2 its shares, when all gates have written them; the other parties do nothing.

        Raises:
            PeerLostError, DeadlineError, ProtocolError: As ``Party.exchange``.
        """
        if self._party.id == DEALER and self._buffer.size:
            self._party.exchange({SECOND: [self._buffer]}, {})


def _buffer(placement: Placement) -> Buffer:
    return np.empty(placement.size, dtype=np.uint8)
