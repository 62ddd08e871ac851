"""What ``fedsec predict`` prints, for people and for programs."""

import argparse

import numpy as np
import pytest

from fedsec.cli import predict
from fedsec.errors import UsageError
from fedsec.lab.predicting import Answers
from fedsec.nn import Reveal
from fedsec.serving.messages import LabelNoise

LOGITS = np.array([[0.25, 3.5, -1.0], [2.0, 0.0, 2.0]])
PROBABILITIES = np.array([[0.036, 0.954, 0.01], [0.4, 0.2, 0.4]])


def answers(reveal: Reveal, values: object) -> Answers:
    return Answers(reveal, np.asarray(values), 0.5, 10, 20)


def test_labels_are_one_line_whatever_was_opened() -> None:
    for reveal, values in (("logits", LOGITS), ("label", [[1], [0]])):
        assert predict.describe(answers(reveal, values), bars=True) == ["1 0"]


def test_logits_are_printed_when_asked_for() -> None:
    lines = predict.describe(answers("logits", LOGITS), bars=False, logits=True)
    assert lines == ["1 0", "   0.250    3.500   -1.000", "   2.000    0.000    2.000"]


def test_the_three_most_likely_are_one_line_an_image() -> None:
    assert predict.describe(answers("top3", [[1, 0, 2], [0, 2, 1]]), bars=True) == ["1 0 2", "0 2 1"]


def test_probabilities_are_bars_on_a_terminal_and_numbers_elsewhere() -> None:
    shown = predict.describe(answers("probabilities", PROBABILITIES), bars=True)
    assert shown[0] == "1"
    assert shown[1] == "    1  95.4% " + "\u2588" * 38
    assert [line.split()[:2] for line in shown[1:4]] == [["1", "95.4%"], ["0", "3.6%"], ["2", "1.0%"]]
    assert [line.split()[0] for line in shown[5:]] == ["0", "2", "1"]
    plain = predict.describe(answers("probabilities", PROBABILITIES), bars=False)
    assert plain == ["1 0", "   0.036    0.954    0.010", "   0.400    0.200    0.400"]


def test_a_class_that_hardly_matters_gets_no_bar() -> None:
    shown = predict.describe(answers("probabilities", [[0.996, 0.004, 0.0]]), bars=True)
    assert len(shown) == 2


def test_the_summary_holds_what_was_opened_and_no_more() -> None:
    assert answers("label", [[1], [0]]).summary() == {
        "reveal": "label",
        "labels": [1, 0],
        "seconds": 0.5,
        "sent_bytes": 10,
        "received_bytes": 20,
    }
    noisy = Answers("label", np.array([[1]]), 0.5, 10, 20, LabelNoise(1.5, None, 9.0))
    assert (noisy.summary()["labels"], noisy.summary()["label_epsilon"]) == ([1], 1.5)
    assert answers("logits", LOGITS).summary()["logits"] == LOGITS.tolist()
    assert answers("top3", [[1, 0, 2]]).summary()["top3"] == [[1, 0, 2]]


def test_logits_and_another_reveal_do_not_go_together() -> None:
    with pytest.raises(UsageError, match="does not open"):
        predict._wanted(argparse.Namespace(logits=True, reveal="label"))
    assert predict._wanted(argparse.Namespace(logits=True, reveal=None)) == "logits"
    assert predict._wanted(argparse.Namespace(logits=False, reveal=None)) is None
