"""``fedsec status``: health and counters of a service, and the ledger of its queries, for the owner."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fedsec.cli.output import print_json
from fedsec.errors import UsageError
from fedsec.lab.report import size
from fedsec.lab.status import PartyHealth, ServiceHealth, run_owner, service_health
from fedsec.serving.messages import MAX_LISTED, LabelNoise, Status

_NEWEST = 20
_SHOWN = 4  # bytes of a fingerprint or id: enough to tell a handful apart


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = (
        "Exit code 0: users can ask. 6: a party does not answer, or the service is interrupted. "
        "8: no service runs; it has ended, was stopped, or was never started."
    )
    parser.add_argument(
        "run_folder",
        type=Path,
        nargs="?",
        metavar="RUN",
        help="a local run that is being served: stands for its cluster file and its owner's identity",
    )
    parser.add_argument("--cluster", type=Path, metavar="FILE", help="where the parties are, and their keys")
    parser.add_argument("--identity", type=Path, metavar="FILE", help="the owner's identity")
    parser.add_argument(
        "--ledger",
        type=int,
        nargs="?",
        const=_NEWEST,
        default=0,
        metavar="N",
        help=f"list the newest N queries too: who, when, how many images, what for; {_NEWEST} by default",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def run(options: argparse.Namespace) -> int:
    """Print how the service is; the exit code says whether users can ask."""
    cluster, identity = _credentials(options)
    if not 0 <= options.ledger <= MAX_LISTED:
        raise UsageError(f"--ledger: expected 1 to {MAX_LISTED} queries, got {options.ledger}")
    health = service_health(cluster, identity, options.ledger)
    if options.json:
        print_json(health.summary() | ({"ledger": health.ledger()} if options.ledger else {}))
    else:
        _show(health, listed=bool(options.ledger))
    health.check()
    return 0


def _credentials(options: argparse.Namespace) -> tuple[Path, Path]:
    if options.run_folder is not None:
        if options.cluster is not None or options.identity is not None:
            raise UsageError("give either RUN or --cluster and --identity, not both")
        return run_owner(options.run_folder)
    if options.cluster is None or options.identity is None:
        raise UsageError(
            "expected RUN, or --cluster FILE and --identity FILE: who the parties and the owner are"
        )
    return options.cluster, options.identity


def _show(health: ServiceHealth, *, listed: bool) -> None:
    console = Console()
    for line in _headlines(health):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(_parties(health))
    if listed:
        console.print(_ledger(health))


def _headlines(health: ServiceHealth) -> list[str]:
    """Say in two or three lines what is served and how much of it is left."""
    terms = health.terms
    if terms is None or terms.model is None:
        return [f"state: {health.state}"]
    left = "no limit" if terms.num_requests is None else f"{terms.num_requests - terms.answered} left"
    quota = "no quota" if terms.quota is None else f"quota {terms.quota} images a certificate"
    reveals = ", ".join(terms.reveals)
    noise = [] if terms.noise is None else [_noise(terms, terms.noise)]
    return [
        f"state: {health.state}; model {_short(terms.model)}, {terms.mode} mode, reveals {reveals}",
        f"answered: {terms.answered} image(s), {left}, {quota}",
        *noise,
    ]


def _noise(terms: Status, noise: LabelNoise) -> str:
    total, identity = (
        "no limit" if limit is None else f"of {limit:g}"
        for limit in (noise.total_epsilon, noise.identity_epsilon)
    )
    each, spent = terms.answer_epsilon, terms.spent_epsilon
    return f"noisy labels: epsilon {each:g} each, {spent:g} spent in all ({total}), a certificate {identity}"


def _parties(health: ServiceHealth) -> Table:
    table = Table("party", "state", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("answered", "waiting", "prepared", "sent", "received", "up"):
        table.add_column(name, justify="right")
    for party in health.parties:
        table.add_row(party.name, party.state, *_counters(party))
    return table


def _counters(party: PartyHealth) -> list[str]:
    status, reading = party.status, party.reading
    if status is None or reading is None:
        return ["-"] * 6
    counts = (str(status.answered), str(status.waiting), str(status.prepared))
    return [*counts, size(reading.sent_bytes), size(reading.received_bytes), _age(status.since)]


def _ledger(health: ServiceHealth) -> Table:
    title = "Queries, the newest first"
    table = Table(
        "when", "who", "certificate", title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("images", justify="right")
    table.add_column("revealed")
    noisy = any(query.epsilon for query in health.queries)
    if noisy:
        table.add_column("epsilon", justify="right")
    for query in health.queries:
        revealed = query.reveal if query.answered else "nothing: interrupted"
        images = str(query.images)
        who = (query.name or "?", _short(query.fingerprint))
        spent = [f"{query.epsilon:g}"] if noisy else []
        table.add_row(_when(query.at), *who, images, revealed, *spent)
    return table


def _short(identifier: bytes) -> str:
    return identifier[:_SHOWN].hex()


def _when(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def _age(since: float | None) -> str:
    """Return how long ago a moment was, as people say it: 12 s, 5 min, 3 h, 9 d."""
    if since is None:
        return "-"
    value, unit = max(0.0, time.time() - since), "s"
    for length, longer in ((60, "min"), (60, "h"), (24, "d")):
        if value < length:
            break
        value, unit = value / length, longer
    return f"{int(value)} {unit}"
