"""A label reveals the label: two models that give the same one look alike to client and parties."""

from __future__ import annotations

import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsec.mpc import Party, simulate
from fedsec.mpc.simulator import Draw, Received, SimulationResult
from fedsec.nn import engine
from fedsec.nn.engine import DealtEngine
from fedsec.nn.plan import Plan
from fedsec.testing.mutants import Mutant, make_stream
from fedsec.testing.statistics import Looks, uniform_bytes

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))

from small_plan import CLASSES, LABEL, LOGITS, Model, of_party, share_images

ROWS = 2048
"""Times that the one image is asked about: each row has masks of its own."""

IMAGE = np.random.default_rng(5).random((1, 6))
P_LIMIT = 1e-9
MOST_COLUMNS = 512


def _two_models() -> tuple[Model, Model]:
    models = [Model.drawn(seed) for seed in range(40)]
    of_label = [model for model in models if model.logits(IMAGE).argmax() == models[0].logits(IMAGE).argmax()]
    return of_label[0], of_label[1]


@pytest.fixture(autouse=True)
def one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deal all rows at once, so that every message has one line a row."""
    monkeypatch.setattr(engine, "BLOCK_IMAGES", ROWS)
    for limit in ("BLOCK_BYTES", "BATCH_BYTES"):
        monkeypatch.setattr(engine, limit, 1 << 40)


def _ask(model: Model, plan: Plan = LABEL, **options: Any) -> SimulationResult[Any]:
    weights, x = model.shares(), share_images(np.repeat(IMAGE, ROWS, axis=0))

    def program(party: Party) -> Any:
        return DealtEngine(party, plan, of_party(weights, party.id)).predict(x[party.id], "logits")

    return simulate(program, record=True, **options)


def _joined(done: SimulationResult[Any]) -> Any:
    first, second, third = done.results
    return first + second + third


def _p_of_uniform(words: Any) -> float:
    octets = np.ascontiguousarray(words).view(np.uint8).reshape(ROWS, -1)
    step = -(-octets.shape[1] // MOST_COLUMNS)
    return uniform_bytes(np.ascontiguousarray(octets[:, ::step]))


def _leak(done: SimulationResult[Any]) -> float:
    """Return the p-value of "all that the parties received, and each of the client's shares, is uniform"."""
    looks = Looks()
    for words in done.results:
        looks.add(_p_of_uniform(words))
    for view in done.views:
        for message in view.received():
            looks.add(_p_of_uniform(message.words))
    return looks.p


def _course(done: SimulationResult[Any]) -> Any:
    """Return who sent what size under which label, in order, to whom."""
    return [
        [(event.sender, event.label, event.words.shape, event.words.dtype) for event in view.received()]
        for view in done.views
    ] + [[words.shape for words in done.results]]


def test_threat_32_two_models_with_one_label_are_indistinguishable() -> None:
    models = _two_models()
    logits = [model.logits(IMAGE) for model in models]
    assert np.abs(logits[0] - logits[1]).max() > 0.1

    first, second = (_ask(model) for model in models)

    # What the client puts together is one word, and the same.
    assert _joined(first).shape == (ROWS, 1)
    assert np.array_equal(_joined(first), _joined(second))
    assert np.unique(_joined(first)) == logits[0].argmax()
    # Sizes, labels and order of all messages are the same.
    assert _course(first) == _course(second)
    # All that a party receives, and each single answer share, is uniform with either model.
    assert _leak(first) > P_LIMIT
    assert _leak(second) > P_LIMIT


def test_threat_32_revealed_logits_do_tell_the_models_apart() -> None:
    first, second = (_joined(_ask(model, LOGITS)) for model in _two_models())

    assert not np.any(first == second)


def test_the_look_at_all_messages_has_teeth() -> None:
    model, _ = _two_models()

    assert _leak(_ask(model, make_stream=partial(make_stream, Mutant.NO_MASK))) < P_LIMIT
    assert _leak(_ask(model, make_stream=partial(make_stream, Mutant.LOW_HALF))) < P_LIMIT


def _rows_that_the_dealer_explains(done: SimulationResult[Any]) -> int:
    """Count the answer shares of party 1 that are a sum of entries of its dealt tables of places.

    The dealer knows all entries. If it learns from a user which of them were added up, it knows the masked
    wins and, by its masks, the order of all logits.
    """
    shape = (ROWS, 1, CLASSES, CLASSES)
    (places,) = {
        event.words.tobytes()
        for event in done.views[0].calls[0]
        if isinstance(event, Draw) and event.words.shape == shape
    }
    table = np.frombuffer(places, dtype="<u8").reshape(ROWS, CLASSES, CLASSES)
    sums = [
        sum(table[:, entry, value] for value, entry in enumerate(entries))
        for entries in product(range(CLASSES), repeat=CLASSES)
    ]
    return int(np.any(np.array(sums) == done.results[1][:, 0], axis=0).sum())


def test_a_user_and_the_dealer_learn_nothing_from_an_evaluators_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, _ = _two_models()

    assert _rows_that_the_dealer_explains(_ask(model)) == 0

    # The zero share is what keeps it so.
    monkeypatch.setattr(Party, "zero_share", lambda party, shape, *ring: np.zeros(shape, dtype=np.uint64))
    assert _rows_that_the_dealer_explains(_ask(model)) == ROWS


def test_the_dealer_hears_of_no_question() -> None:
    done = _ask(_two_models()[0])

    assert not [event for event in done.views[0].calls[0] if isinstance(event, Received)]
    sent_online = [r for r in done.logs["party-0"] if r.event == "send" and not r.label.startswith("deal/")]
    assert not sent_online
