"""``fedsec demo``: the whole path on real MNIST, in about a minute on two cores."""

from __future__ import annotations

import argparse

from fedsec.cli.options import add_final_json, add_runs
from fedsec.cli.output import print_json, reporter
from fedsec.lab.demo import demo_scenario, run_demo
from fedsec.lab.report import print_summary


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--rounds", type=int, metavar="N", help="federated rounds; 6 by default")
    parser.add_argument("--examples", type=int, metavar="N", help="training images in all; 60000 by default")
    add_runs(parser)
    add_final_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run the demo and print its table."""
    overrides = []
    if options.rounds is not None:
        overrides.append(f"training.rounds={options.rounds}")
    if options.examples is not None:
        overrides.append(f"training.examples={options.examples}")
    scenario = demo_scenario().override(*overrides)
    with reporter(silent=options.json) as progress:
        result = run_demo(scenario, runs=options.runs, reporter=progress)
    if options.json:
        print_json(result.summary())
    else:
        print_summary(result.summary())
    return 0
