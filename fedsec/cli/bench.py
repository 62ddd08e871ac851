"""``fedsec bench``: measure what things cost on this machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from fedsec.bench import dp
from fedsec.bench.aggregate_report import print_aggregate
from fedsec.bench.engine import bench_engine, print_engine
from fedsec.bench.links import bench_links, print_links
from fedsec.bench.predict import FULL, QUICK, bench_predict
from fedsec.bench.report import print_report
from fedsec.cli.output import print_json
from fedsec.errors import UsageError
from fedsec.nn import REVEALS

_ROUNDS = 1000
_PREDICTIONS = 200


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    what = parser.add_subparsers(title="what to measure", metavar="WHAT", required=True)
    predict = _add(what, "predict", "private predictions beside Keras, a few minutes on two cores", _predict)
    predict.add_argument(
        "model",
        nargs="?",
        type=Path,
        metavar="RUN|MODEL",
        help="a run's folder, or a .keras or .h5 file; by default the short-conv network, random weights",
    )
    predict.add_argument(
        "--quick",
        action="store_true",
        help="about 20 seconds on an idle machine, rough: no long line, no large models",
    )
    aggregate = _add(what, "aggregate", "a round of secure aggregation beside plain FedAvg", _aggregate)
    aggregate.add_argument(
        "--quick", action="store_true", help="fewer hospitals and rounds, rough; about 20 seconds"
    )
    training = _add(what, "dp", "DP-SGD beside Keras' fit of the same model", _dp)
    training.add_argument("--quick", action="store_true", help="fewer images and passes, rough")
    links = _add(what, "links", "one communication round, beside bare sockets", _links)
    links.add_argument(
        "--rounds", type=int, default=_ROUNDS, metavar="N", help=f"of each size; {_ROUNDS} by default"
    )
    engine = _add(what, "engine", "the parties' computation alone, prepared and online part", _engine)
    engine.add_argument(
        "run_folder",
        nargs="?",
        type=Path,
        metavar="RUN",
        help="a run's folder; by default the short-conv network",
    )
    engine.add_argument(
        "--reveal", choices=REVEALS, default="logits", help="what the answer is; logits by default"
    )
    engine.add_argument(
        "--predictions",
        type=int,
        default=_PREDICTIONS,
        metavar="N",
        help=f"of one image; {_PREDICTIONS} by default",
    )


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    options.measure(options)
    return 0


def _add(what: Any, name: str, text: str, measure: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = what.add_parser(name, help=text, description=f"Measure {text}.")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.set_defaults(measure=measure)
    return parser


def _predict(options: argparse.Namespace) -> None:
    results = bench_predict(options.model, QUICK if options.quick else FULL, _say)
    if options.json:
        print_json(results)
    else:
        print_report(results)


def _aggregate(options: argparse.Namespace) -> None:
    # Flower takes half a second to load, which the other measurements do without.
    from fedsec.bench import aggregate  # noqa: PLC0415

    results = aggregate.bench_aggregate(aggregate.QUICK if options.quick else aggregate.FULL, _say)
    if options.json:
        print_json(results)
    else:
        print_aggregate(results)


def _dp(options: argparse.Namespace) -> None:
    results = dp.bench_dp(dp.QUICK if options.quick else dp.FULL, _say)
    if options.json:
        print_json(results)
    else:
        dp.print_dp(results)


def _links(options: argparse.Namespace) -> None:
    if options.rounds < 1:
        raise UsageError(f"--rounds: expected at least 1, got {options.rounds}")
    _say("two processes, then three; raw and ours, TCP and TLS; about ten seconds")
    results = bench_links(options.rounds)
    if options.json:
        print_json(results)
    else:
        print_links(results)


def _engine(options: argparse.Namespace) -> None:
    if options.predictions < 1:
        raise UsageError(f"--predictions: expected at least 1, got {options.predictions}")
    _say("three processes, dealt and plain, TLS and TCP; about 20 seconds")
    results = bench_engine(options.run_folder, options.reveal, options.predictions)
    if options.json:
        print_json(results)
    else:
        print_engine(results)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
