"""Predictions on shares against the plain plan and against Keras, on real test images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsec.errors import InputError
from fedsec.learning import data
from fedsec.learning.export import export
from fedsec.mpc import Party, simulate
from fedsec.nn import (
    Network,
    Plan,
    Weights,
    decode_output,
    encode_input,
    encode_weights,
    layers,
    plaintext,
    plan_network,
    share_weights,
)
from fedsec.nn.network import AveragePoolLayer, ConvLayer, DenseLayer, FlattenLayer, ReluLayer
from fedsec.ring import RingArray, fresh_stream
from fedsec.sharing import replicated

LARGEST_LOGIT_ERROR = 0.02
MOST_LABEL_DIFFERENCES = 2


def private_words(plan: Plan, weights: Weights, words: RingArray) -> RingArray:
    """Share parameters and inputs, run the three parties, join their answers."""
    parameters = share_weights(plan, weights, fresh_stream())
    inputs = replicated.share(words, fresh_stream(), plan.fraction_bits)

    def program(party: Party) -> replicated.RepShare:
        return layers.predict(party, plan, parameters[party.id], inputs[party.id])

    return replicated.reconstruct(simulate(program).results)


def private_logits(plan: Plan, weights: Weights, images: np.ndarray, batch: int = 250) -> np.ndarray:
    answers = [
        decode_output(plan, private_words(plan, weights, encode_input(plan, images[start : start + batch])))
        for start in range(0, len(images), batch)
    ]
    return np.concatenate(answers)


def compare(
    mnist: data.Mnist, trained: Any, keras_logits: np.ndarray, count: int, bits: int
) -> tuple[float, int]:
    plan, weights = export(trained, bits)
    logits = private_logits(plan, weights, data.pixels(mnist.test_images[:count]))
    expected = keras_logits[:count]
    differences = int((logits.argmax(axis=1) != expected.argmax(axis=1)).sum())
    return float(np.abs(logits - expected).max()), differences


def test_1000_images_agree_with_keras(mnist: data.Mnist, trained: Any, keras_logits: np.ndarray) -> None:
    error, differences = compare(mnist, trained, keras_logits, 1_000, 16)

    print(f"largest logit error {error:.5f}, label differences {differences}")
    assert error <= LARGEST_LOGIT_ERROR
    assert differences <= MOST_LABEL_DIFFERENCES


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "most_differences"), [(13, 5), (16, MOST_LABEL_DIFFERENCES)])
def test_10000_images_agree_with_keras(
    mnist: data.Mnist, trained: Any, keras_logits: np.ndarray, bits: int, most_differences: int
) -> None:
    error, differences = compare(mnist, trained, keras_logits, 10_000, bits)

    print(f"{bits} fraction bits: largest logit error {error:.5f}, label differences {differences}")
    assert error <= LARGEST_LOGIT_ERROR
    assert differences <= most_differences


def test_the_plain_plan_is_keras(mnist: data.Mnist, trained: Any, keras_logits: np.ndarray) -> None:
    plan, weights = export(trained)

    plain = plaintext.predict(plan, weights, data.pixels(mnist.test_images[:1000]))

    # Keras computes in float32.
    np.testing.assert_allclose(plain, keras_logits[:1000], atol=1e-4)
    assert np.mean(plain.argmax(axis=1) == mnist.test_labels[:1000]) > 0.95


def test_the_first_three_images_are_7_2_1(mnist: data.Mnist, trained: Any) -> None:
    plan, weights = export(trained)

    assert private_logits(plan, weights, data.pixels(mnist.test_images[:3])).argmax(axis=1).tolist() == [
        7,
        2,
        1,
    ]


def test_threat_11_no_value_comes_near_what_could_wrap(mnist: data.Mnist, trained: Any) -> None:
    """The proven bounds hold on real images, and leave the ring room to spare."""
    plan, weights = export(trained)
    seen = plaintext.trace(plan, weights, data.pixels(mnist.test_images[:500]))
    for step, values in zip(plan.layers, seen[1:], strict=True):
        bound = getattr(step, "bound", None)
        if bound is not None:
            assert np.abs(values).max() < bound
            assert bound < 2.0**12


def wide_network() -> tuple[Plan, Weights]:
    """Everything that short-conv does not have: padding, strides, odd and early pools, no relu at places."""
    generator = np.random.default_rng(11)

    def normal(*shape: int) -> np.ndarray:
        return generator.normal(0, 0.3, shape)

    network = Network(
        "wide",
        (13, 12, 2),
        (
            AveragePoolLayer("pool first", (2, 3), (1, 1)),
            ConvLayer("strided, padded", normal(3, 3, 2, 4), normal(4), (2, 2), ((1, 1), (0, 1))),
            ReluLayer("relu"),
            AveragePoolLayer("odd pool", (3, 3), (1, 1)),
            ReluLayer("relu of a sum"),
            ConvLayer("fused", normal(2, 2, 4, 3), normal(3)),
            AveragePoolLayer("its pool", (1, 2), (1, 1)),
            FlattenLayer("flat"),
            DenseLayer("dense", normal(9, 5), normal(5)),
            DenseLayer("dense again", normal(5, 3), normal(3)),
        ),
        -1.0,
        1.0,
    )
    return plan_network(network)


def test_every_kind_of_step_agrees_with_its_plain_twin() -> None:
    plan, weights = wide_network()
    images = np.random.default_rng(12).uniform(-1, 1, (40, *plan.input_shape))

    plain = plaintext.predict(plan, weights, images)

    # Four truncations and the inputs' rounding: a few units of 2^-16 each, through kernels of size about one.
    np.testing.assert_allclose(private_logits(plan, weights, images), plain, atol=1e-3)
    assert np.abs(plain).max() > 0.1


def test_threat_34_an_input_out_of_range_stays_in_its_row(mnist: data.Mnist, trained: Any) -> None:
    plan, weights = export(trained)
    words = encode_input(plan, data.pixels(mnist.test_images[:4]))
    honest = decode_output(plan, private_words(plan, weights, words))
    words[1] = 2**62
    words[2] = 2**64 - 2**62

    answers = decode_output(plan, private_words(plan, weights, words))

    np.testing.assert_allclose(answers[[0, 3]], honest[[0, 3]], atol=LARGEST_LOGIT_ERROR)


def test_what_is_sent_does_not_depend_on_the_images(mnist: data.Mnist, trained: Any) -> None:
    plan, weights = export(trained)
    parameters = share_weights(plan, weights, fresh_stream())
    costs = set()
    for images in (data.pixels(mnist.test_images[:1]), np.zeros((1, 28, 28, 1)), np.ones((1, 28, 28, 1))):
        inputs = replicated.share(encode_input(plan, images), fresh_stream(), plan.fraction_bits)
        run = simulate(
            lambda party, x=inputs: layers.predict(party, plan, parameters[party.id], x[party.id]),
            record=True,
        )
        costs.add(run.cost)

    assert len(costs) == 1
    print(costs)


def test_threat_31_no_party_holds_a_parameter() -> None:
    """Neither in a share nor in what arrives: not as float32, float64, nor as ring elements."""
    plan, weights = wide_network()
    parameters = share_weights(plan, weights, fresh_stream())
    words = encode_input(plan, np.zeros((2, *plan.input_shape)))
    inputs = replicated.share(words, fresh_stream(), plan.fraction_bits)
    run = simulate(
        lambda party: layers.predict(party, plan, parameters[party.id], inputs[party.id]), record=True
    )

    for party in range(3):
        held = run.wire[party] + plan.to_json()
        held += b"".join(share.own.tobytes() + share.next.tobytes() for share in parameters[party])
        for array, encoded in zip(weights, encode_weights(plan, weights), strict=True):
            for form in (array.astype("<f4"), array.astype(">f4"), array, encoded, encoded.byteswap()):
                assert form.tobytes()[:16] not in held
    # The search finds what is there.
    everything = b"".join(share.own.tobytes() for share in parameters[0])
    assert parameters[0][0].own.tobytes()[:16] in everything


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (np.zeros((2, 28, 28)), "expected examples of shape"),
        (np.zeros((28, 28, 1)), "expected examples of shape"),
        (np.full((1, 28, 28, 1), 255), "divided by 255"),
        (np.full((1, 28, 28, 1), np.nan), "at least one value"),
        (np.full((1, 28, 28, 1), -0.01), "between 0 and 1"),
        (np.full((1, 28, 28, 1), "x"), "as numbers"),
    ],
)
def test_images_that_do_not_fit_are_refused_before_anything_is_sent(
    trained: Any, images: np.ndarray, text: str
) -> None:
    with pytest.raises(InputError, match=text):
        encode_input(export(trained)[0], images)


def test_shares_that_do_not_fit_the_plan_are_refused() -> None:
    plan, weights = wide_network()
    parameters = share_weights(plan, weights, fresh_stream())
    words = encode_input(plan, np.zeros((1, *plan.input_shape)))
    fits = replicated.share(words, fresh_stream(), plan.fraction_bits)
    other_bits = replicated.share(words, fresh_stream(), plan.fraction_bits + 1)

    with pytest.raises(InputError, match="has parameters"):
        simulate(lambda party: layers.predict(party, plan, parameters[party.id][:-1], fits[party.id]))
    with pytest.raises(InputError, match="fraction bits"):
        simulate(lambda party: layers.predict(party, plan, parameters[party.id], other_bits[party.id]))
    with pytest.raises(InputError, match="takes"):
        simulate(lambda party: layers.predict(party, plan, parameters[party.id], fits[party.id][:, :5]))
    with pytest.raises(InputError, match="has parameters"):
        encode_weights(plan, weights[::-1])
