"""The user's end: what is revealed comes back exactly, and a lost service is found again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsec.errors import ProtocolError, ServiceEndedError
from fedsec.nn import Plan, Reveal, Weights, plaintext
from fedsec.serving.answers import AnswerForm
from fedsec.serving.client import Client

Model = tuple[Plan, Weights]


@pytest.fixture
def trio(start_trio: Any) -> Any:
    return start_trio()


def images(count: int) -> np.ndarray:
    return np.random.default_rng(5).uniform(size=(count, 6, 6, 1))


def client(trio: Any) -> Client:
    return Client.connect(trio.cluster, trio.identity("user"))


def shares_of(words: np.ndarray) -> list[bytes]:
    masks = [np.random.default_rng(n).integers(0, 2**64, words.shape, np.uint64) for n in (1, 2)]
    return [share.tobytes() for share in (masks[0], masks[1], words - masks[0] - masks[1])]


@pytest.mark.parametrize(("reveal", "shape"), [("label", (5, 1)), ("top3", (5, 3))])
def test_labels_are_joined_as_whole_numbers(model: Model, reveal: Reveal, shape: tuple[int, ...]) -> None:
    form = AnswerForm.of(model[0], reveal)
    labels = np.random.default_rng(0).integers(0, 4, shape)
    joined = form.join(shares_of(labels.astype(np.uint64)), 5)
    assert joined.dtype == np.int64
    np.testing.assert_array_equal(joined, labels[:, 0] if reveal == "label" else labels)


@pytest.mark.parametrize("word", [4, 2**32, 2**63, 2**64 - 1])
def test_shares_that_do_not_belong_together_are_no_label(model: Model, word: int) -> None:
    form = AnswerForm.of(model[0], "label")
    with pytest.raises(ProtocolError, match="labels below 4"):
        form.join(shares_of(np.array([[0], [word]], np.uint64)), 2)


@pytest.mark.parametrize("mode", ["dealt", "plain"])
def test_each_request_gets_what_it_asked_for(trio: Any, model: Model, mode: Any) -> None:
    with trio.owner() as owner:
        owner.share(*model)
        owner.serve(mode=mode, reveals=("logits", "probabilities", "label", "top3"))
        logits = plaintext.predict(*model, images(6))
        order = np.argsort(-logits, axis=1, kind="stable")
        softmax = np.exp(logits - logits.max(axis=1, keepdims=True))
        with client(trio) as user:
            assert user.reveals == ("logits", "probabilities", "label", "top3")
            assert user.mode == mode
            np.testing.assert_allclose(user.predict(images(6)), logits, atol=1e-2)
            label, best = user.predict(images(6), "label"), user.predict(images(6), "top3")
            np.testing.assert_array_equal(label, order[:, 0])
            np.testing.assert_array_equal(best, order[:, :3])
            assert (label.dtype, best.dtype, label.shape, best.shape) == (np.int64, np.int64, (6,), (6, 3))
            probabilities = user.predict(images(6), "probabilities")
            np.testing.assert_allclose(probabilities, softmax / softmax.sum(axis=1, keepdims=True), atol=0.02)
        assert owner.status().answered == 24


def test_a_label_alone_takes_eight_bytes_from_each_party(trio: Any, model: Model) -> None:
    with trio.owner() as owner:
        owner.share(*model)
        owner.serve(reveals=("label",))
        with client(trio) as user:
            assert AnswerForm.of(user.plan, "label").size_bytes(1) == 8
            user.predict(images(1), "label")
            before = user.meter.received_bytes
            user.predict(images(1), "label")
            # Three replies: status, size, message, and one word.
            assert user.meter.received_bytes - before < 3 * 120


def test_the_next_question_finds_the_same_model_again(trio: Any, model: Model) -> None:
    with trio.owner() as owner, client_of(trio, owner, model) as user:
        first = user.predict(images(1))
        owner.stop()
        with pytest.raises(ServiceEndedError):
            user.predict(images(1))
        # Nothing is served: it looks again and says so.
        with pytest.raises(ServiceEndedError):
            user.predict(images(1))
        owner.serve()
        np.testing.assert_allclose(user.predict(images(1)), first, atol=1e-2)


def test_another_model_is_never_asked_by_accident(trio: Any, model: Model) -> None:
    with trio.owner() as owner, client_of(trio, owner, model) as user:
        user.predict(images(1))
        owner.stop()
        with pytest.raises(ServiceEndedError):
            user.predict(images(1))
        owner.share(*model)
        owner.serve()
        for _ in range(2):
            with pytest.raises(ProtocolError, match="another model is served now"):
                user.predict(images(1))


def client_of(trio: Any, owner: Any, model: Model) -> Client:
    owner.share(*model)
    owner.serve()
    return client(trio)
