"""``fedsec serve``: hold a model in shares and answer private predictions."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from fedsec.errors import UsageError
from fedsec.lab.offer import Offer, noise_of, usual_reveal
from fedsec.lab.serving import serve_at, serve_here
from fedsec.nn import REVEALS
from fedsec.serving.messages import Mode
from fedsec.serving.spending import check_noise


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "model", type=Path, metavar="RUN|MODEL", help="a run's folder, or a .keras or .h5 file"
    )
    parser.add_argument(
        "--num-requests", type=int, metavar="N", help="images to answer, then end; without it, until Ctrl-C"
    )
    parser.add_argument(
        "--quota", type=int, metavar="N", help="images that one certificate may ask for; without it, no limit"
    )
    parser.add_argument(
        "--reveal",
        action="append",
        choices=REVEALS,
        help="what users may ask for, and nothing else is opened; may be repeated; logits by default",
    )
    _configure_noise(parser)
    parser.add_argument(
        "--mode",
        choices=get_args(Mode),
        default="dealt",
        help="dealt, the default: randomness is prepared while the parties are idle; plain: nothing is",
    )
    parser.add_argument(
        "--ports",
        type=int,
        nargs="+",
        metavar="PORT",
        help="ports of the parties on this machine; free ones by default",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="where a Keras file gets its run folder; runs by default",
    )
    parser.add_argument("--cluster", type=Path, metavar="FILE", help="use parties that already run elsewhere")
    parser.add_argument("--identity", type=Path, metavar="FILE", help="the owner's identity, with --cluster")
    parser.add_argument(
        "--replace",
        action="store_true",
        help="with --cluster: end first what is served there, for example by an owner's process that died",
    )


def _configure_noise(parser: argparse.ArgumentParser) -> None:
    """Declare the options of noisy labels."""
    noise = parser.add_argument_group(
        "noisy labels",
        "hide the model and its training data from who asks, and nothing else; a model that was trained with"
        " differential privacy needs none",
    )
    noise.add_argument(
        "--label-epsilon",
        type=float,
        metavar="E",
        help="answer labels by randomised response of this epsilon, up to 10, each image anew; reveals label"
        " and nothing else",
    )
    noise.add_argument(
        "--identity-epsilon",
        type=float,
        metavar="A",
        help="what answers to one certificate may spend together; without it, no limit",
    )
    noise.add_argument(
        "--total-epsilon",
        type=float,
        metavar="B",
        help="what answers to all users may spend together; without it, no limit",
    )


def run(options: argparse.Namespace) -> int:
    """Serve until the requests are answered or a signal comes."""
    offer = _offer(options)
    if (options.cluster is None) != (options.identity is None):
        raise UsageError("--cluster and --identity belong together: the parties, and who the owner is")
    if options.cluster is None:
        answered = serve_here(options.model, offer, runs=options.runs, ports=options.ports, say=_say)
    elif options.ports:
        raise UsageError("--ports is for parties started here; with --cluster they already run")
    else:
        answered = serve_at(
            options.model, options.cluster, options.identity, offer, replace=options.replace, say=_say
        )
    _say(f"answered {answered} image(s); the service has ended")
    return 0


def _offer(options: argparse.Namespace) -> Offer:
    for name, limit in (("--num-requests", options.num_requests), ("--quota", options.quota)):
        if limit is not None and limit < 1:
            raise UsageError(f"{name}: expected at least 1 image, got {limit}")
    noise = noise_of(options.label_epsilon, options.identity_epsilon, options.total_epsilon)
    reveals = tuple(options.reveal or (usual_reveal(noise),))
    check_noise(noise, reveals)
    return Offer(
        num_requests=options.num_requests,
        quota=options.quota,
        reveals=reveals,
        mode=options.mode,
        noise=noise,
    )


def _say(text: str) -> None:
    print(text, flush=True)
