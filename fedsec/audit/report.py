"""The tables of an audit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedsec.audit.figures import run_privacy, run_title
from fedsec.privacy.accounting import rounded_up

_Runs = Sequence[Mapping[str, Any]]

_RATES = {
    "at_one_percent": "true positives at 1 % false",
    "at_one_permille": "true positives at 0.1 % false",
}
_INVERTED = {
    "before": "drawn without asking",
    "member": "like the nearest training image",
    "other": "like the nearest of as many others",
    "nearer": "how much nearer training images are",
}


def print_audit(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Print an audit.

    Args:
        found: As ``audit.json`` holds it.
        console: Where to; standard output by default.
    """
    console = console or Console()
    runs = found["runs"]
    tables: Mapping[str, Callable[[_Runs], Table | str]] = {
        "membership": _membership,
        "lira": _lira,
        "fairness": _fairness,
        "model_inversion": _model_inversion,
    }
    for part, table in tables.items():
        if part in runs[0]:
            console.print(table(runs), highlight=False)
    others: Mapping[str, Callable[[Mapping[str, Any]], Table | str]] = {
        "inversion": _inversion,
        "canaries": _canaries,
        "mechanism": _mechanism,
    }
    for part, show in others.items():
        if part in found:
            console.print(show(found[part]), highlight=False)
    console.print(
        f"{found['seconds']:.0f} s; audit.json and pictures are in {found['folder']}",
        highlight=False,
        soft_wrap=True,
    )


def _membership(runs: _Runs) -> Table:
    return _attacks("Membership inference by loss", runs, "membership")


def _lira(runs: _Runs) -> Table:
    shadows = runs[0]["lira"]["shadows"]
    return _attacks(
        f"Membership inference with {shadows} shadow models, which train without noise", runs, "lira"
    )


def _attacks(title: str, runs: _Runs, part: str) -> Table:
    first = runs[0][part]
    table = _table(
        title,
        runs,
        caption=f"{first['members']:,} members, {first['others']:,} others ({first['others_are']});"
        " guessing: 0.5, 1 %, 0.1 %; in brackets 95 % intervals",
    )
    found = [run[part] for run in runs]
    table.add_row("area under the curve", *(shown_rate(one["area"], "{:.3f}") for one in found))
    for name, row in _RATES.items():
        table.add_row(row, *(shown_rate(one[name]) for one in found))
    return table


def _fairness(runs: _Runs) -> Table:
    changes = [run["fairness"]["change"] for run in runs[1:]]
    table = _table(
        "Accuracy by group",
        runs,
        caption="on MNIST's 10,000 test images; a hospital's: weighted so that digits are as frequent as in"
        " its own records; change: from the first run, in points. In brackets 95 % intervals",
    )
    for run in runs[1:]:
        table.add_column(f"change with {run_privacy(run)}", justify="right")
    found = [run["fairness"] for run in runs]
    table.add_row(
        "all",
        *(shown_rate(one["accuracy"]) for one in found),
        *("-" if one is None else _points(one["accuracy"]) for one in changes),
    )
    for kind in ("classes", "hospitals"):
        table.add_section()
        named = [{group["name"]: group["accuracy"] for group in one[kind]} for one in found]
        for name in named[0]:
            rates = [groups.get(name) for groups in named]
            table.add_row(
                f"digit {name}" if kind == "classes" else name,
                *("-" if rate is None else shown_rate(rate) for rate in rates),
                *("-" if one is None else _points(one[kind][name]) for one in changes),
            )
    table.add_section()
    for kind, form in (("worst_class", "digit {}"), ("worst_hospital", "{}")):
        table.add_row(
            f"{kind.replace('_', ' ')}; loses most",
            *(form.format(one[kind]) for one in found),
            *("-" if one is None else form.format(one[kind]) for one in changes),
        )
    return table


def _model_inversion(runs: _Runs) -> Table | str:
    attacked = [run for run in runs if "refused" not in run["model_inversion"]]
    if not attacked:
        return f"no answers were turned into pictures: {escape(runs[0]['model_inversion']['refused'])}"
    refused = "".join(
        f". Not attacked: {run_title(run)}: {escape(run['model_inversion']['refused'])}"
        for run in runs
        if run not in attacked
    )
    found = [run["model_inversion"] for run in attacked]
    classes = " or ".join(str(count) for count in sorted({len(one["labels"]["classes"]) for one in found}))
    table = _table(
        "Model inversion: from answers back to pictures of a class",
        attacked,
        caption=f"{found[0]['labels']['starts']} pictures of each of {classes} classes; correlations,"
        " medians over classes; the attacker knows images of the other classes. The parties' plan answers,"
        " on real numbers, rounded as users get it. Pictures: model-inversion.png; in brackets 95 %"
        f" intervals{refused}",
    )
    for attack in found[0]:
        table.add_section()
        rows = [one[attack] for one in found]
        table.add_row(
            f"[bold]by {attack}[/]: like the class's mean",
            *(shown_rate(one["mean"], "{:.2f}") for one in rows),
        )
        for name, title in _INVERTED.items():
            table.add_row(title, *(shown_rate(one[name], "{:.2f}") for one in rows))
        table.add_row("most like their own class", *(shown_rate(one["recognised"], "{:.0%}") for one in rows))
        table.add_row("queries for a picture", *(f"{one['queries']:,.0f}" for one in rows))
    return table


def _inversion(found: Mapping[str, Any]) -> Table | str:
    if "refused" in found:
        return f"no update was inverted: {found['refused']}"
    noise = found["noise"]
    table = _plain_table(
        "From an update of one image back to the image",
        ("what the attacker has", "correlation", "PSNR, dB"),
        caption=f"medians over {found['images']} images, in brackets 95 % intervals; a {found['model']}"
        f" before its first round; noise {noise['multiplier']:.2f} times the clip {noise['clip']:g};"
        " correlation: with the true image, guessing gives 0. Pictures: inversion.png",
    )
    for view in found["views"]:
        table.add_row(
            view["name"], shown_rate(view["correlation"], "{:.3f}"), shown_rate(view["psnr"], "{:.1f}")
        )
    return table


def _canaries(found: Mapping[str, Any]) -> Table | str:
    if "refused" in found:
        return f"no canaries were planted: {found['refused']}"
    planting = found["planting"]
    table = _plain_table(
        "Canaries: random images with random labels",
        ("", "without noise", f"with DP-SGD, epsilon {planting['epsilon']:g}"),
        caption=f"{planting['canaries']} canaries among {planting['records']} images of one hospital,"
        f" {planting['epochs']} epochs; ranked among {planting['references']:,} that nobody trained on;"
        " nothing memorised: about 1 bit, area 0.5; in brackets 95 % intervals",
    )
    both = [found["plain"], found["private"]]
    table.add_row(
        "exposure, median, bits",
        *(f"{one['median']:.1f} ({one['low']:.1f} to {one['high']:.1f})" for one in both),
    )
    table.add_row("exposure, largest", *(f"{one['largest']:.1f}" for one in both))
    table.add_row("area under the curve", *(shown_rate(one["attack"]["area"], "{:.3f}") for one in both))
    for name, row in _RATES.items():
        table.add_row(row, *(shown_rate(one["attack"][name]) for one in both))
    return table


def _mechanism(found: Mapping[str, Any]) -> Table:
    bounds = [found["plain"], found["found"]]
    table = _plain_table(
        "DP-SGD against its own claim",
        ("", "without DP-SGD", f"noise {found['noise_multiplier']:g} times the clip"),
        caption=f"{bounds[1]['canaries']:,} canaries made to be found, in or out by a coin; the bounds hold"
        f" with confidence {bounds[1]['confidence']:.1%}",
    )
    table.add_row("epsilon claimed, at most", "-", rounded_up(found["claimed"]))
    table.add_row("epsilon found, at least", *(f"{bound['epsilon']:.3f}" for bound in bounds))
    table.add_row("right guesses", *(f"{bound['right']} of {bound['guesses']}" for bound in bounds))
    verdict = "BROKEN: more was found than claimed" if found["broken"] else "not refuted"
    table.add_row("verdict", "-", verdict)
    return table


def shown_rate(rate: Mapping[str, float], form: str = "{:.2%}") -> str:
    """Return a rate and its interval as text."""
    low, high = form.format(rate["low"]), form.format(rate["high"])
    return f"{form.format(rate['value'])} ({low} to {high})"


def _points(rate: Mapping[str, float]) -> str:
    """Return a difference of rates in percentage points."""
    return shown_rate({name: 100 * value for name, value in rate.items()}, "{:+.1f}")


def _table(title: str, runs: _Runs, caption: str) -> Table:
    return _plain_table(title, ("", *(run_title(run) for run in runs)), caption)


def _plain_table(title: str, heads: Sequence[str], caption: str) -> Table:
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left")
    return table
