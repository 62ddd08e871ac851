import io
from typing import Any

import pytest
from rich.console import Console

from fedsec.lab.report import print_summary, size

SUMMARY: dict[str, Any] = {
    "run": "/runs/1",
    "seconds": 61.5,
    "rounds": [
        {
            "round": 1,
            "accuracy": 0.9,
            "included": 10,
            "hospitals": 10,
            "difference": 1e-7,
            "error_bound": 2e-6,
            "seconds": 3.2,
        },
        {
            "round": 2,
            "accuracy": 0.9567,
            "included": 7,
            "hospitals": 10,
            "difference": None,
            "error_bound": None,
            "seconds": 3.1,
        },
    ],
    "traffic": {
        "party-0": {"sent_bytes": 12_300_000, "received_bytes": 5},
        "user": {"sent_bytes": 0, "received_bytes": 0},
    },
    "seen": {
        "party-0": {"upload": (10, 2_160_000), "relu": (2, 100), "truncate": (1, 23), "announce": (4, 7)},
        "party-1": {"query": (3, 96), "deal": (5, 61_000), "online": (6, 98)},
    },
    "prediction": {"test_index": [0, 1], "labels": [7, 2], "truth": [7, 2], "differences": [0.003, 0.004]},
}


def shown(summary: dict[str, object]) -> str:
    stream = io.StringIO()
    print_summary(summary, Console(file=stream, width=120))
    return stream.getvalue()


def test_without_an_observer_there_is_no_column_for_what_it_knows() -> None:
    rounds = [{**entry, "difference": None} for entry in SUMMARY["rounds"]]
    text = shown({**SUMMARY, "rounds": rounds})
    assert "difference" in shown(SUMMARY)
    assert "difference" not in text
    assert "stated bound" in text
    assert "2.0e-06" in text


def test_the_tables_show_every_number() -> None:
    text = shown(SUMMARY)
    for part in (
        "95.67%",
        "7 of 10",
        "1.0e-07",
        "2.0e-06",
        "12.3 MB",
        "10 / 2.2 MB",
        "3 / 96 B",
        "3 / 123 B",
        "5 / 61.0 kB",
        "6 / 98 B",
        "4 / 7 B",
        "0.0040",
        "answers: 7 2",
    ):
        assert part in text


def test_a_run_without_predictions_has_no_such_table() -> None:
    assert "answers" not in shown({key: value for key, value in SUMMARY.items() if key != "prediction"})


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (217_640, "217.6 kB"),
        (1_000_000, "1.0 MB"),
        (2 * 10**9, "2.0 GB"),
    ],
)
def test_sizes_read_well(count: int, text: str) -> None:
    assert size(count) == text


def test_epsilons_are_rounded_up_and_say_what_they_rest_on() -> None:
    row = {
        "hospital": "hospital-00",
        "epsilon": 2.0001,
        "rdp_epsilon": 2.2,
        "delta": 1e-5,
        "noise_multiplier": 1.3,
        "sampling_rate": 0.02,
        "steps": 90,
        "assumptions": "for one record replaced by a null record",
    }
    out = io.StringIO()
    print_summary({**SUMMARY, "privacy": [row]}, Console(file=out, width=160))
    assert "2.001" in out.getvalue()
    assert "replaced by a null record" in out.getvalue()


def test_a_run_says_what_the_privacy_of_whole_hospitals_costs() -> None:
    spent = {
        "epsilon": 7.9991, "delta": 1e-5, "hospitals": {"a": 7.9991, "b": 4.0}, "rounds": 6,
        "noise_of_mean": 0.5, "noise_length": 74.4,
        "adjacency": "one whole hospital", "assumptions": "no two",
    }  # fmt: skip
    text = shown({**SUMMARY, "whole_hospital": spent})
    assert "Privacy of whole hospitals: epsilon 8.000 at delta 1e-05 after 6 rounds, for one whole" in text
    assert "This rests on: no two" in text
    assert "with 2 hospitals: noise of 0.5 clips in each parameter of an average, 74.4 clips long" in text
    assert "whole hospitals" not in shown(SUMMARY)
