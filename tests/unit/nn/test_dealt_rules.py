"""Rules of dealt mode: material is used once, parties agree on it, and nothing of it outlives an error."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsec.errors import FedsecError, ProtocolError
from fedsec.mpc import Party, establish, simulate
from fedsec.mpc.dealt import LinearGate
from fedsec.mpc.simulator import Draw, SimulationResult
from fedsec.nn.engine import DealtEngine
from fedsec.ring import RING64, decode
from fedsec.sharing.replicated import RepShare
from fedsec.transport import Deadline, memory_mesh

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))

from small_plan import LABEL, LOGITS, Model, of_party, share_images

WAIT_S = 60.0
OVER = "ended with an earlier error"
MODEL = Model.drawn(1)
IMAGES = np.random.default_rng(2).random((5, 6))

Program = Callable[[Party, DealtEngine, RepShare], Any]


def _run(program: Program, images: Any = IMAGES, plan: Any = LOGITS, **options: Any) -> SimulationResult[Any]:
    weights, x = MODEL.shares(), share_images(images)

    def body(party: Party) -> Any:
        return program(party, DealtEngine(party, plan, of_party(weights, party.id)), x[party.id])

    return simulate(body, **{"wait_s": WAIT_S} | options)


def _joined(results: Any) -> Any:
    first, second, third = results
    return first + second + third


def _draws(done: SimulationResult[Any], party_id: int) -> list[Draw]:
    return [event for event in done.views[party_id].calls[0] if isinstance(event, Draw)]


def _words_of(draws: list[Draw]) -> Any:
    octets = b"".join(draw.words.tobytes() for draw in draws)
    return np.frombuffer(octets[: len(octets) // 8 * 8], dtype="<u8")


def _predict(party: Party, engine: DealtEngine, x: RepShare) -> Any:
    return engine.predict(x, "logits")


def test_threat_08_material_is_taken_from_the_queue_before_a_byte_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left: dict[int, list[int]] = {0: [], 1: [], 2: []}
    swap = Party.swap
    engines: dict[int, DealtEngine] = {}

    def watched(party: Party, other: int, words: Any) -> Any:
        if party.id in engines:
            left[party.id].append(engines[party.id].ready("logits"))
        return swap(party, other, words)

    def program(party: Party, engine: DealtEngine, x: RepShare) -> Any:
        engine.prepare(8, "logits")
        engines[party.id] = engine
        engine.predict(x, "logits")
        return engine.ready("logits")

    monkeypatch.setattr(Party, "swap", watched)
    done = _run(program)

    assert done.results == (3, 3, 3)
    assert left[1]
    assert set(left[1]) == set(left[2]) == {3}
    assert left[0] == []


def test_threat_08_the_same_query_again_opens_other_words() -> None:
    def program(party: Party, engine: DealtEngine, x: RepShare) -> None:
        engine.predict(x, "logits")
        engine.predict(x, "logits")

    done = _run(program, record=True)

    for view in done.views[1:]:
        opened = [message.words for message in view.received() if message.label.startswith("online/")]
        half = len(opened) // 2
        assert half >= 3
        for first, again in zip(opened[:half], opened[half:], strict=True):
            assert first.shape == again.shape
            assert not np.any(first == again) or first.dtype.itemsize < 8


def test_threat_08_52_no_word_of_any_block_is_drawn_twice() -> None:
    def program(party: Party, engine: DealtEngine, x: RepShare) -> Any:
        engine.prepare(20, "logits")
        for _ in range(3):
            engine.predict(x, "logits")

    runs = [_run(program, record=True) for _ in range(2)]

    # The dealer draws from both pairs; a second session draws other words again.
    words = np.concatenate([_words_of(_draws(done, 0)) for done in runs])
    assert words.size > 2000
    assert np.unique(words).size == words.size


def test_threat_52_a_new_session_deals_under_new_keys() -> None:
    def words() -> Any:
        mesh = memory_mesh(("a", "b", "c"))
        names = ("a", "b", "c")
        found: dict[int, Any] = {}

        def join(i: int) -> None:
            before, after = names[(i - 1) % 3], names[(i + 1) % 3]
            party = establish(
                i, mesh[names[i], before], mesh[names[i], after], b"session", Deadline.after(WAIT_S)
            )
            found[i] = party.dealt_stream_with((i + 1) % 3, b"deal/0/logits/1/").words(64, RING64)

        _together(join)
        return np.concatenate([found[i] for i in range(3)])

    first, again = words(), words()

    assert not np.intersect1d(first, again).size


def _together(join: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=join, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _refused_then_over(engine: DealtEngine, x: RepShare) -> tuple[str, str, int]:
    """Predict twice; return both errors and what is left."""
    errors = []
    for _ in range(2):
        try:
            engine.predict(x, "logits")
            errors.append("none")
        except FedsecError as error:
            errors.append(OVER if OVER in str(error) else f"{type(error).__name__}: {error}")
    return errors[0], errors[1], engine.ready("logits")


def test_threat_52_evaluators_at_different_blocks_end_the_session() -> None:
    def program(party: Party, engine: DealtEngine, x: RepShare) -> Any:
        if party.id == 1:
            party.take_index()
        engine.prepare(8, "logits")
        return _refused_then_over(engine, x)

    done = _run(program)

    for first, second, left in done.results[1:]:
        assert first.startswith("ProtocolError")
        assert second == OVER
        assert left == 0


def test_threat_52_a_party_at_another_block_masks_with_unrelated_words() -> None:
    def program(party: Party, engine: DealtEngine, x: RepShare) -> Any:
        if party.id == 1:
            party.take_index()
        engine.prepare(8, "logits")

    done = _run(program, record=True)

    dealer = _words_of([draw for draw in _draws(done, 0) if draw.pair == (0, 1)])
    astray = _words_of(_draws(done, 1))
    assert dealer.size == astray.size > 100
    assert not np.intersect1d(dealer, astray).size


def test_threat_52_parties_that_deal_for_different_numbers_of_images_get_unrelated_words() -> None:
    def program(party: Party, engine: DealtEngine, x: RepShare) -> Any:
        engine.prepare(8 if party.id != 1 else 9, "logits")

    done = _run(program, record=True)

    dealer = _words_of([draw for draw in _draws(done, 0) if draw.pair == (0, 1)])
    assert not np.intersect1d(dealer, _words_of(_draws(done, 1))).size


def test_threat_52_another_plan_gets_unrelated_words() -> None:
    weights = MODEL.shares()

    def program(party: Party) -> Any:
        plan = LABEL if party.id == 1 else LOGITS
        DealtEngine(party, plan, of_party(weights, party.id)).prepare(4, "logits")

    done = simulate(program, record=True, wait_s=WAIT_S)

    dealer = _words_of([draw for draw in _draws(done, 0) if draw.pair == (0, 1)])
    assert not np.intersect1d(dealer, _words_of(_draws(done, 1))).size


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("place", ["prepare", "run"])
def test_threat_52_after_any_error_nothing_of_the_queue_is_used(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException], place: str
) -> None:
    honest = getattr(LinearGate, place)
    broken = False

    def failing(gate: LinearGate, *arguments: Any) -> Any:
        if broken and gate.party_id == 1:
            raise error
        return honest(gate, *arguments)

    def program(party: Party, engine: DealtEngine, x: RepShare) -> Any:
        nonlocal broken
        engine.prepare(8, "logits")
        if party.id != 1:
            # Evaluator 2 waits in vain.
            return _refused_then_over(engine, x) if (party.id, place) == (2, "run") else None
        broken = True
        fails = partial(engine.prepare, 1) if place == "prepare" else partial(engine.predict, x)
        with pytest.raises(error):
            fails("logits")
        broken = False
        for again in (partial(engine.prepare, 1), partial(engine.predict, x)):
            with pytest.raises(ProtocolError, match=OVER):
                again("logits")
        return engine.ready("logits")

    monkeypatch.setattr(LinearGate, place, failing)

    results = _run(program, wait_s=1.5).results

    assert results[1] == 0
    if place == "run":
        assert results[2][0].startswith("DeadlineError")
        assert results[2][1:] == (OVER, 0)


def test_threat_52_a_lost_message_ends_the_session_at_both_evaluators() -> None:
    def program(party: Party, engine: DealtEngine, x: RepShare) -> Any:
        engine.prepare(8, "logits")
        return _refused_then_over(engine, x) if party.id == 1 else None

    # Evaluator 2 never answers.
    first, second, left = _run(program, wait_s=1.5).results[1]

    assert first.startswith("DeadlineError")
    assert second == OVER
    assert left == 0


def test_threat_07_the_view_of_the_dealer_is_a_function_of_its_keys_and_shares() -> None:
    weights, x = MODEL.shares(), share_images(IMAGES)

    def program(shares: list[Any], party: Party) -> Any:
        *mine, images = of_party(shares, party.id)
        return DealtEngine(party, LABEL, mine).predict(images, "logits")

    # Another model and other images, of which the dealer has the same components.
    others = [_with_another_masked_value(shares) for shares in (*weights, x)]
    done, other = (
        simulate(partial(program, shares), seed=bytes(32), record=True, wait_s=WAIT_S)
        for shares in ([*weights, x], others)
    )

    assert done.wire[0] == other.wire[0] == b""
    assert np.array_equal(done.results[0], other.results[0])
    assert np.array_equal(_words_of(_draws(done, 0)), _words_of(_draws(other, 0)))
    dealt = [[m.words for m in run.views[2].received() if m.sender == 0] for run in (done, other)]
    assert dealt[0]
    assert all(map(np.array_equal, *dealt))
    # The answers do differ: it is another model.
    assert done.wire[1] != other.wire[1]


def _with_another_masked_value(shares: tuple[RepShare, RepShare, RepShare]) -> Any:
    first, second, third = shares
    masked = np.asarray(second.next + np.uint64(1 << 6))
    bits = first.fraction_bits
    return first, RepShare(second.own, masked, bits), RepShare(masked, third.next, bits)


def test_threat_07_a_masked_value_and_its_mask_never_meet() -> None:
    def program(party: Party, engine: DealtEngine, x: RepShare) -> None:
        engine.prepare(len(IMAGES), "logits")
        engine.predict(x, "logits")

    done = _run(program, record=True)

    # Of input, linear map, digits and ReLU, drawn last when preparing; then comes the zero share.
    masks = slice(-5, -1)
    assert len([draw for draw in _draws(done, 0) if draw.pair == (0, 2)]) == 5
    for me, other in ((1, 2), (2, 1)):
        seen = _words_of(_draws(done, me))
        seen = np.concatenate([seen, *(_whole_words(message.words) for message in done.views[me].received())])
        hidden = _words_of([draw for draw in _draws(done, other) if 0 in draw.pair][masks])
        assert hidden.size > 50
        assert not np.intersect1d(seen, hidden).size


def _whole_words(words: Any) -> Any:
    octets = words.tobytes()
    return np.frombuffer(octets[: len(octets) // 8 * 8], dtype="<u8")


def test_whatever_bytes_a_user_sends_are_a_consistent_input() -> None:
    weights = MODEL.shares()
    x = share_images(IMAGES)
    noise = np.random.default_rng(3).integers(0, 1 << 63, x[0].shape, dtype=np.uint64)
    # A modified client: nothing of what party 0 gets fits, nor party 2's copy of component 2.
    crooked = (RepShare(noise, noise + noise, 8), x[1], RepShare(noise, x[2].next, 8))

    def program(images: Any, party: Party) -> Any:
        return DealtEngine(party, LOGITS, of_party(weights, party.id)).predict(images[party.id], "logits")

    straight, bent = (
        _joined(simulate(partial(program, images), seed=bytes(32), wait_s=WAIT_S).results)
        for images in (x, crooked)
    )

    assert np.array_equal(straight, bent)


def test_the_dealt_answers_are_those_in_the_clear() -> None:
    logits = _joined(_run(_predict).results)
    labels = _joined(_run(_predict, plan=LABEL).results)

    expected = MODEL.logits(IMAGES)
    assert np.abs(decode(logits, LOGITS.output_fraction_bits) - expected).max() < 0.1
    assert np.array_equal(labels[:, 0], expected.argmax(axis=1).astype(np.uint64))
