"""``fedsec run``: a scenario from TOML."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedsec.cli.options import add_final_json, add_overrides, add_runs
from fedsec.cli.output import print_json, reporter
from fedsec.lab.engines import ENGINES
from fedsec.lab.report import print_summary
from fedsec.lab.run import run_scenario
from fedsec.scenario import Scenario


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "scenario", type=Path, metavar="SCENARIO", help="a folder with scenario.toml, or a TOML file"
    )
    add_overrides(parser)
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default=ENGINES[0],
        help="where hospitals and server run: in this process (default), in Flower's simulation engine with"
        " Ray, or as Flower's SuperLink with a SuperNode for each hospital",
    )
    add_runs(parser)
    add_final_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run the scenario and print its table."""
    scenario = Scenario.load(options.scenario, options.overrides)
    if scenario.study.wanted:
        return _study(scenario, options)
    with reporter(silent=options.json) as progress:
        result = run_scenario(scenario, runs=options.runs, reporter=progress, engine=options.engine)
    if options.json:
        print_json(result.summary())
    else:
        print_summary(result.summary())
    return 0


def _study(scenario: Scenario, options: argparse.Namespace) -> int:
    """Run all of a study and print its tables."""
    # Loading TensorFlow takes seconds, which --help should not have to wait for.
    from fedsec.audit.study import run_study  # noqa: PLC0415 - as said above
    from fedsec.audit.study_report import print_study  # noqa: PLC0415 - as said above

    with reporter(silent=options.json) as progress:
        study = run_study(scenario, runs=options.runs, reporter=progress, engine=options.engine)
    if options.json:
        print_json(study.summary())
    else:
        print_study(study.summary())
    return 0
