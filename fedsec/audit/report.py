"""The tables of an audit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from fedsec.audit.figures import run_title
from fedsec.privacy.accounting import rounded_up

_Runs = Sequence[Mapping[str, Any]]


def print_audit(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Print an audit.

    Args:
        found: As ``audit.json`` holds it.
        console: Where to; standard output by default.
    """
    console = console or Console()
    runs = found["runs"]
    tables: Mapping[str, Callable[[_Runs], Table]] = {
        "membership": _membership,
        "lira": _lira,
        "fairness": _fairness,
    }
    for part, table in tables.items():
        if part in runs[0]:
            console.print(table(runs))
    others: Mapping[str, Callable[[Mapping[str, Any]], Table | str]] = {
        "inversion": _inversion,
        "canaries": _canaries,
        "mechanism": _mechanism,
    }
    for part, show in others.items():
        if part in found:
            console.print(show(found[part]), highlight=False)
    console.print(
        f"{found['seconds']:.0f} s; audit.json and pictures are in {runs[0]['run']}",
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
    table.add_row("area under the curve", *(_rate(one["area"], "{:.3f}") for one in found))
    table.add_row("true positives at 1 % false", *(_rate(one["at_one_percent"]) for one in found))
    table.add_row("true positives at 0.1 % false", *(_rate(one["at_one_permille"]) for one in found))
    return table


def _fairness(runs: _Runs) -> Table:
    both = len(runs) > 1
    table = _table(
        "Accuracy by group",
        runs,
        caption="on MNIST's 10,000 test images; a hospital's: weighted so that digits are as frequent as in"
        " its own records. In brackets 95 % intervals",
    )
    if both:
        table.add_column("difference", justify="right")
    found = [run["fairness"] for run in runs]
    _group(table, "all", [one["accuracy"] for one in found])
    for kind in ("classes", "hospitals"):
        table.add_section()
        named = [{group["name"]: group["accuracy"] for group in one[kind]} for one in found]
        for name in named[0]:
            title = f"digit {name}" if kind == "classes" else name
            _group(table, title, [groups.get(name) for groups in named])
    table.add_section()
    table.add_row("worst class", *(f"digit {one['worst_class']}" for one in found))
    table.add_row("worst hospital", *(one["worst_hospital"] for one in found))
    return table


def _inversion(found: Mapping[str, Any]) -> Table:
    noise = found["noise"]
    table = _plain_table(
        "From an update of one image back to the image",
        ("what the attacker has", "correlation", "PSNR, dB"),
        caption=f"a {found['model']} before its first round; noise {noise['multiplier']:.2f} times the clip"
        f" {noise['clip']:g}; correlation: with the true image, guessing gives 0 on average. Pictures:"
        " inversion.png",
    )
    for view in found["views"]:
        table.add_row(view["name"], f"{view['correlation']:.3f}", f"{view['psnr']:.1f}")
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
    table.add_row("area under the curve", *(_rate(one["attack"]["area"], "{:.3f}") for one in both))
    table.add_row("true positives at 1 % false", *(_rate(one["attack"]["at_one_percent"]) for one in both))
    return table


def _mechanism(found: Mapping[str, Any]) -> Table:
    bound = found["found"]
    table = _plain_table(
        "DP-SGD against its own claim",
        ("", ""),
        caption=f"noise {found['noise_multiplier']:g} times the clip; {bound['canaries']:,} canaries made to"
        f" be found, in or out by a coin; the bound holds with confidence {bound['confidence']:.1%}",
    )
    table.add_row("epsilon claimed, at most", rounded_up(found["claimed"]))
    table.add_row("epsilon found, at least", f"{bound['epsilon']:.3f}")
    table.add_row("right guesses", f"{bound['right']} of {bound['guesses']}")
    table.add_row("verdict", "BROKEN: more was found than claimed" if found["broken"] else "not refuted")
    return table


def _group(table: Table, title: str, rates: Sequence[Mapping[str, float] | None]) -> None:
    cells = ["-" if rate is None else _rate(rate) for rate in rates]
    if len(rates) > 1:
        first, second = rates
        cells.append(f"{100 * (second['value'] - first['value']):+.2f}" if first and second else "-")
    table.add_row(title, *cells)


def _rate(rate: Mapping[str, float], form: str = "{:.2%}") -> str:
    low, high = form.format(rate["low"]), form.format(rate["high"])
    return f"{form.format(rate['value'])} ({low} to {high})"


def _table(title: str, runs: _Runs, caption: str) -> Table:
    return _plain_table(title, ("", *(run_title(run) for run in runs)), caption)


def _plain_table(title: str, heads: Sequence[str], caption: str) -> Table:
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left")
    return table
