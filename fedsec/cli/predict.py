"""``fedsec predict``: ask for private predictions; the image leaves this process in shares only."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedsec.cli.output import print_json
from fedsec.errors import UsageError
from fedsec.lab.images import read_pictures, read_test_images
from fedsec.lab.predicting import Answers, predict, run_credentials
from fedsec.nn import REVEALS, Reveal

_WIDTH = 40
_BLOCK = "\u2588"
_WORTH_A_LOOK = 0.005
_MOST_BARS = 5


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "run_folder",
        type=Path,
        nargs="?",
        metavar="RUN",
        help="a local run that is being served: stands for its cluster file and its user's identity",
    )
    parser.add_argument("--cluster", type=Path, metavar="FILE", help="where the parties are, and their keys")
    parser.add_argument("--identity", type=Path, metavar="FILE", help="the user's identity")
    images = parser.add_mutually_exclusive_group()
    images.add_argument(
        "--test-index",
        type=int,
        nargs="+",
        metavar="I",
        help="MNIST test images, by number; with RUN the default is 0 1 2",
    )
    images.add_argument(
        "--image",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="pictures of digits, light on dark; for images other than 28 x 28 grey ones, ask in Python",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="how long to wait for a service that is only just being started; 0 by default",
    )
    parser.add_argument(
        "--reveal",
        choices=REVEALS,
        help="what to ask for, if the owner allows it; the rest is not opened; logits by default, if allowed",
    )
    parser.add_argument(
        "--logits", action="store_true", help="print the logits of each image too; asks for them"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def run(options: argparse.Namespace) -> int:
    """Ask, and print one label an image, or what else was asked for."""
    if options.run_folder is not None:
        if options.cluster is not None or options.identity is not None:
            raise UsageError("give either RUN or --cluster and --identity, not both")
        cluster, identity = run_credentials(options.run_folder)
    elif options.cluster is None or options.identity is None:
        raise UsageError("expected RUN, or --cluster FILE and --identity FILE: who to ask, and who is asking")
    elif not (options.image or options.test_index):
        raise UsageError("expected --image FILE or --test-index I: what to ask about")
    else:
        cluster, identity = options.cluster, options.identity
    images = (
        read_pictures(options.image) if options.image else read_test_images(options.test_index or [0, 1, 2])
    )
    answer = predict(cluster, identity, images, reveal=_wanted(options), wait_s=options.wait)
    if options.json:
        print_json(answer.summary())
    else:
        for line in describe(answer, bars=sys.stdout.isatty(), logits=options.logits):
            print(line)
        if answer.noise is not None:
            # Beside the labels, which scripts read.
            text = f"these labels are noisy: each is by chance another one (epsilon {answer.noise.epsilon:g})"
            print(text, file=sys.stderr)
    return 0


def _wanted(options: argparse.Namespace) -> Reveal | None:
    """Return what to ask for; None leaves it to what the service allows."""
    if options.logits and options.reveal not in {None, "logits"}:
        raise UsageError(f"--logits prints what --reveal {options.reveal} does not open: give one of them")
    wanted: Reveal | None = "logits" if options.logits else options.reveal
    return wanted


def describe(answer: Answers, *, bars: bool, logits: bool = False) -> list[str]:
    """Return the lines to print.

    Args:
        answer: What was learnt.
        bars: Whether a person looks at a terminal: probabilities are drawn then.
        logits: Whether all logits are wanted too.
    """
    labels = " ".join(str(label) for label in answer.labels)
    if answer.reveal == "top3":
        return [" ".join(str(label) for label in row) for row in answer.values]
    if answer.reveal == "probabilities" and bars:
        pairs = zip(answer.labels, answer.values, strict=True)
        return [line for label, row in pairs for line in [str(label), *_bars(row)]]
    if answer.reveal == "probabilities" or logits:
        return [labels, *(" ".join(f"{value:8.3f}" for value in row) for row in answer.values)]
    return [labels]


def _bars(probabilities: npt.NDArray[np.float64]) -> list[str]:
    """Draw the classes that are worth a look, the most likely first."""
    order = np.argsort(-probabilities, kind="stable")
    likely = [index for index in order if probabilities[index] >= _WORTH_A_LOOK][:_MOST_BARS]
    return [
        f"  {index:3d} {probabilities[index]:6.1%} {_BLOCK * max(1, round(_WIDTH * probabilities[index]))}"
        for index in likely
    ]
