"""The table of a measurement: what is asked, what was reached."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from fedsec.bench.report import Row, print_report, rows_of


def _timing(median: float) -> dict[str, float]:
    return {"count": 10, "p5": median / 2, "median": median, "p95": 2 * median}


def _counts(rounds: int, online: int, prepared: int) -> dict[str, Any]:
    return {"rounds": rounds, "online_bytes": online, "prepared_bytes": prepared}


def _results(**more: Any) -> dict[str, Any]:
    one_service = {"one": _timing(4.0), "sustained_images_s": 200.0, "batch_images_s": 2500.0}
    keras = {"predict": _timing(50.0), "call": _timing(6.0), "function": _timing(0.7)}
    return {
        "model": {"name": "short-conv"},
        "dealt": {
            "one": _timing(1.0),
            "batch": _timing(64.0),
            "keras_one": keras,
            "keras_batch": keras,
            "sustained_images_s": 800.0,
            "batch_images_s": 1000.0,
            "reveals": {
                "logits": _timing(1.0),
                "label": _timing(1.5),
                "probabilities": _timing(5.0),
                "top3": _timing(1.5),
            },
            "memory_mib": {"party-0": 180.0, "party-1": 200.0, "party-2": 190.0},
        },
        "dealt_tcp": one_service,
        "plain": one_service,
        "counts": {
            "dealt": {"logits": _counts(10, 50_000, 180_000), "label": _counts(14, 1, 1)},
            "plain": {"logits": _counts(35, 150_000, 0), "label": _counts(60, 1, 0)},
        },
        "noisy_label": {
            "epsilon": 3.0,
            "label": _timing(1.5),
            "noisy": _timing(1.75),
            "counts": _counts(15, 1, 1),
        },
        **more,
    }


@pytest.mark.parametrize(
    ("figure", "value", "verdict"),
    [
        ("one image", 1.0, "must"),
        ("one image, times faster than model.predict", 50.0, "aim"),
        ("one at a time", 800.0, "aim"),
        ("batches of 128", 1000.0, "missed"),
        ("batches of 128, plain TCP", 2500.0, "must"),
        ("rounds, logits", 10, "must"),
        ("rounds, label, plain mode", 60, "missed"),
        ("payload, prepared", 180.0, "must"),
        ("label instead of logits", 0.5, "must"),
        ("probabilities instead of logits", 4.0, "missed"),
        ("noisy label (epsilon 3) instead of label", 0.25, ""),
        ("rounds, noisy label", 15, ""),
        ("memory of a party", 200.0, "must"),
        ("one image, plain mode", 4.0, ""),
    ],
)
def test_each_figure_is_held_against_what_is_asked(figure: str, value: float, verdict: str) -> None:
    (row,) = (row for row in rows_of(_results()) if row.figure == figure)
    assert (row.value, row.verdict) == (value, verdict)


def test_what_was_not_measured_has_no_row() -> None:
    assert not [row for row in rows_of(_results()) if "ms line" in row.figure or "ready" in row.figure]
    line = {"logits": _timing(150.0), "label": _timing(200.0)}
    service = {"one": _timing(3.0), "batch_images_s": 90.0}
    more = {
        "ready_s": [2.0, 1.2],
        "wan": {"round_trip_ms": 20.0, "dealt": line, "plain": line},
        "grown": {"mlp-1m": {"dealt": service, "plain": service}},
    }
    figures = {row.figure: row.value for row in rows_of(_results(**more))}
    assert figures["`fedsec serve` ready, best"] == 1.2
    assert figures["20 ms line, label, plain"] == 200.0
    assert figures["mlp-1m, batches of 128, dealt"] == 90.0


def test_the_table_shows_figures_and_ratios() -> None:
    out = io.StringIO()
    print_report(_results(), Console(file=out, width=120))
    shown = " ".join(out.getvalue().split())
    assert "one image │ 1 ms │ 1.5 │ 0.8 │ must" in shown
    assert "model.predict │ 50 │ 50.00 │ 50 │ 0.78" in shown


def test_a_row_without_a_demand_has_no_verdict() -> None:
    assert Row("x", 1.0, "ms").verdict == ""
