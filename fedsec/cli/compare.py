"""``fedsec compare``: the same scenario plain and secured, from the same seed."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedsec.cli.options import add_final_json, add_overrides, add_runs
from fedsec.cli.output import print_json, reporter
from fedsec.lab.compare import run_comparison
from fedsec.lab.compare_report import print_comparison
from fedsec.lab.demo import demo_scenario
from fedsec.scenario import Scenario


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "scenario",
        type=Path,
        nargs="?",
        metavar="SCENARIO",
        help="a folder with scenario.toml, or a TOML file; what `fedsec demo` trains by default",
    )
    add_overrides(parser)
    add_runs(parser)
    add_final_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run both sides and print their tables."""
    if options.scenario is None:
        scenario = demo_scenario().override(*options.overrides)
    else:
        scenario = Scenario.load(options.scenario, options.overrides)
    with reporter(silent=options.json) as progress:
        comparison = run_comparison(scenario, runs=options.runs, reporter=progress)
    if options.json:
        print_json(comparison.summary())
    else:
        print_comparison(comparison.summary())
    return 0
