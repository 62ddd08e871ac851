"""Randomised response: the shift that the joint draw says, its law, and who knows of it: nobody."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy import special, stats

from fedsec.mpc import Party, simulate
from fedsec.mpc.dealt.gates import Masks, Material
from fedsec.mpc.dealt.protocols import run_alone
from fedsec.mpc.dealt.responses import ResponseGate, randomised_response
from fedsec.mpc.party import Layout
from fedsec.mpc.randomised_response import ResponseLaw
from fedsec.mpc.simulator import Draw, RecordingParty, SimulationResult, View
from fedsec.ring import KeyedStream, RingArray, derive_key
from fedsec.sharing import replicated
from fedsec.sharing.replicated import RepShare
from fedsec.testing import Secret, check_protocol
from fedsec.testing.checks import P_LIMIT
from fedsec.testing.example import Example, known_draws
from fedsec.testing.fixed_inputs import p_of_fixed_inputs

pytest_plugins = ["fedsec.testing"]

TINY = ResponseLaw(classes=2, bits=2, others=1)
"""Tables of few words, for what looks at every one of them."""

SMALL = ResponseLaw(classes=3, bits=4, others=4)
"""Half of all answers are the label, a quarter each of the other two."""

FOUND = 1e-12
"""P-values of what is broken; all keys are fixed here, so that what passes once passes always."""


def _labels_agree(result: RingArray, expected: RingArray) -> bool:
    """Whether these are labels at all: which ones is the subject of the other tests."""
    return result.shape == expected.shape and bool((result < TINY.classes).all())


@pytest.mark.slow  # all four checks of it; shorter ones are below
@check_protocol(
    randomised_response,
    inputs={"label": Secret((1,), low=0, high=1), "law": TINY},
    agrees=_labels_agree,
)
def test_randomised_response(label: Any, law: ResponseLaw) -> Any:
    return label


Protocol = Callable[[Party, RepShare, ResponseLaw], RepShare]


def _answered(
    law: ResponseLaw, labels: np.ndarray, *, key: str = "answers", protocol: Protocol = randomised_response
) -> tuple[np.ndarray, SimulationResult[RepShare]]:
    """Return the answers to labels, and what was seen meanwhile, under keys that are fixed by a name."""
    seed, of_labels = (derive_key(bytes(32), purpose=f"test {what}", context=key.encode()) for what in "ab")
    shares = replicated.share(labels.astype(np.uint64).reshape(-1, 1), KeyedStream(of_labels))
    done = simulate(lambda party: protocol(party, shares[party.id], law), seed=seed, record=True)
    return replicated.reconstruct(done.results)[:, 0].astype(np.int64), done


def _draws(view: View, pair: tuple[int, int]) -> list[RingArray]:
    return [event.words for event in view.calls[0] if isinstance(event, Draw) and event.pair == pair]


def _drawn_jointly(done: SimulationResult[RepShare]) -> np.ndarray:
    """Return a_1 + a_2 + b: the dealer draws its parts last, the evaluators only this between them."""
    a_1, a_2 = (_draws(done.views[0], pair)[-1] for pair in ((0, 1), (0, 2)))
    (b,) = _draws(done.views[1], (1, 2))
    assert np.array_equal(b, _draws(done.views[2], (1, 2))[0])
    return (a_1 + a_2 + b)[:, 0].astype(np.int64)


def _shift_by_definition(law: ResponseLaw, word: np.ndarray) -> np.ndarray:
    """Intervals of the numbers below 2^bits: first that of the label, then those of shifts 1, 2, ..."""
    place = word % 2**law.bits
    starts = [2**law.bits - (law.classes - shift) * law.others for shift in range(1, law.classes)]
    return sum((place >= start).astype(np.int64) for start in starts)  # type: ignore[return-value]


LAWS = [
    SMALL,
    ResponseLaw.of(2, 0.5),
    ResponseLaw.of(10, 1.0),
    ResponseLaw.of(10, 5.0),
    ResponseLaw.of(128, 6.0),
    ResponseLaw.of(129, 6.0),
    ResponseLaw.of(1000, 8.0),
]


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_the_answer_is_the_label_shifted_as_the_joint_draw_says(law: ResponseLaw) -> None:
    labels = np.arange(120) * 7 % law.classes

    answers, done = _answered(law, labels)

    shifts = _shift_by_definition(law, _drawn_jointly(done))
    assert np.array_equal(answers, (labels + shifts) % law.classes)
    assert done.cost == randomised_response.cost(done.results[0], law)


def test_what_is_no_label_is_taken_modulo_the_classes_and_shifted_by_the_same_law() -> None:
    """A modified client's inconsistent image may give any word in plain mode."""
    words = np.array([2**64 - 1, 2**63, 12345, 3, 4, 5, 6, 7] * 15, dtype=np.uint64)

    answers, done = _answered(SMALL, words)

    shifts = _shift_by_definition(SMALL, _drawn_jointly(done))
    assert np.array_equal(answers, ((words % 4).astype(np.int64) % 3 + shifts) % 3)


def _p_of_law(law: ResponseLaw, answers: np.ndarray, labels: np.ndarray) -> float:
    """Return the p-value of "every label is answered by the law, and neighbours independently"."""
    truth = law.truths / 2**law.bits
    expected = np.array([truth] + [(1 - truth) / (law.classes - 1)] * (law.classes - 1))
    shifts = (answers - labels) % law.classes
    ps = []
    for label in range(law.classes):
        seen = np.bincount(shifts[labels == label], minlength=law.classes)
        ps.append(stats.chisquare(seen, expected * seen.sum()).pvalue)
    # Equal or not, side by side: a quarter of a million cells would be too empty.
    wrong = shifts.reshape(-1, 2) != 0
    pairs = np.bincount(2 * wrong[:, 0] + wrong[:, 1], minlength=4)
    chances = np.outer([truth, 1 - truth], [truth, 1 - truth]).ravel()
    ps.append(stats.chisquare(pairs, chances * pairs.sum()).pvalue)
    return float(min(1.0, min(ps) * len(ps)))


@pytest.mark.parametrize("law", [SMALL, ResponseLaw.of(10, 1.0), ResponseLaw.of(10, 3.0)], ids=str)
def test_answers_follow_the_law(law: ResponseLaw) -> None:
    labels = np.arange(20_000) // 2 % law.classes
    answers, _done = _answered(law, labels)

    assert _p_of_law(law, answers, labels) > 1e-4
    # The test can tell: another epsilon is noticed.
    other = ResponseLaw.of(law.classes, law.epsilon + 0.3)
    assert _p_of_law(other, answers, labels) < FOUND


class _Reversed(ResponseLaw):
    """The intervals in the wrong order: the long one is that of the last shift."""

    @property
    def shifts(self) -> RingArray:  # type: ignore[override]
        return super().shifts[::-1].copy()


class _Exchanged(ResponseLaw):
    """The label and shift 1 have changed their chances."""

    @property
    def shifts(self) -> RingArray:  # type: ignore[override]
        table = super().shifts.copy()
        return np.where(table < 2, 1 - table, table).astype(table.dtype)


@pytest.mark.parametrize("broken", [_Reversed, _Exchanged])
def test_thresholds_in_the_wrong_order_are_noticed(broken: type[ResponseLaw]) -> None:
    law = ResponseLaw.of(10, 1.0)
    labels = np.arange(20_000) // 2 % 10
    answers, done = _answered(broken(law.classes, law.bits, law.others), labels)

    shifts = _shift_by_definition(law, _drawn_jointly(done))
    assert not np.array_equal(answers, (labels + shifts) % 10)
    # Turned round, each shift but 0 has its chance still: only the draw tells that one from the law.
    assert (_p_of_law(law, answers, labels) < FOUND) is (broken is _Exchanged)


class _OneForTwo(ResponseGate):
    """Neighbours in a batch get one shift."""

    def deal(
        self, r: Sequence[RingArray], shares: Sequence[RingArray], masks: Sequence[Masks]
    ) -> RingArray | None:
        for part in masks[0]:
            part[1::2] = part[::2]
        return super().deal(r, shares, masks)

    def prepare(self, r: Any, shares: Any, masks: Any) -> tuple[Material, RingArray | None]:
        masks[0][1::2] = masks[0][::2]
        return super().prepare(r, shares, masks)


class _DealerAlone(ResponseGate):
    """The evaluators add nothing to the draw: the dealer knows the shift."""

    def prepare(self, r: Any, shares: Any, masks: Any) -> tuple[Material, RingArray | None]:
        return super().prepare(r, shares, [np.zeros_like(masks[0]), *masks[1:]])


class _EvaluatorsAlone(ResponseGate):
    """The dealer adds nothing: both evaluators know the shift."""

    def deal(
        self, r: Sequence[RingArray], shares: Sequence[RingArray], masks: Sequence[Masks]
    ) -> RingArray | None:
        none = np.zeros_like(masks[0][0])
        return super().deal(r, shares, [(none, none), *masks[1:]])


class _OneEvaluatorAlone(ResponseGate):
    """Only what the dealer and evaluator 2 share is used: both know the shift."""

    def deal(
        self, r: Sequence[RingArray], shares: Sequence[RingArray], masks: Sequence[Masks]
    ) -> RingArray | None:
        return super().deal(r, shares, [(np.zeros_like(masks[0][0]), masks[0][1]), *masks[1:]])

    def prepare(self, r: Any, shares: Any, masks: Any) -> tuple[Material, RingArray | None]:
        return super().prepare(r, shares, [np.zeros_like(masks[0]), *masks[1:]])


class _SumInTheClear(ResponseGate):
    """Label plus shift is opened without its mask."""

    def deal(
        self, r: Sequence[RingArray], shares: Sequence[RingArray], masks: Sequence[Masks]
    ) -> RingArray | None:
        none = np.zeros_like(masks[1][0])
        return super().deal(r, shares, [masks[0], (none, none), *masks[2:]])

    def prepare(self, r: Any, shares: Any, masks: Any) -> tuple[Material, RingArray | None]:
        return super().prepare(r, shares, [masks[0], np.zeros_like(masks[1]), *masks[2:]])


def _by(gate: type[ResponseGate]) -> Protocol:
    return lambda party, label, law: run_alone(party, gate(party.id, law), [label], 0)


def _place_told_to(receiver: int, sender: int, pair: tuple[int, int]) -> Protocol:
    """After an honest run a party tells another one what that lacks of the draw."""

    def protocol(party: Party, label: RepShare, law: ResponseLaw) -> RepShare:
        answer = randomised_response(party, label, law)
        assert isinstance(party, RecordingParty)
        if party.id == sender:
            party.exchange({receiver: [_draws(party.view, pair)[-1]]}, {})
        elif party.id == receiver:
            words = _draws(party.view, (0, 1) if receiver == 0 else (1, 2))[-1]
            party.exchange({}, {sender: [Layout.of(words)]})
        return answer

    return protocol


def _p_of_no_knowledge(
    law: ResponseLaw, done: SimulationResult[RepShare], secret: np.ndarray, told: np.ndarray
) -> float:
    """Return the p-value of "no party that is told something can tell a secret better for what it saw".

    For each of its words an image, each sum and difference of two and each sum of three: the shift of the
    law at that place, and its lowest bits, must be independent of the secret wherever the same was told.
    """
    ps = []
    for view in done.views:
        words = _known_words(done.views, view.party_id, len(secret))
        totals = [*words, *(x + y for x, y in combinations(words, 2))]
        totals += [x + y + z for x, y, z in combinations(words, 3)]
        totals += [x - y for x, y in combinations(words, 2)]
        for total in totals:
            for feature in (_shift_by_definition(law, total), total % 2**law.sum_bits):
                ps += [
                    _p_of_independence(secret[told == one], feature[told == one]) for one in np.unique(told)
                ]
    return float(min(1.0, min(ps) * len(ps)))


def _p_of_independence(first: np.ndarray, second: np.ndarray) -> float:
    columns = int(second.max()) + 1
    table = np.bincount(first * columns + second, minlength=(int(first.max()) + 1) * columns)
    table = table.reshape(-1, columns)
    table = table[table.any(axis=1)][:, table.any(axis=0)]
    # Pearson's test, by hand: SciPy's has a few hundred microseconds of checks, and there are thousands.
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    degrees = (table.shape[0] - 1) * (table.shape[1] - 1)
    return float(special.chdtrc(degrees, ((table - expected) ** 2 / expected).sum())) if degrees else 1.0


def _known_words(views: Sequence[View], party_id: int, images: int) -> list[np.ndarray]:
    """Return every array of one word an image that a party can draw, receives, or opens with another."""
    arrays = known_draws(views, party_id, 0, None)
    for event in views[party_id].received():
        arrays.append(event.words)
        if event.answered is not None:
            arrays.append(event.words + event.answered)
    return [words[:, 0].astype(np.int64) for words in arrays if words.shape == (images, 1)]


def _p_of_noise_view(protocol: Protocol) -> float:
    labels = np.full(3000, 2)
    answers, done = _answered(SMALL, labels, key="noise view", protocol=protocol)
    assert np.array_equal(np.unique(answers), [0, 1, 2])
    return _p_of_no_knowledge(SMALL, done, (answers - labels) % 3, np.zeros(3000))


def _p_of_view_with_user(protocol: Protocol) -> float:
    labels = np.arange(3000) % 3
    answers, done = _answered(SMALL, labels, key="view with user", protocol=protocol)
    return _p_of_no_knowledge(SMALL, done, labels, answers)


def test_no_party_knows_the_shift() -> None:
    assert _p_of_noise_view(randomised_response) > P_LIMIT


def test_a_party_together_with_the_user_knows_the_answer_and_no_more() -> None:
    assert _p_of_view_with_user(randomised_response) > P_LIMIT
    # What it would find: who knows the shift, and the answer, knows the label.
    assert _p_of_view_with_user(_by(_DealerAlone)) < FOUND


@pytest.mark.parametrize(
    "protocol",
    [
        pytest.param(_by(_DealerAlone), id="drawn by the dealer alone"),
        pytest.param(_by(_EvaluatorsAlone), id="drawn by the evaluators alone"),
        pytest.param(_by(_OneEvaluatorAlone), id="drawn by the dealer and one evaluator"),
        pytest.param(_by(_SumInTheClear), id="label plus shift in the clear"),
        pytest.param(_place_told_to(0, 1, (1, 2)), id="opened to the dealer"),
        pytest.param(_place_told_to(2, 0, (0, 1)), id="opened to an evaluator"),
    ],
)
def test_a_shift_that_a_party_knows_is_noticed(protocol: Protocol) -> None:
    assert _p_of_noise_view(protocol) < FOUND


def test_one_shift_for_two_images_is_noticed() -> None:
    labels = np.arange(20_000) // 2 % 3
    answers, _done = _answered(SMALL, labels, protocol=_by(_OneForTwo))

    assert _p_of_law(SMALL, answers, labels) < FOUND


def _p_of_messages(protocol: Callable[..., Any]) -> float:
    inputs = {"label": Secret((1,), low=0, high=1), "law": TINY}
    seed = derive_key(bytes(32), purpose="test")
    return p_of_fixed_inputs(Example(protocol, inputs), 1 << 12, seed, None)


def test_messages_hide_the_label() -> None:
    assert _p_of_messages(randomised_response) > P_LIMIT


def test_a_sum_in_the_clear_shows_the_label() -> None:
    assert _p_of_messages(_by(_SumInTheClear)) < FOUND
