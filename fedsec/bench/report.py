"""The table of ``fedsec bench predict``, each figure beside what is asked of it; rows are for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

Results = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Attributes:
        figure: What was measured.
        value: How much.
        unit: Of the value and of the two bounds.
        must: What is asked of it, if anything.
        aim: What would be good.
        more: Whether more is better.
    """

    figure: str
    value: float
    unit: str
    must: float | None = None
    aim: float | None = None
    more: bool = False

    @property
    def verdict(self) -> str:
        """``aim``, ``must`` or ``missed``; empty if nothing is asked."""
        if self.must is None or self.aim is None:
            return ""
        if self._reaches(self.aim):
            return "aim"
        return "must" if self._reaches(self.must) else "missed"

    def _reaches(self, bound: float) -> bool:
        return self.value >= bound if self.more else self.value <= bound


def rows_of(results: Results) -> list[Row]:
    """Return the figures of a measurement, in the table's order."""
    return [
        *_speed(results),
        *_protocol(results["counts"]),
        *_reveals(results["dealt"]["reveals"]),
        *_noisy(results["noisy_label"]),
        Row("memory of a party", max(results["dealt"]["memory_mib"].values()), "MiB", 250, 190),
        *_start(results),
        *_wan(results),
        *_grown(results),
    ]


def _speed(results: Results) -> list[Row]:
    dealt, tcp, plain = results["dealt"], results["dealt_tcp"], results["plain"]
    one, keras = dealt["one"]["median"], dealt["keras_one"]["predict"]["median"]
    return [
        Row("one image", one, "ms", 1.5, 0.8),
        Row("one image, p95", dealt["one"]["p95"], "ms"),
        Row("one image, times faster than model.predict", keras / one, "x", 25, 25, more=True),
        Row("one image, plain mode", plain["one"]["median"], "ms"),
        Row("one image, plain TCP", tcp["one"]["median"], "ms"),
        Row("one at a time", dealt["sustained_images_s"], "images/s", 400, 700, more=True),
        Row("one at a time, plain mode", plain["sustained_images_s"], "images/s"),
        Row("batches of 128", dealt["batch_images_s"], "images/s", 1200, 2000, more=True),
        Row("batches of 128, plain TCP", tcp["batch_images_s"], "images/s", 2000, 4000, more=True),
        Row("batches of 128, plain mode", plain["batch_images_s"], "images/s"),
    ]


def _protocol(counts: Results) -> list[Row]:
    dealt, plain = counts["dealt"], counts["plain"]
    logits = dealt["logits"]
    return [
        Row("rounds, logits", logits["rounds"], "", 14, 8),
        Row("rounds, label", dealt["label"]["rounds"], "", 22, 14),
        Row("rounds, logits, plain mode", plain["logits"]["rounds"], "", 40, 30),
        Row("rounds, label, plain mode", plain["label"]["rounds"], "", 55, 40),
        Row("payload, online", logits["online_bytes"] / 1e3, "kB", 90, 45),
        Row("payload, prepared", logits["prepared_bytes"] / 1e3, "kB", 200, 100),
        Row("payload, plain mode", plain["logits"]["online_bytes"] / 1e3, "kB", 160, 80),
    ]


def _reveals(reveals: Results) -> list[Row]:
    asked = {"label": (1.0, 0.4), "probabilities": (3.0, 1.5), "top3": (None, None)}
    base = reveals["logits"]["median"]
    return [
        Row(f"{reveal} instead of logits", reveals[reveal]["median"] - base, "ms more", must, aim)
        for reveal, (must, aim) in asked.items()
    ]


def _noisy(noisy: Results) -> list[Row]:
    more = noisy["noisy"]["median"] - noisy["label"]["median"]
    what = f"noisy label (epsilon {noisy['epsilon']:g}) instead of label"
    return [Row(what, more, "ms more"), Row("rounds, noisy label", noisy["counts"]["rounds"], "")]


def _start(results: Results) -> list[Row]:
    if "ready_s" not in results:
        return []
    return [Row("`fedsec serve` ready, best", min(results["ready_s"]), "s", 3, 1.5)]


def _wan(results: Results) -> list[Row]:
    if "wan" not in results:
        return []
    line = results["wan"]
    return [
        Row(f"{line['round_trip_ms']:g} ms line, {reveal}, {mode}", line[mode][reveal]["median"], "ms")
        for mode in ("dealt", "plain")
        for reveal in ("logits", "label")
    ]


def _grown(results: Results) -> list[Row]:
    rows = []
    for name, grown in results.get("grown", {}).items():
        for mode in ("dealt", "plain"):
            rows.append(Row(f"{name}, one image, {mode}", grown[mode]["one"]["median"], "ms"))
            rows.append(Row(f"{name}, batches of 128, {mode}", grown[mode]["batch_images_s"], "images/s"))
    return rows


def print_report(results: Results, console: Console | None = None) -> None:
    """Print the table and Keras' times beside it."""
    console = console or Console()
    print_rows(f"Private prediction, {results['model']['name']}", rows_of(results), console)
    console.print(_keras(results["dealt"]))


def print_rows(title: str, rows: Iterable[Row], console: Console) -> None:
    """Print figures, each beside what is asked of it."""
    table = Table(title=title, title_justify="left")
    for heading, justify in (("figure", "left"), ("measured", "right"), ("must", "right"), ("aim", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    table.add_column("")
    for row in rows:
        table.add_row(
            row.figure, text_of(row.value, row.unit), text_of(row.must), text_of(row.aim), row.verdict
        )
    table.caption = "must, aim: what fedsec asks of itself on two idle cores"
    table.caption_justify = "left"
    console.print(table)


def _keras(dealt: Results) -> Table:
    table = Table(title="Keras on the same model, in the clear, in turns with it", title_justify="left")
    for heading in ("way", "one image, ms", "ratio", "128 images, ms", "ratio"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    names = {"predict": "model.predict", "call": "model(x)", "function": "tf.function"}
    for how, name in names.items():
        one, many = dealt["keras_one"][how]["median"], dealt["keras_batch"][how]["median"]
        ratios = (one / dealt["one"]["median"], many / dealt["batch"]["median"])
        table.add_row(name, text_of(one), f"{ratios[0]:.2f}", text_of(many), f"{ratios[1]:.2f}")
    table.caption_justify = "left"
    table.caption = "ratio: its time by that of a private prediction; above 1 the private one is faster"
    return table


def text_of(value: float | None, unit: str = "") -> str:
    """Return a figure with at most three digits behind each other, and its unit; nothing for None."""
    if value is None:
        return ""
    shown = f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
    return f"{shown} {unit}".strip()
