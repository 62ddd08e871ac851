"""Every kind of step and every way to reveal, in dealt mode: answers as in the clear, rounds as promised."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from fedsec.mpc import Party, simulate
from fedsec.nn import plaintext, plan_network
from fedsec.nn.engine import DealtEngine
from fedsec.nn.network import (
    AveragePoolLayer,
    ConvLayer,
    DenseLayer,
    FlattenLayer,
    FunctionLayer,
    MaxPoolLayer,
    MultiplyLayer,
    Network,
    ReluLayer,
)
from fedsec.nn.plan import REVEALS, Plan, Reveal
from fedsec.nn.weights import Weights, decode_output, encode_input, share_weights
from fedsec.ring import fresh_stream
from fedsec.sharing import replicated
from fedsec.transport import rounds_of

Floats = npt.NDArray[np.float64]


class Asked(NamedTuple):
    """An answer, and what it took: online rounds, bytes an image dealt and online."""

    answers: Floats
    rounds: int
    dealt: float
    online: float


def _ask(plan: Plan, weights: Weights, images: Floats, reveal: Reveal) -> Asked:
    parameters = share_weights(plan, weights, fresh_stream())
    x = replicated.share(encode_input(plan, images), fresh_stream(), plan.fraction_bits)

    def program(party: Party) -> Any:
        engine = DealtEngine(party, plan, parameters[party.id])
        engine.prepare(len(images), reveal)
        return engine.predict(x[party.id], reveal)

    done = simulate(program, record=True)
    first, second, third = done.results
    online = {name: [r for r in log if not r.label.startswith("deal/")] for name, log in done.logs.items()}
    sent = [sum(r.size for r in log if r.event == "send") / len(images) for log in online.values()]
    dealt = sum(r.size for r in done.logs["party-0"] if r.event == "send") / len(images)
    answers = decode_output(plan.with_head(reveal), first + second + third)
    return Asked(answers, rounds_of(online), dealt, sum(sent))


def _convolution(name: str, generator: Any, channels: int, filters: int, **options: Any) -> ConvLayer:
    scale = (2 / (9 * channels)) ** 0.5
    kernel = generator.normal(scale=scale, size=(3, 3, channels, filters))
    return ConvLayer(name, kernel, generator.normal(scale=0.1, size=filters), **options)


@cache
def _short_conv() -> tuple[Plan, Weights]:
    generator = np.random.default_rng(0)
    layers: list[Any] = []
    for number, (channels, filters) in enumerate([(1, 10), (10, 32), (32, 64)]):
        layers += [
            _convolution(f"conv{number}", generator, channels, filters),
            AveragePoolLayer(f"pool{number}", (2, 2), (2, 2)),
            ReluLayer(f"relu{number}"),
        ]
    dense = DenseLayer("dense", generator.normal(scale=0.2, size=(64, 10)), np.zeros(10))
    return plan_network(Network("short-conv", (28, 28, 1), (*layers, FlattenLayer("flat"), dense)))


@cache
def _every_gate() -> tuple[Plan, Weights]:
    generator = np.random.default_rng(1)
    same = ((1, 1), (1, 1))
    layers = (
        _convolution("conv", generator, 1, 3, padding=same),
        ReluLayer("relu"),
        MaxPoolLayer("pool", (2, 2), (1, 1), padding=((0, 1), (1, 0))),
        FunctionLayer("sigmoid", "sigmoid"),
        FunctionLayer("tanh", "tanh", inputs=(3,)),
        MultiplyLayer("gate", inputs=(4, 5)),
        MaxPoolLayer("pool again", (3, 3), (3, 3)),
        FlattenLayer("flat"),
        DenseLayer("dense", generator.normal(scale=0.5, size=(12, 5)), generator.normal(size=5)),
    )
    return plan_network(Network("every gate", (6, 6, 1), layers))


def _softmax(logits: Floats) -> Floats:
    powers: Floats = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=1, keepdims=True)
    return shares


@pytest.mark.parametrize("make", [_short_conv, _every_gate])
def test_every_reveal_answers_as_in_the_clear(make: Any) -> None:
    plan, weights = make()
    images = np.random.default_rng(2).random((3, *plan.input_shape))
    logits = plaintext.predict(plan, weights, images)
    order = np.argsort(-logits, axis=1)

    found = {reveal: _ask(plan, weights, images, reveal).answers for reveal in REVEALS}

    assert np.abs(found["logits"] - logits).max() < 0.05
    assert np.array_equal(found["label"], order[:, :1])
    assert np.array_equal(found["top3"], order[:, :3])
    assert np.abs(found["probabilities"] - _softmax(logits)).max() < 0.02


@pytest.mark.parametrize(
    ("reveal", "rounds"), [("logits", 10), ("label", 13), ("top3", 13), ("probabilities", 21)]
)
def test_rounds_and_bytes_of_one_image_of_the_short_convolution(reveal: Reveal, rounds: int) -> None:
    plan, weights = _short_conv()

    asked = _ask(plan, weights, np.random.default_rng(3).random((1, 28, 28, 1)), reveal)

    assert asked.rounds == rounds
    if reveal == "label":
        assert asked.dealt <= 200_000
        assert asked.online <= 60_000
