"""Both engines against the plan in the clear; dealt material is used once and dies with the session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedsec.errors import InputError, ProtocolError, UnsupportedModelError, UsageError
from fedsec.mpc import Party, simulate
from fedsec.mpc.dealt import DEALER, FIRST, SECOND
from fedsec.mpc.simulator import NAMES, Draw, SimulationResult
from fedsec.nn import layers, plaintext
from fedsec.nn.dealt import Block
from fedsec.nn.engine import BLOCK_IMAGES, MODES, DealtEngine, Engine, PlainEngine, make_engine
from fedsec.nn.plan import (
    Add,
    AddConstant,
    Concatenate,
    Conv2D,
    Dense,
    Pad2D,
    Plan,
    ReduceSum,
    Relu,
    Reshape,
    Scale,
    SumPool2D,
    Truncate,
)
from fedsec.nn.weights import decode_output, encode_input, share_weights
from fedsec.ring import KeyedStream, fresh_key, fresh_stream
from fedsec.sharing import replicated
from fedsec.sharing.replicated import RepShare
from fedsec.testing.example import key_for

SMALL = Plan(
    name="small",
    input_shape=(5, 6, 2),
    output_shape=(3,),
    input_low=-1.0,
    input_high=1.0,
    input_ring_bits=32,
    fraction_bits=12,
    layers=(
        Conv2D(
            name="conv",
            inputs=(0,),
            input_shape=(5, 6, 2),
            output_shape=(3, 2, 4),
            kernel_shape=(2, 2, 1, 4),
            strides=(2, 2),
            padding=((1, 1), (0, 0)),
            groups=2,
            box=(2, 2),
            weight_fraction_bits=12,
            bound=16.0,
        ),
        Relu(
            name="relu",
            inputs=(1,),
            input_shape=(3, 2, 4),
            output_shape=(3, 2, 4),
            bits=8,
            window_bits=22,
            ignore_bits=4,
            ring_bits=64,
        ),
        Reshape(name="flat", inputs=(2,), input_shape=(3, 2, 4), output_shape=(24,)),
        Dense(
            name="logits",
            inputs=(3,),
            input_shape=(24,),
            output_shape=(3,),
            weight_fraction_bits=16,
            bound=256.0,
        ),
    ),
)


def _graph() -> Plan:
    """Return a plan with a branch and every local step, before and after the last product."""
    image, flat, three = (4, 4, 1), (8,), (3,)
    return Plan(
        name="graph",
        input_shape=image,
        output_shape=(1,),
        input_low=0.0,
        input_high=1.0,
        fraction_bits=16,
        layers=(
            Pad2D(
                name="pad",
                inputs=(0,),
                input_shape=image,
                output_shape=(5, 6, 1),
                padding=((1, 0), (1, 1)),
            ),
            SumPool2D(
                name="pool",
                inputs=(1,),
                input_shape=(5, 6, 1),
                output_shape=(2, 2, 1),
                pool=(2, 3),
                strides=(3, 3),
            ),
            Scale(
                name="scale",
                inputs=(2,),
                input_shape=(2, 2, 1),
                output_shape=(2, 2, 1),
                factors=(3, -1, 2, 1),
                fraction_bits=1,
            ),
            Truncate(
                name="cut",
                inputs=(3,),
                input_shape=(2, 2, 1),
                output_shape=(2, 2, 1),
                bits=1,
                window_bits=24,
            ),
            AddConstant(
                name="plus", inputs=(4,), input_shape=(2, 2, 1), output_shape=(2, 2, 1), constant=-0.75
            ),
            Concatenate(
                name="both",
                inputs=(4, 5),
                input_shapes=((2, 2, 1), (2, 2, 1)),
                output_shape=(2, 2, 2),
                axis=2,
            ),
            Reshape(name="flat", inputs=(6,), input_shape=(2, 2, 2), output_shape=flat),
            Dense(
                name="first",
                inputs=(7,),
                input_shape=flat,
                output_shape=three,
                weight_fraction_bits=8,
                bound=256.0,
            ),
            Dense(
                name="second",
                inputs=(7,),
                input_shape=flat,
                output_shape=three,
                weight_fraction_bits=8,
                bound=256.0,
            ),
            Relu(
                name="relu",
                inputs=(8,),
                input_shape=three,
                output_shape=three,
                bits=0,
                window_bits=40,
                ring_bits=64,
            ),
            Add(
                name="sum",
                inputs=(10, 9),
                input_shapes=(three, three),
                output_shape=three,
                signs=(-1, 1),
            ),
            AddConstant(name="last", inputs=(11,), input_shape=three, output_shape=three, constant=1.5),
            ReduceSum(name="total", inputs=(12,), input_shape=three, output_shape=(1,)),
        ),
    )


class World:
    """A plan with random parameters, shared, and random inputs."""

    def __init__(self, plan: Plan, images: int) -> None:
        generator = np.random.default_rng(7)
        self.plan = plan
        self.weights = [generator.uniform(-0.5, 0.5, spec.shape) for spec in plan.weight_specs]
        self.images = generator.uniform(plan.input_low, plan.input_high, (images, *plan.input_shape))
        stream = fresh_stream()
        self.shares = share_weights(plan, self.weights, stream)
        words = encode_input(plan, self.images)
        self.inputs = replicated.share(words, stream, plan.fraction_bits)

    def run(self, program: Callable[[Party, Engine], Any], mode: Any = "dealt") -> SimulationResult[Any]:
        return simulate(
            lambda party: program(party, make_engine(mode, party, self.plan, self.shares[party.id])),
            record=True,
        )

    def answers(self, shares: Any) -> Any:
        return decode_output(self.plan, sum(shares[1:], shares[0]))

    @property
    def expected(self) -> Any:
        return plaintext.predict(self.plan, self.weights, self.images)


@pytest.mark.parametrize("images", [1, 3, BLOCK_IMAGES + 2])
@pytest.mark.parametrize("prepared", [0, 2, 2 * BLOCK_IMAGES])
def test_dealt_answers_are_those_of_the_plan(images: int, prepared: int) -> None:
    world = World(SMALL, images)

    def program(party: Party, engine: Engine) -> Any:
        engine.prepare(prepared, "logits")
        return engine.predict(world.inputs[party.id], "logits"), engine.ready("logits")

    done = world.run(program)

    # 12 fraction bits in the first layer, values up to 1 and 24 parameters a sum: far below 0.02.
    assert np.abs(world.answers([result[0] for result in done.results]) - world.expected).max() < 0.02
    assert {result[1] for result in done.results} == {max(0, prepared - images)}


def test_a_graph_with_every_local_step() -> None:
    world = World(_graph(), 3)

    done = world.run(lambda party, engine: engine.predict(world.inputs[party.id], "logits"))

    assert np.abs(world.answers(done.results) - world.expected).max() < 0.02


def test_rounds_and_bytes_are_those_of_the_gates() -> None:
    world = World(SMALL, 2)

    done = world.run(lambda party, engine: engine.predict(world.inputs[party.id], "logits"))

    # Deal, input, convolution, digits, ReLU; the last product is not opened.
    assert done.cost.rounds == 5
    kinds = {(r.sender, r.label.split("/")[0]) for log in done.logs.values() for r in log}
    assert kinds == {(NAMES[DEALER], "deal"), (NAMES[FIRST], "online"), (NAMES[SECOND], "online")}
    online = 2 * (60 * 4 + 24 * 4 + 24 * 8)
    digits = 2 * 8 * done.cost.sent[FIRST] - 2 * 8 * online  # bits: a whole number of 64-bit words a plane
    assert done.cost.sent[FIRST] == done.cost.sent[SECOND]
    assert digits % (64 * 2) == 0


def test_the_dealer_receives_nothing_and_its_view_depends_on_its_keys_and_shares_alone() -> None:
    seed = fresh_key()
    views, results, sent = [], [], []
    for _secret in range(2):
        world = World(SMALL, 2)
        # What the dealer holds is the same both times, inputs and parameters are others.
        stream = KeyedStream(key_for(seed, "shares"))
        noise = fresh_stream()

        def alike(share: tuple[RepShare, ...], stream: Any = stream, noise: Any = noise) -> list[RepShare]:
            parts = [stream.words(share[0].shape) for _ in range(2)]
            parts.append(noise.words(share[0].shape))
            return [RepShare(parts[i], parts[(i + 1) % 3], share[0].fraction_bits) for i in range(3)]

        weights = [alike(triple) for triple in zip(*world.shares, strict=True)]
        inputs = alike(world.inputs)

        def program(party: Party, weights: Any = weights, inputs: Any = inputs) -> Any:
            engine = DealtEngine(party, SMALL, [triple[party.id] for triple in weights])
            engine.prepare(1, "logits")
            return engine.predict(inputs[party.id], "logits")

        done = simulate(program, seed=key_for(seed, "session"), record=True)
        views.append(done.views[DEALER])
        results.append(done.results[DEALER])
        sent.append([event.words.tobytes() for event in done.views[SECOND].received() if event.sender == 0])

    assert not views[0].received()
    draws = [
        [(event.pair, event.words.tobytes()) for event in view.calls[0] if isinstance(event, Draw)]
        for view in views
    ]
    assert draws[0] == draws[1]
    assert np.array_equal(*results)
    assert sent[0] == sent[1]


def test_material_is_used_once_and_numbers_do_not_come_again() -> None:
    world = World(SMALL, 1)

    def program(party: Party, engine: Engine) -> Any:
        engine.prepare(3, "logits")
        first = [engine.predict(world.inputs[party.id], "logits") for _ in range(3)]
        return [*first, engine.predict(world.inputs[party.id], "logits"), engine.ready("logits")]

    done = world.run(program)

    for i in range(4):
        answers = world.answers([result[i] for result in done.results])
        assert np.abs(answers - world.expected).max() < 0.02
    # The same question four times: no word that an evaluator received came twice.
    received = [event.words for event in done.views[FIRST].received()]
    words = np.concatenate([array.reshape(-1).astype(np.uint64) for array in received if array.size > 40])
    assert len(np.unique(words)) == len(words)
    labels = [record.label for record in done.logs[NAMES[FIRST]] if record.event == "send"]
    assert len(set(labels)) == 4
    assert [result[4] for result in done.results] == [0, 0, 0]
    assert {r.label for log in done.logs.values() for r in log if r.label.startswith("deal")} == {
        "deal/0/logits/3",
        "deal/1/logits/1",
    }


def test_large_material_is_dealt_in_smaller_blocks_and_used_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(SMALL, 5)

    def program(party: Party, engine: Engine) -> Any:
        size = engine.image_bytes("logits")
        monkeypatch.setattr("fedsec.nn.engine.BLOCK_BYTES", 2 * size)
        monkeypatch.setattr("fedsec.nn.engine.BATCH_BYTES", 3 * size)
        return engine.predict(world.inputs[party.id], "logits")

    done = world.run(program)

    assert np.abs(world.answers(done.results) - world.expected).max() < 0.02
    labels = dict.fromkeys(record.label for record in done.logs[NAMES[SECOND]])
    assert list(labels) == [
        "deal/0/logits/2",
        "deal/1/logits/1",
        "online/logits/0:0+2of2/1:0+1of1",
        "deal/2/logits/2",
        "online/logits/2:0+2of2",
    ]


def test_a_block_splits_without_sharing_material() -> None:
    block = Block(4, 5, 0, 5, ((np.arange(10).reshape(5, 2).astype(np.uint32),),))

    first, rest = block.split(2)

    assert (str(first), str(rest)) == ("4:0+2of5", "4:2+3of5")
    assert not np.shares_memory(first.left()[0][0], rest.left()[0][0])
    assert np.array_equal(np.concatenate([first.left()[0][0], rest.left()[0][0]]), block.materials[0][0])


@pytest.mark.parametrize("culprit", range(3))
@pytest.mark.parametrize("call", ["prepare", "predict"])
def test_any_failure_ends_the_session_and_throws_material_away(
    culprit: int, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(SMALL, 1)

    def program(party: Party, engine: Engine) -> list[str]:
        engine.prepare(2, "logits")
        if party.id != culprit:
            return []
        # Not an error of the protocol: memory, an interrupt, a bug.
        monkeypatch.setattr(party, "take_index", _out_of_memory)
        monkeypatch.setattr(party, "zero_share", _out_of_memory)
        with pytest.raises(MemoryError):
            engine.prepare(1, "logits") if call == "prepare" else engine.predict(
                world.inputs[party.id], "logits"
            )
        assert engine.ready("logits") == 0
        for again in (
            lambda: engine.prepare(1, "logits"),
            lambda: engine.predict(world.inputs[party.id], "logits"),
            lambda: party.exchange({}, {}),
        ):
            with pytest.raises(ProtocolError, match="ended with an earlier error"):
                again()
        return ["refused"]

    assert world.run(program).results[culprit] == ["refused"]


def _out_of_memory(*_arguments: object) -> Any:
    raise MemoryError


@pytest.mark.parametrize("culprit", range(3))
def test_parties_that_prepared_different_blocks_do_not_go_on(culprit: int) -> None:
    world = World(SMALL, 2)

    def program(party: Party, engine: Engine) -> Any:
        party.wait_s = 2.0
        engine.prepare(3 if party.id == culprit else 2, "logits")
        return engine.predict(world.inputs[party.id], "logits")

    with pytest.raises(ProtocolError):
        world.run(program)


def test_ends_that_disagree_on_a_block_draw_unrelated_words() -> None:
    def program(party: Party) -> Any:
        other = FIRST if party.id == DEALER else DEALER
        contexts = [b"deal/0/logits/2", b"deal/0/logits/3", b"deal/1/logits/2"]
        return [party.dealt_stream_with(other, context).words(4) for context in contexts]

    dealer, first, second = simulate(program).results

    assert np.array_equal(dealer, first)
    assert len(np.unique(np.concatenate([*dealer, *second]))) == 24


def test_an_answer_of_the_dealer_is_a_share_of_zero_that_others_mask() -> None:
    """With evaluator 1's bare share a user and the dealer would learn products of parameters."""
    world = World(SMALL, 1)
    seed = fresh_key()
    results = []
    for _ in range(2):
        shares = share_weights(SMALL, world.weights, fresh_stream())

        def program(party: Party, shares: Any = shares) -> Any:
            engine = DealtEngine(party, SMALL, shares[party.id])
            return engine.predict(world.inputs[party.id], "logits"), party.zero_share((1, 3))

        results.append(simulate(program, seed=seed).results)

    # The dealer's share follows from its keys; the evaluators' contain a stream that it does not have.
    assert np.array_equal(results[0][DEALER][0], results[1][DEALER][0])
    assert not np.array_equal(results[0][FIRST][0], results[1][FIRST][0])


@pytest.mark.parametrize("mode", MODES)
def test_output_shares_are_fresh_and_hide_the_replicated_ones(mode: Any) -> None:
    """What is computed is local, and the same every time: all that differs is the masking."""
    shape, asked = (64,), 40
    turned = Reshape(name="turned", inputs=(0,), input_shape=shape, output_shape=shape)
    plan = Plan(
        name="as it came",
        input_shape=shape,
        output_shape=shape,
        input_low=0.0,
        input_high=1.0,
        fraction_bits=16,
        layers=(turned,),
    )
    world = World(plan, 1)

    def program(party: Party, engine: Engine) -> Any:
        return np.stack([engine.predict(world.inputs[party.id], "logits") for _ in range(asked)])

    results = world.run(program, mode).results

    for one in world.answers(results):
        np.testing.assert_array_equal(one, decode_output(plan, replicated.reconstruct(world.inputs)))
    for words in results:
        # Equal words by chance: 2,560 choose 2 pairs of 64 bits, 2e-13.
        assert len(np.unique(words)) == words.size
        # Half of the bits are ones, give or take 6.5 standard deviations: 8e-11 for each party and mode.
        bits = 8 * words.nbytes
        assert abs(int(np.bitwise_count(words).sum()) - bits / 2) < 6.5 * np.sqrt(bits) / 2


@pytest.mark.parametrize("mode", MODES)
def test_shares_of_other_inputs_are_refused_before_anything_is_used(mode: Any) -> None:
    world = World(SMALL, 1)

    def program(party: Party, engine: Engine) -> int:
        engine.prepare(1, "logits")
        share = world.inputs[party.id]
        wrong_bits = RepShare(share.own, share.next, share.fraction_bits + 1)
        for wrong in (wrong_bits, share[:, 1:]):
            with pytest.raises(InputError, match="takes"):
                engine.predict(wrong, "logits")
        return engine.ready("logits")

    assert set(world.run(program, mode).results) == {1 if mode == "dealt" else 0}


def test_an_empty_batch_and_what_cannot_be_prepared() -> None:
    world = World(SMALL, 1)

    def program(party: Party, engine: Engine) -> Any:
        with pytest.raises(UsageError, match="number of images"):
            engine.prepare(-1, "logits")
        assert engine.image_bytes("logits") > 0
        return engine.predict(world.inputs[party.id][:0], "logits").shape

    assert world.run(program).results == ((0, 3), (0, 3), (0, 3))


def test_an_unknown_mode_is_refused() -> None:
    def program(party: Party) -> None:
        with pytest.raises(UsageError, match="dealt, plain"):
            make_engine("fast", party, SMALL, [])  # type: ignore[arg-type]

    simulate(program)


def test_an_answer_in_the_32_bit_ring_is_refused() -> None:
    step = Dense(
        name="only", inputs=(0,), input_shape=(2,), output_shape=(2,), weight_fraction_bits=8, bound=4.0
    )
    plan = Plan(
        name="narrow",
        input_shape=(2,),
        output_shape=(2,),
        input_low=0.0,
        input_high=1.0,
        input_ring_bits=32,
        fraction_bits=8,
        layers=(step,),
    )
    world = World(plan, 1)

    with pytest.raises(UnsupportedModelError, match="ring of 32 bits"):
        world.run(lambda _party, engine: engine.ready("logits") or engine.image_bytes("logits"))


def test_the_plain_engine_answers_and_prepares_nothing() -> None:
    world = World(SMALL, 2)

    def program(party: Party) -> Any:
        engine = PlainEngine(party, SMALL, world.shares[party.id])
        engine.prepare(5, "logits")
        assert engine.image_bytes("logits") == 0
        return engine.predict(world.inputs[party.id], "logits"), engine.ready("logits")

    done = simulate(program)

    assert np.abs(world.answers([result[0] for result in done.results]) - world.expected).max() < 0.02
    assert {result[1] for result in done.results} == {0}


def test_whatever_fails_between_two_protocols_ends_the_session_of_a_plain_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Party 0 waits for nobody: it may have dealt under the words that this party would mask with next."""
    world = World(SMALL, 1)
    monkeypatch.setattr(layers, "_boxed", _out_of_memory)

    def program(party: Party, engine: Engine) -> Any:
        with pytest.raises(MemoryError):
            engine.predict(world.inputs[party.id], "logits")
        with pytest.raises(ProtocolError, match="ended with an earlier error"):
            party.exchange({}, {})

    world.run(program, "plain")
