"""Heads: what is made of the logits, in the clear and at the parties."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from scipy.stats import chisquare

from fedsec.errors import UnsupportedModelError, UsageError
from fedsec.mpc import simulate
from fedsec.mpc.randomised_response import ResponseLaw
from fedsec.nn import REVEALS, Plan, Weights, plaintext, plan_network
from fedsec.nn.accuracy import error_bound
from fedsec.nn.engine import make_engine
from fedsec.nn.heads import softmax_error
from fedsec.nn.network import DenseLayer, Network, ReluLayer
from fedsec.nn.plan import RandomisedResponse, TopK
from fedsec.nn.weights import encode_input, share_weights
from fedsec.ring import decode, fresh_stream
from fedsec.sharing import replicated


def planned(classes: int, scale: float = 8.0) -> tuple[Plan, Weights]:
    """Logits that are the inputs times a number."""
    layer = DenseLayer("d", np.eye(classes) * scale, np.zeros(classes))
    return plan_network(Network("logits", (classes,), (layer,), -1.0, 1.0))


def inputs(classes: int, count: int = 60) -> np.ndarray:
    """Multiples of 1/64, so that equal logits occur and others are well apart."""
    generator = np.random.default_rng(classes)
    drawn = generator.integers(-64, 65, (count, classes)) / 64
    drawn[:3] = [[0.0], [1.0], [-1.0]]
    drawn[3], drawn[4] = -1.0, -1.0
    drawn[3, -1], drawn[4, 0] = 1.0, 1.0
    return drawn


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def in_order(logits: np.ndarray, count: int) -> np.ndarray:
    """The places of the largest, of equal ones the first, one by one."""
    rows = [sorted(range(len(row)), key=lambda i: (-row[i], i))[:count] for row in logits.tolist()]
    return np.array(rows)


def at_the_parties(
    mode: str, plan: Plan, weights: Weights, x: np.ndarray, reveal, *, epsilon=None, seed=None
) -> np.ndarray:
    shares = share_weights(plan, weights, fresh_stream())
    given = replicated.share(encode_input(plan, x), fresh_stream(), plan.fraction_bits)
    done = simulate(
        lambda party: make_engine(mode, party, plan, shares[party.id], epsilon).predict(
            given[party.id], reveal
        ),
        seed=seed,
    )
    words = sum(done.results[1:], start=done.results[0])
    return decode(words, plan.with_head(reveal).output_fraction_bits)


def test_logits_are_the_plan_itself() -> None:
    plan, _ = planned(4)

    assert plan.with_head("logits") is plan
    assert REVEALS == ("logits", "probabilities", "label", "top3")


@pytest.mark.parametrize("mode", ["clear", "plain", "dealt"])
@pytest.mark.parametrize("classes", [2, 3, 5, 10])
def test_labels_are_the_places_of_the_largest(classes: int, mode: str) -> None:
    plan, weights = planned(classes)
    x = inputs(classes)
    for reveal, count in (("label", 1), ("top3", min(3, classes))):
        if mode == "clear":
            answers = plaintext.predict(plan.with_head(reveal), weights, x)
        else:
            answers = at_the_parties(mode, plan, weights, x, reveal)

        np.testing.assert_array_equal(answers, in_order(x, count))


@pytest.mark.parametrize("mode", ["plain", "dealt"])
def test_noisy_labels_follow_the_law(mode: str) -> None:
    """The keys are fixed, so the shifts are: what passes once passes always."""
    plan, weights = planned(10)
    x, law = inputs(10, 1500), ResponseLaw.of(10, 2.0)

    answers = at_the_parties(mode, plan, weights, x, "label", epsilon=2.0, seed=bytes(32))

    assert answers.shape == (1500, 1)
    shifts = ((answers - in_order(x, 1)) % 10).astype(int).ravel()
    chances = [law.truth] + [(1 - law.truth) / 9] * 9
    assert chisquare(np.bincount(shifts, minlength=10), 1500 * np.array(chances)).pvalue > 1e-4


def test_only_a_label_can_be_noisy_and_says_so() -> None:
    plan, weights = planned(10)
    noisy = plan.with_head("label", 2.0)

    assert isinstance(noisy.layers[-1], RandomisedResponse)
    assert noisy.layers[-1].law == ResponseLaw.of(10, 2.0)
    assert (noisy.output_shape, noisy.output_fraction_bits) == ((1,), 0)
    assert noisy.digest() != plan.with_head("label").digest()
    assert Plan.from_json(noisy.to_json()) == noisy
    for reveal in ("logits", "probabilities", "top3"):
        with pytest.raises(UsageError, match=f"{reveal} cannot be revealed with noise"):
            plan.with_head(reveal, 2.0)
    with pytest.raises(UsageError, match="labels, which have no distance"):
        error_bound(noisy, weights)


@pytest.mark.parametrize("classes", [2, 3, 10, 100, 1024])
@pytest.mark.parametrize("scale", [0.5, 8.0, 300.0])
def test_probabilities_are_the_softmax(classes: int, scale: float) -> None:
    plan, weights = planned(classes, scale)
    x = inputs(classes, 20)

    answers = plaintext.predict(plan.with_head("probabilities"), weights, x)

    assert np.abs(answers - softmax(x * scale)).max() <= softmax_error(classes)
    # Worst cases for every class add up in the bound.
    assert np.abs(answers - softmax(x * scale)).max() < 0.004


@pytest.mark.parametrize("mode", ["plain", "dealt"])
@pytest.mark.parametrize(("classes", "scale"), [(2, 8.0), (10, 8.0), (10, 100.0), (33, 2.0)])
def test_the_parties_compute_probabilities(classes: int, scale: float, mode: str) -> None:
    plan, weights = planned(classes, scale)
    x = inputs(classes, 20)

    answers = at_the_parties(mode, plan, weights, x, "probabilities")

    assert np.abs(answers - softmax(x * scale)).max() <= error_bound(plan, weights, "probabilities")
    assert np.abs(answers - softmax(x * scale)).max() < 0.004
    np.testing.assert_allclose(answers.sum(axis=1), 1.0, atol=0.01)


def test_a_head_has_no_parameters_and_other_shapes() -> None:
    plan, _ = planned(10)
    shapes = {reveal: plan.with_head(reveal).output_shape for reveal in REVEALS}

    assert shapes == {"logits": (10,), "probabilities": (10,), "label": (1,), "top3": (3,)}
    for reveal in REVEALS:
        headed = plan.with_head(reveal)
        assert headed.weight_specs == plan.weight_specs
        assert Plan.from_json(headed.to_json()) == headed
    assert plan.with_head("label").output_fraction_bits == 0


def test_a_plan_with_a_small_answer_keeps_its_fraction_bits() -> None:
    layers = (DenseLayer("d", np.eye(3), np.zeros(3)), ReluLayer("r"))
    plan, weights = plan_network(Network("relu", (3,), layers, -1.0, 1.0), fraction_bits=8)

    step = plan.with_head("label").layers[-1]

    assert isinstance(step, TopK)
    assert step.bits == 0
    answers = plaintext.predict(plan.with_head("probabilities"), weights, np.eye(3))
    np.testing.assert_allclose(answers, softmax(np.eye(3)), atol=0.01)


@pytest.mark.parametrize("reveal", ["probabilities", "label", "top3"])
def test_answers_that_are_no_logits_of_classes_have_no_head(reveal) -> None:
    one, _ = plan_network(Network("one", (3,), (DenseLayer("d", np.ones((3, 1)), np.zeros(1)),)))
    rows, _ = plan_network(Network("rows", (2, 3), (DenseLayer("d", np.ones((3, 2)), np.zeros(2)),)))
    many, _ = plan_network(Network("many", (2,), (DenseLayer("d", np.ones((2, 1025)), np.zeros(1025)),)))

    for plan in (one, rows, many):
        with pytest.raises(UnsupportedModelError, match=f"{reveal} cannot be revealed; reveal logits"):
            plan.with_head(reveal)
    assert one.with_head("logits") is one


def test_larger_logits_are_compared_on_fewer_bits() -> None:
    steps = {scale: planned(4, scale)[0].with_head("label").layers[-1] for scale in (8.0, 2.0**17, 2.0**20)}

    bits = [32 - step.bits for step in steps.values() if isinstance(step, TopK)]
    assert bits == [11, 9, 6]
    assert max(step.window_bits for step in steps.values() if isinstance(step, TopK)) == 30
    for reveal in ("label", "probabilities"):
        with pytest.raises(UnsupportedModelError, match="reveal logits, or train with smaller parameters"):
            planned(4, 2.0**22)[0].with_head(reveal)


def test_an_unknown_way_to_reveal_is_refused() -> None:
    with pytest.raises(UsageError, match="expected logits, probabilities, label or top3"):
        planned(3)[0].with_head("everything")  # type: ignore[arg-type]


def test_every_machine_makes_the_same_head() -> None:
    """Parties and users make heads on their own: another number anywhere would give nonsense."""
    headed = planned(10)[0].with_head("probabilities")
    numbers = repr(
        [
            (step.knots, step.slopes, step.first_slope, step.offset)
            for step in headed.layers
            if step.name in {"softmax exponential", "softmax reciprocal"}
        ]
    )

    digest = hashlib.sha256(numbers.encode()).hexdigest()
    assert digest == "f485b7da4a8841f06c84764b457c11548ef647dbbe8c8a08c1cc65888212459b"
