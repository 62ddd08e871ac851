"""``fedsec predict``: ask for private predictions; the image leaves this process in shares only."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedsec.cli.output import print_json
from fedsec.errors import UsageError
from fedsec.lab.images import read_pictures, read_test_images
from fedsec.lab.predicting import predict, run_credentials


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
        "--image", type=Path, nargs="+", metavar="FILE", help="pictures of digits, light on dark"
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="how long to wait for a service that is only just being started",
    )
    parser.add_argument("--logits", action="store_true", help="print the ten logits of each image too")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def run(options: argparse.Namespace) -> int:
    """Ask, and print one label an image."""
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
    answer = predict(cluster, identity, images, wait_s=options.wait)
    if options.json:
        print_json(answer.summary())
        return 0
    print(" ".join(str(label) for label in answer.labels))
    if options.logits:
        for row in answer.logits:
            print(" ".join(f"{value:8.3f}" for value in row))
    return 0
