"""The two ways in which three parties compute a prediction, behind one interface."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol, get_args

from fedsec.errors import InputError, UsageError
from fedsec.mpc import Party
from fedsec.mpc.dealt import DEALER
from fedsec.nn import layers
from fedsec.nn.dealt import Block, Program
from fedsec.nn.plan import Plan, Reveal
from fedsec.nn.weights import check_shares
from fedsec.ring import RingArray
from fedsec.sharing.replicated import RepShare

Mode = Literal["dealt", "plain"]
MODES: tuple[Mode, ...] = get_args(Mode)

BLOCK_IMAGES = 16
"""Most images of one dealt block: it is sent and used while the next one is dealt."""

BLOCK_BYTES = 16 << 20
"""Most bytes of one block, if it has more than one image."""

BATCH_BYTES = 128 << 20
"""Most bytes of material that are used together: a batch that needs more is answered in parts."""


class Engine(Protocol):
    """What serving needs of a computation. All three parties make the same calls in the same order."""

    @property
    def mode(self) -> Mode:
        """Which of the ways this is."""
        ...

    @property
    def reads_inputs(self) -> bool:
        """Whether this party's shares of the inputs matter; of the others only their shape does."""
        ...

    def prepare(self, images: int, reveal: Reveal) -> None:
        """Prepare for that many images; only the first party may send anything meanwhile."""
        ...

    def ready(self, reveal: Reveal) -> int:
        """Return how many images are prepared and not used yet."""
        ...

    def image_bytes(self, reveal: Reveal) -> int:
        """Return what one prepared image takes at the party that keeps most; the same at all three."""
        ...

    def predict(self, x: RepShare, reveal: Reveal) -> RingArray:
        """Return this party's additive share of the answers, freshly masked, one row an image."""
        ...


class PlainEngine:
    """Computes on replicated shares, without anything prepared."""

    mode: Mode = "plain"
    reads_inputs = True

    def __init__(
        self, party: Party, plan: Plan, weights: Sequence[RepShare], label_epsilon: float | None = None
    ) -> None:
        """Take this party's shares of the parameters, in the plan's order; see ``make_engine``.

        Raises:
            InputError: They are not those of the plan.
        """
        check_shares(plan, weights)
        self._party = party
        self._plan = plan
        self._label_epsilon = label_epsilon
        self._weights = tuple(layers.in_rings(plan, weights))
        self._heads: dict[Reveal, Plan] = {}

    def prepare(self, images: int, reveal: Reveal) -> None:
        """Do nothing: nothing can be prepared."""

    def ready(self, reveal: Reveal) -> int:
        """Return 0."""
        return 0

    def image_bytes(self, reveal: Reveal) -> int:
        """Return 0."""
        return 0

    def predict(self, x: RepShare, reveal: Reveal) -> RingArray:
        """Return this party's additive share of the answers; see :meth:`Engine.predict`.

        Raises:
            InputError: The shares are not those of the plan's inputs.
            PeerLostError, DeadlineError, ProtocolError: As the protocols. The session is over, as it is after
                any other error but the first.
        """
        if reveal not in self._heads:
            self._heads[reveal] = self._plan.with_head(reveal, self._label_epsilon)
        try:
            answer = layers.predict(self._party, self._heads[reveal], self._weights, x)
        except InputError:
            raise
        except BaseException:
            # Also what fails between two protocols. Party 0 waits for nobody and may have dealt on: the words
            # that mask this party's next message could be those under which it has dealt.
            self._party.end()
            raise
        # Fresh: the three shares together tell their receiver the answer and nothing of how it came about.
        masked: RingArray = answer.own + self._party.zero_share(answer.shape)
        return masked


class DealtEngine:
    """Party 0 deals one-time material ahead, parties 1 and 2 compute with it; see ``fedsec.mpc.dealt``.

    Material is used once: a block has left the queue, and its number will not come again, before the first
    byte that depends on it is sent. Whatever fails ends the session of this party and throws all material
    away: a new session has new keys. Nothing is ever stored.

    Security: semi-honest, one corrupt party of three, as argued at each gate. The dealer receives nothing;
    its view is its keys and its shares. The answers' shares are masked by a zero share of all three parties,
    part of which the dealer does not know: with the bare share of evaluator 1 a user and the dealer together
    would learn products of parameters.
    """

    mode: Mode = "dealt"

    def __init__(
        self, party: Party, plan: Plan, weights: Sequence[RepShare], label_epsilon: float | None = None
    ) -> None:
        """Take this party's shares of the parameters, in the plan's order; see ``make_engine``."""
        self.reads_inputs = party.id != DEALER
        self._party = party
        self._plan = plan
        self._label_epsilon = label_epsilon
        self._weights = tuple(weights)
        self._programs: dict[Reveal, Program] = {}
        self._queues: dict[Reveal, deque[Block]] = defaultdict(deque)
        self._ready: Counter[Reveal] = Counter()

    def prepare(self, images: int, reveal: Reveal) -> None:
        """Deal material for that many images in blocks of at most ``BLOCK_IMAGES`` and ``BLOCK_BYTES``.

        Raises:
            UsageError: A negative number of images.
            UnsupportedModelError: The plan has no such answer, or a step that dealt mode cannot do.
            PeerLostError, DeadlineError, ProtocolError: As ``Party.exchange``. The session is over.
        """
        if images < 0:
            raise UsageError(f"expected a number of images to prepare for, got {images}")
        program = self._program(reveal)
        with self._ending_on_error():
            self._deal(program, images, reveal)

    def ready(self, reveal: Reveal) -> int:
        """Return how many images are prepared and not used yet."""
        return self._ready[reveal]

    def image_bytes(self, reveal: Reveal) -> int:
        """Return what an evaluator keeps for one prepared image; the same number at all three parties."""
        return self._program(reveal).image_bytes

    def predict(self, x: RepShare, reveal: Reveal) -> RingArray:
        """Return this party's additive share of the answers; deals what is missing first.

        Args:
            x: This party's shares of the inputs, [N, *input shape].
            reveal: What the answers are.

        Raises:
            InputError: The shares are not those of the plan's inputs; nothing was sent or used.
            UnsupportedModelError: As ``prepare``.
            PeerLostError, DeadlineError, ProtocolError: As ``Party.exchange``. The session is over.
        """
        program = self._program(reveal)
        if x.shape[1:] != program.plan.input_shape or x.fraction_bits != program.plan.fraction_bits:
            raise InputError(
                f"plan {program.plan.name!r} takes [N, {', '.join(map(str, program.plan.input_shape))}] with "
                f"{program.plan.fraction_bits} fraction bits, got {list(x.shape)} with {x.fraction_bits}"
            )
        portion = max(1, BATCH_BYTES // program.image_bytes)
        with self._ending_on_error():
            share = self._party.zero_share((x.shape[0], *program.plan.output_shape))
            for start in range(0, x.shape[0], portion):
                rows = slice(start, min(start + portion, x.shape[0]))
                self._answer(program, x[rows], reveal, share[rows])
            return share

    def _answer(self, program: Program, x: RepShare, reveal: Reveal, share: RingArray) -> None:
        """Add this party's share of the answers to a share of zero."""
        images = x.shape[0]
        self._deal(program, images - self.ready(reveal), reveal)
        blocks = self._take(images, reveal)
        if self._party.id != DEALER:
            share += program.answer(self._party, x, blocks, reveal)

    def _program(self, reveal: Reveal) -> Program:
        if reveal not in self._programs:
            plan = self._plan.with_head(reveal, self._label_epsilon)
            self._programs[reveal] = Program(self._party.id, plan, self._weights)
        return self._programs[reveal]

    def _deal(self, program: Program, images: int, reveal: Reveal) -> None:
        most = max(1, min(BLOCK_IMAGES, BLOCK_BYTES // program.image_bytes))
        while images > 0:
            portion = min(images, most)
            block = program.prepare(self._party, self._party.take_index(), portion, reveal)
            self._queues[reveal].append(block)
            self._ready[reveal] += portion
            images -= portion

    def _take(self, images: int, reveal: Reveal) -> list[Block]:
        """Remove material for exactly so many images, the oldest first."""
        queue, taken = self._queues[reveal], []
        while images > 0:
            block = queue.popleft()
            if block.images > images:
                block, rest = block.split(images)
                queue.appendleft(rest)
            taken.append(block)
            self._ready[reveal] -= block.images
            images -= block.images
        return taken

    @contextmanager
    def _ending_on_error(self) -> Iterator[None]:
        self._party.require_open()
        try:
            yield
        except BaseException:
            # Also what is no error of the protocol: the parties may stand at different places now.
            self._party.end()
            self._queues.clear()
            self._ready.clear()
            raise


def make_engine(
    mode: Mode, party: Party, plan: Plan, weights: Sequence[RepShare], label_epsilon: float | None = None
) -> Engine:
    """Return the engine of a mode.

    Args:
        mode: One of ``MODES``; the same at all three parties.
        party: This party's side of the session.
        plan: The network.
        weights: This party's shares of the parameters, in the plan's order.
        label_epsilon: If given, labels are noisy and nothing else is revealed; see ``Plan.with_head``.

    Raises:
        UsageError: The mode is not known.
    """
    if mode not in MODES:
        raise UsageError(f"expected one of the modes {', '.join(MODES)}, got {mode!r}")
    engine = DealtEngine if mode == "dealt" else PlainEngine
    return engine(party, plan, weights, label_epsilon)
