"""A plan in dealt mode: its gates, what is local between them, and walking through both in each role."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from fedsec.errors import UnsupportedModelError
from fedsec.mpc import Party
from fedsec.mpc.dealt import (
    DEALER,
    FIRST,
    Fields,
    Gate,
    InputGate,
    LinearGate,
    Masks,
    Material,
    Part,
    Product,
    Rounds,
    Supply,
    run_together,
)
from fedsec.mpc.party import Layout
from fedsec.mpc.patches import Convolution, Window
from fedsec.nn import local
from fedsec.nn.dealt_gates import gate_of
from fedsec.nn.plan import Conv2D, Dense, Local, Plan, Value
from fedsec.nn.plan import Gate as GateStep
from fedsec.nn.weights import check_shares
from fedsec.ring import Ring, RingArray, kernels
from fedsec.sharing.replicated import RepShare


@dataclass(frozen=True, slots=True)
class _Operation:
    """One thing to do: a gate, or something local.

    Attributes:
        inputs: Numbers of the values that it takes.
        output: Number of the value that it makes.
        gate: The gate, if it is one.
        function: What a local step does to any summand of a value.
        constant: What it adds to one summand of the result.
        additive: Whether the result is held as additive shares, not as masked value and mask.
        done: Values that nothing takes afterwards.
    """

    inputs: tuple[int, ...]
    output: int
    gate: Gate | None
    function: Callable[[Sequence[RingArray]], RingArray]
    constant: RingArray | None
    additive: bool
    done: tuple[int, ...]


class ShareGate(Gate):
    """Turn masked value and mask into additive shares, locally: evaluator 1 adds its part of the mask."""

    def __init__(self, party_id: int, source: Layout) -> None:
        """Take shape and ring of the value."""
        super().__init__(party_id, Fields(), 0, source, final=True)

    def deal(
        self, r: Sequence[RingArray], shares: Sequence[RingArray], masks: Sequence[Masks]
    ) -> RingArray | None:
        """Do nothing: the dealer has no share."""
        return None

    def prepare(
        self, r: Sequence[RingArray], shares: Sequence[RingArray], masks: Sequence[RingArray]
    ) -> tuple[Material, RingArray | None]:
        """Keep this evaluator's part of the mask."""
        return (r[0],), None

    def run(self, m: Sequence[RingArray], material: Material) -> Rounds:
        """Return this evaluator's summand."""
        yield from ()
        return m[0] + material[0] if self.party_id == FIRST else material[0]


@dataclass(frozen=True, slots=True)
class Block:
    """Material of an evaluator for some images; at the dealer only their number.

    Attributes:
        index: The block's number in the session.
        dealt: How many images it was dealt for.
        start: Number of the first of the images that are left.
        images: How many images are left.
        materials: For each gate, in order, of all ``dealt`` images.
    """

    index: int
    dealt: int
    start: int
    images: int
    materials: tuple[Material, ...]

    def split(self, images: int) -> tuple[Block, Block]:
        """Return the first ``images`` images and the rest."""
        index, dealt, start, materials = self.index, self.dealt, self.start, self.materials
        return (
            Block(index, dealt, start, images, materials),
            Block(index, dealt, start + images, self.images - images, materials),
        )

    def left(self) -> tuple[Material, ...]:
        """Return the material of the images that are left."""
        if self.images == self.dealt:
            return self.materials
        piece = slice(self.start, self.start + self.images)
        return tuple([tuple([array[piece] for array in material]) for material in self.materials])

    def __str__(self) -> str:
        return f"{self.index}:{self.start}+{self.images}of{self.dealt}"


class Program:
    """A plan as one party runs it.

    Attributes:
        plan: The plan.
        gates: Its gates in order; the first moves the input under a mask.
        image_bytes: What an evaluator keeps for one prepared image.
    """

    def __init__(self, party_id: int, plan: Plan, weights: Sequence[RepShare]) -> None:
        """Make the gates.

        Args:
            party_id: Id of this party.
            plan: The public steps.
            weights: This party's shares of the parameters, in the plan's order.

        Raises:
            InputError: The shares are not those of the plan's parameters.
            UnsupportedModelError: The plan has a step that dealt mode cannot do.
            UsageError: A window does not fit.
        """
        check_shares(plan, weights)
        if plan.values[-1].ring_bits != plan.ring_bits:
            raise UnsupportedModelError(
                f"plan {plan.name!r}: the answer is in a ring of {plan.values[-1].ring_bits} bits, dealt mode"
                f" gives it in one of {plan.ring_bits}"
            )
        self.plan = plan
        self._party_id = party_id
        self._supplies: dict[int, Supply] = {}
        self._digest = plan.digest().encode()
        self._operations = tuple(self._compiled(iter(weights)))
        self.gates = [operation.gate for operation in self._operations if operation.gate is not None]
        kept = sum((gate.fields.dealt_bytes + gate.fields.mask_bytes for gate in self.gates), 0)
        self.image_bytes = kept + sum(
            gate.fields.dealt_bytes for gate in self.gates if isinstance(gate, LinearGate)
        )

    def _compiled(self, parameters: Iterator[RepShare]) -> Iterator[_Operation]:
        """Yield the operations; numbers of values that the plan does not have stand for conversions."""
        plan = self.plan
        additive = _additive(plan)
        source = Layout(plan.input_shape, Ring(plan.input_ring_bits))
        yield _operation(InputGate(self._party_id, source), (_RAW,), 0, done=(_RAW,))
        last = len(plan.layers)
        for number, step in enumerate(plan.layers):
            output = number + 1
            done = tuple({value for value in step.inputs if plan.last_uses[value] == number})
            if isinstance(step, Conv2D | Dense | GateStep):
                gate = self._gate(step, plan.inputs_of(number), parameters, final=additive[output])
                yield _operation(gate, step.inputs, output, done=done, additive=additive[output])
                continue
            inputs = list(step.inputs)
            for i, value in enumerate(inputs):
                if additive[output] and not additive[value]:
                    inputs[i] = last = last + 1
                    yield _operation(self._share_gate(plan.values[value]), (value,), last, additive=True)
            yield _Operation(
                tuple(inputs),
                output,
                None,
                partial(local.apply, step),
                _constant(step, plan.values[output]),
                additive[output],
                done,
            )

    def _share_gate(self, value: Value) -> ShareGate:
        return ShareGate(self._party_id, Layout(value.shape, Ring(value.ring_bits)))

    def _gate(
        self,
        step: Conv2D | Dense | GateStep,
        values: tuple[Value, ...],
        parameters: Iterator[RepShare],
        *,
        final: bool,
    ) -> Gate:
        layouts = [Layout(value.shape, Ring(value.ring_bits)) for value in values]
        if isinstance(step, Conv2D | Dense):
            kernel, bias = next(parameters), next(parameters)
            return LinearGate(
                self._party_id,
                _product(step),
                kernel,
                bias,
                step.output_shape,
                ring=layouts[0].ring,
                final=final,
            )
        return gate_of(self._party_id, step, layouts, final=final)

    def prepare(self, party: Party, index: int, images: int, name: str) -> Block:
        """Deal one block, or take what is dealt; all three parties call this.

        Args:
            party: This party.
            index: The block's number, from ``Party.take_index``.
            images: How many images.
            name: What the answer reveals; names the plan within the service.

        Raises:
            PeerLostError, DeadlineError, ProtocolError: As ``Party.exchange``.
        """
        label = f"deal/{index}/{name}/{images}"
        with party.step(label):
            if images not in self._supplies:
                self._supplies[images] = Supply(self.gates, images)
            supply = self._supplies[images]
            parts = iter(supply.parts(party, f"{label}/".encode() + self._digest))
            if party.id == DEALER:
                self._deal(parts)
                supply.send(party)
                return Block(index, images, 0, images, ())
            return Block(index, images, 0, images, self._prepare(parts))

    def _deal(self, parts: Iterator[Part]) -> None:
        masks: dict[int, RingArray] = {}
        for operation in self._operations:
            mask = None
            if operation.gate is not None:
                part = next(parts)
                inputs = [masks[value] for value in operation.inputs if value != _RAW]
                mask = operation.gate.deal(inputs, part.shares, part.pairs)
            elif not operation.additive:
                mask = operation.function([masks[value] for value in operation.inputs])
            _store(masks, operation, mask)

    def _prepare(self, parts: Iterator[Part]) -> tuple[Material, ...]:
        masks: dict[int, RingArray] = {}
        materials: list[Material] = []
        for operation in self._operations:
            mask = None
            if operation.gate is not None:
                part = next(parts)
                inputs = [masks[value] for value in operation.inputs if value != _RAW]
                material, mask = operation.gate.prepare(inputs, part.shares, part.masks)
                materials.append(material)
            elif not operation.additive:
                mask = operation.function([masks[value] for value in operation.inputs])
            _store(masks, operation, mask)
        return tuple(materials)

    def answer(self, party: Party, x: RepShare, blocks: Sequence[Block], name: str) -> RingArray:
        """Return this evaluator's additive share of the answers, one row an image.

        Args:
            party: This party, an evaluator.
            x: Its share of the inputs, in the plan's ring.
            blocks: Material for exactly as many images; it is used up.
            name: As for ``prepare``.

        Raises:
            PeerLostError, DeadlineError, ProtocolError: As ``Party.exchange``.
        """
        # The two evaluators' own components suffice: x_1 + x_2 here, x_0 there.
        words = x.own + x.next if party.id == FIRST else x.next
        words = words.astype(self.gates[0].ring.dtype, copy=False)
        computations: list[Rounds] = []
        start = 0
        for block in blocks:
            computations.append(self._run(words[start : start + block.images], block.left()))
            start += block.images
        with party.step(f"online/{name}/{'/'.join(map(str, blocks))}"):
            answers = run_together(party, computations)
        return answers[0] if len(answers) == 1 else np.concatenate(answers)

    def _run(self, words: RingArray, materials: Sequence[Material]) -> Rounds:
        material = iter(materials)
        values: dict[int, RingArray] = {_RAW: words}
        for operation in self._operations:
            inputs = [values[value] for value in operation.inputs]
            if operation.gate is not None:
                result = yield from operation.gate.run(inputs, next(material))
            else:
                result = operation.function(inputs)
                # A masked value is known to both evaluators; of additive shares one takes the constant.
                if operation.constant is not None and (not operation.additive or self._party_id == FIRST):
                    result = result + operation.constant
            _store(values, operation, result)
        return values[len(self.plan.layers)]


_RAW = -1
"""Number of the input as it comes, before it is under a mask of the dealer's streams."""


def _operation(
    gate: Gate, inputs: tuple[int, ...], output: int, *, done: tuple[int, ...] = (), additive: bool = False
) -> _Operation:
    return _Operation(inputs, output, gate, _nothing, None, additive, done)


def _nothing(inputs: Sequence[RingArray]) -> RingArray:
    return inputs[0]


def _store(values: dict[int, RingArray], operation: _Operation, result: RingArray | None) -> None:
    for value in operation.done:
        values.pop(value, None)
    if result is not None:
        values[operation.output] = result


def _constant(step: Local, value: Value) -> RingArray | None:
    return local.constant_of(step, value.fraction_bits, Ring(value.ring_bits))


def _additive(plan: Plan) -> list[bool]:
    """Return which values are never opened: the answer, and what only local steps turn into it."""
    additive = [False] * len(plan.layers) + [True]
    for value in reversed(range(len(plan.layers))):
        takers = [(number, step) for number, step in enumerate(plan.layers) if value in step.inputs]
        additive[value] = value > 0 and all(
            isinstance(step, Local) and additive[number + 1] for number, step in takers
        )
    return additive


def _product(step: Conv2D | Dense) -> Product:
    """Return the bilinear part of a linear step."""
    if isinstance(step, Dense):
        return _dense
    return Convolution(Window(step.strides, step.dilation, step.padding, step.box, step.box_step))


def _dense(x: RingArray, kernel: RingArray) -> RingArray:
    return kernels.matmul(x.reshape(-1, kernel.shape[0]), kernel).reshape(*x.shape[:-1], kernel.shape[1])
