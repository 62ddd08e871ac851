"""The view test with fixed inputs: sums of messages and of what the receiver drew have uniform bytes.

Every input is dealt ``KINDS`` times and each kind fills a run of lanes, so within a run only the streams
vary. A message that is uniform to its receiver stays so plus or minus anything its receiver knows, and two
messages that are uniform jointly have a uniform sum and difference. So for every party these must be uniform,
all bytes of them:

* each message,
* each message plus or minus one or two of the draws of the same call that its receiver knows,
* each sum and difference of two messages of one call, or of the same message in two calls, each of the two
  plus or minus one such draw,
* what two parties open between them (a message plus what was sent to its sender in the same exchange), and
  each sum and difference of two such openings or of one and a message,
* the difference of neighbouring lanes, and of neighbouring elements of a lane, in each message and each such
  opening; of an opening also the XOR of any two bits of a lane.

Words of different rings meet in the smaller one, bit planes in the planes that both have, by XOR.

And a party may receive no more bytes than were drawn from the stream that it does not know: with fixed inputs
nothing else makes messages random, so fewer bytes cannot make them uniform.

This finds a mask that hides only some bits of a word, and one used for two messages or two elements of one.
It does not see what takes more than two messages or more draws than these, what relates words of different
shapes or elements of one message that are far apart if as much is drawn as is sent, or a dependence on
inputs that leaves every byte of these sums uniform.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

from fedsec.mpc.simulator import Draw, View
from fedsec.ring import RingArray
from fedsec.testing.example import Example, known_draws, record_calls, stream_for
from fedsec.testing.inputs import are_planes, by_lanes, by_planes
from fedsec.testing.mutants import Mutant
from fedsec.testing.statistics import Looks, fair_in_blocks, uniform_bytes

KINDS = 32
"""Fixed inputs of one session. A leak that half of all inputs show escapes with probability 2^-32."""

CALLS = 2

_THINNING = 8
"""Sums of words are tested on every eighth lane: what they are after is far from uniform, and there are
many."""

_NEIGHBOURS = 4
"""How far apart elements of a lane are compared."""

_BITS_BYTES = 16
"""Bytes a lane of an opening of which each two bits are compared."""

_BEYOND_DOUBT = 1e-30
"""Where the messages alone are so far from uniform, their sums need no look."""


def p_of_fixed_inputs(example: Example, lanes: int, seed: bytes, mutant: Mutant | None) -> float:
    """Run the test and return its p-value, corrected for the number of looks.

    Args:
        example: The protocol and its inputs.
        lanes: Number of lanes, a multiple of 64 * ``KINDS``.
        seed: Fixes inputs and streams.
        mutant: What is wrong with the streams, if anything.
    """
    stream = stream_for(seed, "inputs")
    calls = [
        {
            name: spec.repeat(dealt, KINDS, lanes)
            for (name, dealt), spec in zip(
                example.deal(KINDS, stream).items(), example.secrets.values(), strict=True
            )
        }
        for _ in range(CALLS)
    ]
    done = record_calls(example, calls, lanes, seed, mutant)
    looks = Looks()
    for view in done.views:
        if received_bytes(view) > hidden_bytes(done.views, view.party_id):
            looks.add(0.0)  # more messages than masks
        messages = [[_Words.of(m.words, lanes) for m in view.received(call)] for call in range(CALLS)]
        for message in messages[0] + messages[1]:
            looks.add(uniform_bytes(message.samples(), KINDS))
        if looks.p < _BEYOND_DOUBT:
            break
        planes = [message for message in messages[0] + messages[1] if message.planes]
        apart = [words for message in messages[0] + messages[1] for words in message.apart()]
        for words in (*planes, *apart, *_mixtures(done.views, view, messages, lanes, mutant)):
            looks.add(words.p_of_uniform())
    return looks.p


def received_bytes(view: View) -> int:
    """Return how many bytes a party received in all calls."""
    return sum(message.words.nbytes for call in range(len(view.calls)) for message in view.received(call))


def hidden_bytes(views: Sequence[View], party_id: int) -> int:
    """Return how many bytes were drawn from the streams that a party does not know, each counted once."""

    def drawn_by(view: View) -> int:
        draws = [event for call in view.calls for event in call if isinstance(event, Draw)]
        return sum(draw.words.nbytes for draw in draws if party_id not in draw.pair)

    # Both ends of a pair draw the same; an end that needs less may leave out the last words.
    return max(drawn_by(view) for view in views if view.party_id != party_id)


class _Words:
    """An array of a view: bit planes [planes, lanes / 64], or words [lanes, words a lane]."""

    def __init__(self, array: RingArray, *, planes: bool) -> None:
        self.array = array
        self.planes = planes

    @classmethod
    def of(cls, words: RingArray, lanes: int) -> _Words:
        planes = are_planes(words, lanes)
        return cls(by_planes(words, lanes) if planes else by_lanes(words, lanes), planes=planes)

    def thinned(self) -> _Words:
        return self if self.planes else _Words(self.array[::_THINNING], planes=False)

    def apart(self) -> Iterator[_Words]:
        """Yield differences of neighbouring lanes, and of elements of a lane."""
        words, elements = self.array, 0 if self.planes else 1
        if self.planes:
            # The last lane of a word has no neighbour in it and stays as it is.
            yield _Words(words ^ (words >> np.uint64(1)), planes=True)
        else:
            yield _Words(words - np.roll(words, -1, axis=0), planes=False)
        for distance in range(1, min(words.shape[elements], _NEIGHBOURS + 1)):
            other = np.roll(words, -distance, axis=elements)
            yield _Words(words ^ other if self.planes else words - other, planes=self.planes)

    def samples(self) -> npt.NDArray[np.uint8]:
        """Return bytes in the order of the lanes, shape [samples, columns]."""
        octets = np.ascontiguousarray(self.array).view(np.uint8).reshape(len(self.array), -1)
        return octets.T if self.planes else octets

    def p_of_uniform(self) -> float:
        """Return the p-value of "within each kind all bytes of the words, or all bits, are uniform"."""
        if self.planes:
            return fair_in_blocks(self.array.astype(np.uint64, copy=False), KINDS)
        return uniform_bytes(self.samples(), KINDS)

    def mixed_with(self, other: _Words) -> list[_Words]:
        """Return sum and difference, or the XOR of planes; nothing if the two do not lie side by side."""
        first, second = self.array, other.array
        if self.planes and other.planes:
            common = min(len(first), len(second))
            return [_Words(first[:common] ^ second[:common], planes=True)]
        if self.planes or other.planes or first.shape != second.shape:
            return []
        smaller = min(first.dtype, second.dtype, key=lambda dtype: dtype.itemsize)
        first, second = first.astype(smaller, copy=False), second.astype(smaller, copy=False)
        return [_Words(first + second, planes=False), _Words(first - second, planes=False)]


def _mixtures(
    views: Sequence[View],
    view: View,
    messages: Sequence[Sequence[_Words]],
    lanes: int,
    mutant: Mutant | None,
) -> Iterator[_Words]:
    stripped: list[list[list[_Words]]] = []
    openings = [_openings(view, call, lanes) for call in range(CALLS)]
    for call in range(CALLS):
        known = [
            _Words.of(words, lanes).thinned()
            # Words drawn once for all lanes are a constant, which changes nothing.
            for words in known_draws(views, view.party_id, call, mutant)
            if are_planes(words, lanes) or words.size % lanes == 0
        ]
        stripped.append([])
        for message in messages[call]:
            once = [mixture for draw in known for mixture in message.thinned().mixed_with(draw)]
            yield from once
            yield from _twice(message.thinned(), known)
            stripped[call].append([message.thinned(), *once])
        yield from (opening.thinned() for opening in openings[call])
        yield from (words for opening in openings[call] for words in opening.apart())
        yield from _bits_apart(view, call, lanes)
    unmixed = [
        [[words.thinned()] for words in (*of_call, *opened)]
        for of_call, opened in zip(messages, openings, strict=True)
    ]
    pairs = [pair for of_call in stripped for pair in combinations(of_call, 2)]
    pairs += [pair for of_call in unmixed for pair in combinations(of_call, 2)]
    pairs += zip(*stripped, strict=False)
    for first, second in pairs:
        for one in first:
            for other in second:
                yield from one.mixed_with(other)


def _openings(view: View, call: int, lanes: int) -> list[_Words]:
    """Return what was received plus what was sent for it."""
    return [theirs.mixed_with(mine)[0] for theirs, mine in _opened(view, call, lanes)]


def _bits_apart(view: View, call: int, lanes: int) -> Iterator[_Words]:
    """Yield each two bits of what was received XOR what was sent for it: words may hold bits of elements."""
    for theirs, mine in _opened(view, call, lanes):
        if theirs.planes or theirs.array[0].nbytes > _BITS_BYTES:
            continue
        octets = np.ascontiguousarray(theirs.array ^ mine.array).view(np.uint8).reshape(lanes, -1)
        bits = np.ascontiguousarray(np.unpackbits(octets, axis=1, bitorder="little").T)
        rows = np.packbits(bits, axis=1, bitorder="little").view(np.uint64)
        for distance in range(1, len(rows)):
            yield _Words(rows[:-distance] ^ rows[distance:], planes=True)


def _opened(view: View, call: int, lanes: int) -> list[tuple[_Words, _Words]]:
    return [
        (_Words.of(message.words, lanes), _Words.of(message.answered, lanes))
        for message in view.received(call)
        if message.answered is not None and message.words.size
    ]


def _twice(message: _Words, known: Sequence[_Words]) -> Iterator[_Words]:
    for first, second in combinations(known, 2):
        for once in message.mixed_with(first):
            yield from once.mixed_with(second)
