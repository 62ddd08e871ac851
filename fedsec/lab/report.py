"""The final table of an experiment: what came out, what it cost, what each party saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from fedsec.mpc import PROTOCOLS
from fedsec.privacy.accounting import rounded_up

_SHARES = {
    "upload": "shares of updates",
    "reshare_sum": "shares of sums",
    "share_model": "shares of the model",
    "query": "shares of images",
    "deal": "randomness dealt ahead",
}
_STEPS = "masked protocol steps"
_CONTROL = "signed lists, control"
_PROTOCOLS = {name.rpartition(".")[2] for name in PROTOCOLS} | {"online"}


def print_summary(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the tables of a run.

    Args:
        summary: As ``summary.json`` holds it.
        console: Where to; standard output by default.
    """
    console = console or Console()
    console.print(_rounds(summary))
    if "privacy" in summary:
        console.print(_privacy(summary["privacy"]))
    if "whole_hospital" in summary:
        for line in _whole_hospital(summary["whole_hospital"]):
            console.print(line, highlight=False, soft_wrap=True)
    console.print(_traffic(summary["traffic"]))
    console.print(_seen(summary["seen"]))
    if "prediction" in summary:
        prediction = summary["prediction"]
        console.print(_prediction(prediction))
        console.print("answers:", *prediction["labels"], highlight=False)
    console.print(
        f"{summary['seconds']:.0f} s; everything is in {summary['run']}", highlight=False, soft_wrap=True
    )


def _rounds(summary: Mapping[str, Any]) -> Table:
    # Only where all hospitals share this process does anybody know the plain mean.
    observed = any(entry["difference"] is not None for entry in summary["rounds"])
    caption = "hospitals: in the sum"
    if observed:
        caption += (
            ". difference: largest |opened average - plain mean| of one parameter; only this simulation's"
            " observer knows the plain mean"
        )
    heads = ["test accuracy", "hospitals", *(["difference"] if observed else []), "stated bound", "s"]
    table = _table("Training", "round", *heads, caption=caption)
    for entry in summary["rounds"]:
        table.add_row(
            str(entry["round"]),
            "-" if entry["accuracy"] is None else f"{entry['accuracy']:.2%}",
            f"{entry['included']} of {entry['hospitals']}",
            *([_scientific(entry["difference"])] if observed else []),
            _scientific(entry["error_bound"]),
            f"{entry['seconds']:.1f}",
        )
    return table


def _privacy(hospitals: Sequence[Mapping[str, Any]]) -> Table:
    caption = (
        f"for {hospitals[0]['assumptions'].removeprefix('for ')}. Each hospital computes its own row; only"
    )
    table = _table(
        f"Differential privacy at delta {hospitals[0]['delta']:g}",
        "hospital",
        "epsilon",
        "by RDP",
        "noise multiplier",
        "sampling rate",
        "steps",
        caption=f"{caption} this simulation's observer has them all",
    )
    for row in hospitals:
        table.add_row(
            row["hospital"],
            rounded_up(row["epsilon"]),
            rounded_up(row["rdp_epsilon"]),
            f"{row['noise_multiplier']:.3f}",
            f"{row['sampling_rate']:.4f}",
            str(row["steps"]),
        )
    return table


def _whole_hospital(spent: Mapping[str, Any]) -> tuple[str, ...]:
    epsilon, count = rounded_up(spent["epsilon"]), len(spent["hospitals"])
    claim = f"epsilon {epsilon} at delta {spent['delta']:g} after {spent['rounds']} rounds"
    cost = f"noise of {spent['noise_of_mean']:.2g} clips in each parameter of an average"
    length = f"{spent['noise_length']:.1f} clips long over all of them"
    return (
        f"Privacy of whole hospitals: {claim}, for {spent['adjacency']}",
        f"This rests on: {spent['assumptions']}",
        f"What it costs with {count} hospitals: {cost}, {length}; an update is one clip long at most",
    )


def _traffic(traffic: Mapping[str, Mapping[str, int]]) -> Table:
    table = _table("Bytes at the channel meters", "who", "sent", "received")
    for who, meter in traffic.items():
        table.add_row(who, size(meter["sent_bytes"]), size(meter["received_bytes"]))
    return table


def _seen(seen: Mapping[str, Mapping[str, Sequence[int]]]) -> Table:
    """Lay out what each party received, kinds of message put together; every kind is in the summary."""
    table = _table("What each party saw: messages and their size", "messages with", *seen)
    for what in (*_SHARES.values(), _STEPS, _CONTROL):
        cells = [_gathered(messages, what) for messages in seen.values()]
        if any(count for count, _ in cells):
            table.add_row(
                what, *(f"{count} / {size(received)}" if count else "-" for count, received in cells)
            )
    return table


def _gathered(messages: Mapping[str, Sequence[int]], what: str) -> tuple[int, int]:
    counts = [counted for kind, counted in messages.items() if _what(kind) == what]
    return sum(count for count, _ in counts), sum(received for _, received in counts)


def _what(kind: str) -> str:
    """Say in words what messages of a kind hold."""
    return _SHARES.get(kind) or (_STEPS if kind in _PROTOCOLS else _CONTROL)


def _prediction(prediction: Mapping[str, Any]) -> Table:
    table = _table("Private prediction", "test image", "answer", "label", "largest |logit - Keras logit|")
    rows = zip(
        prediction["test_index"],
        prediction["labels"],
        prediction["truth"],
        prediction["differences"],
        strict=True,
    )
    for index, answer, truth, difference in rows:
        table.add_row(str(index), str(answer), str(truth), f"{difference:.4f}")
    return table


def _table(title: str, first: str, *others: str, caption: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _scientific(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def size(count: int) -> str:
    """Return a number of bytes as people read it: 999 B, 1.0 kB, 12.3 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 999.5:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
