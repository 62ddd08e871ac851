"""One side of a comparison, in a process of its own: a scenario's apps, plain or secured.

``python -m fedsec.lab.compare_side FOLDER plain|secure``, started by :mod:`fedsec.lab.compare`. Both sides
run this same code over the same in-process grid from the same seed, with nothing else in memory.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from flwr.serverapp.strategy import Strategy

from fedsec.cluster.keys import SERVER, numbered
from fedsec.errors import FedsecError
from fedsec.federation.grid import DropEachRound, InProcessGrid, node_configs, run_server_app
from fedsec.federation.mod import SecureAggregationMod
from fedsec.federation.observer import SimulationObserver
from fedsec.federation.records import numpy_of
from fedsec.lab.compare import MEASURES
from fedsec.lab.experiment import log_to
from fedsec.lab.handover import Handover
from fedsec.lab.memory import peak_memory
from fedsec.lab.participants import central_app, hospital_app, secured, strategy_of
from fedsec.lab.plan import round_plan
from fedsec.lab.result import RoundReport
from fedsec.lab.rounds import Rounds
from fedsec.lab.rundir import RunFolder
from fedsec.learning import models
from fedsec.learning.data import load_mnist
from fedsec.scenario import Scenario
from fedsec.transport import Meter

Side = Literal["plain", "secure"]
SIDES: tuple[Side, ...] = ("plain", "secure")


class CountingGrid(InProcessGrid):
    """Counts what would travel over Flower: the content of messages, before Flower's own framing.

    Attributes:
        sent_bytes: From the server.
        received_bytes: By the server.
        answered: Replies with content, in all.
    """

    sent_bytes = received_bytes = answered = 0

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Deliver ``messages`` and return the replies; both are counted."""
        orders = list(messages)
        self.sent_bytes += sum(content_bytes(order.content) for order in orders)
        replies = list(super().send_and_receive(orders, timeout=timeout))
        contents = [reply.content for reply in replies if reply.has_content()]
        self.received_bytes += sum(map(content_bytes, contents))
        self.answered += len(contents)
        return replies


def content_bytes(content: RecordDict) -> int:
    """Return the bytes of the values in a message.

    Arrays count as they are in memory, numbers as 8 bytes, texts and bytes by their length.
    """
    records = content.array_records.values()
    count = sum(numpy_of(array).nbytes for record in records for array in record.values())
    values: list[object] = [value for record in content.metric_records.values() for value in record.values()]
    values += [value for record in content.config_records.values() for value in record.values()]
    for value in values:
        entries = value if isinstance(value, list) else [value]
        count += sum(len(one) if isinstance(one, str | bytes) else 8 for one in entries)
    return count


class _PlainRounds:
    """Reports the rounds of a strategy that nobody secured."""

    def __init__(
        self, hospitals: int, report: Callable[[RoundReport], None], observer: SimulationObserver
    ) -> None:
        self._hospitals, self._report, self._observer = hospitals, report, observer
        self._started = time.monotonic()

    def evaluated(self, number: int, loss: float, accuracy: float) -> None:
        """Report a round; the evaluation before the first one only starts the clock."""
        seconds, self._started = time.monotonic() - self._started, time.monotonic()
        included = len(self._observer.take())
        if number:
            self._report(
                RoundReport(
                    round=number,
                    accuracy=accuracy,
                    loss=loss,
                    included=included,
                    hospitals=self._hospitals,
                    difference=None,
                    error_bound=None,
                    seconds=seconds,
                )
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Set:
    """What differs between the sides.

    Attributes:
        mods: Of the hospitals' app.
        strategy: Of the server's app.
        evaluated: Called after each round with its number, test loss and test accuracy.
        hospitals: The meters of the hospitals' connections to the parties.
        server: The meters of the server's.
    """

    mods: Sequence[Mod]
    strategy: Strategy
    evaluated: Callable[[int, float, float], None]
    hospitals: Callable[[], Iterable[Meter]] = tuple
    server: Sequence[Meter] = ()


@contextmanager
def _plain(scenario: Scenario, folder: RunFolder, handover: Handover) -> Iterator[_Set]:
    # The observer is on both sides, so that neither pays for it alone.
    observer = SimulationObserver()
    rounds = _PlainRounds(scenario.hospitals.count, handover.add_round, observer)
    yield _Set(mods=[observer], strategy=strategy_of(scenario.strategy), evaluated=rounds.evaluated)


@contextmanager
def _secure(scenario: Scenario, folder: RunFolder, handover: Handover) -> Iterator[_Set]:
    observer, mod = SimulationObserver(), SecureAggregationMod()
    names = numbered("hospital", scenario.hospitals.count)
    rounds = Rounds(names, handover.add_round, round_plan(scenario), observer)
    identity = folder.path / "keys" / f"{SERVER}.pem"
    strategy = secured(scenario, folder.cluster, identity, on_round=rounds.secured)
    try:
        yield _Set(
            mods=[mod, observer],
            strategy=strategy,
            evaluated=rounds.evaluated,
            hospitals=lambda: mod.meters().values(),
            server=[strategy.meter],
        )
        rounds.check()
    finally:
        strategy.close()
        mod.close()


def run_side(folder: RunFolder, side: Side) -> None:
    """Run all rounds of the folder's scenario; rounds and measures go into ``FOLDER/<side>/flower``.

    Raises:
        FedsecError: As ``run_scenario`` raises.
    """
    scenario, handover = Scenario.load(folder.scenario), Handover(folder.path / side)
    mnist = load_mnist()
    model = models.by_name(scenario.training.model, seed=scenario.seed)
    before = peak_memory()
    with (_secure if side == "secure" else _plain)(scenario, folder, handover) as this:
        app = hospital_app(scenario, mnist, model, this.mods)
        grid = _grid(scenario, app, folder if side == "secure" else None)
        run_server_app(central_app(scenario, mnist, model, this.strategy, this.evaluated), grid)
    measures = {
        "flower": {"sent_bytes": grid.sent_bytes, "received_bytes": grid.received_bytes},
        "hospitals": _bytes(this.hospitals()),
        "server": _bytes(this.server),
        "answered": grid.answered,
        "client_seconds": grid.client_seconds,
        "memory_before_bytes": before,
        "memory_bytes": peak_memory(),
    }
    (handover.folder / MEASURES).write_text(json.dumps(measures), encoding="utf-8")


def _grid(scenario: Scenario, app: ClientApp, folder: RunFolder | None) -> CountingGrid:
    # Plain hospitals have no trust file, so that what both sides spend of privacy is not added up.
    hospitals = scenario.hospitals
    dropped = hospitals.dropped_each_round
    trust = None
    if folder is not None:
        names = numbered("hospital", hospitals.count)
        trust = [folder.path / "keys" / "trust" / f"{name}.toml" for name in names]
    return CountingGrid(
        app,
        node_configs(hospitals.count, trust),
        dropout=DropEachRound(dropped, hospitals.count, scenario.seed) if dropped else None,
    )


def _bytes(meters: Iterable[Meter]) -> dict[str, int]:
    kept = list(meters)
    return {
        "sent_bytes": sum(meter.sent_bytes for meter in kept),
        "received_bytes": sum(meter.received_bytes for meter in kept),
    }


def _end_with_parent() -> None:
    """End this process when whoever started it has gone; the pipe on standard input then ends."""
    sys.stdin.buffer.read()
    os._exit(1)


def main() -> None:
    """Run the side that the command line names; the outcome is in its folder, for whoever started it."""
    folder, side = RunFolder(Path(sys.argv[1])), next(one for one in SIDES if one == sys.argv[2])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    outcome = {"error": FedsecError.__name__, "text": f"the {side} side failed; its log says where"}
    try:
        log = folder.logs / f"{side}.log"
        with log_to(log, "fedsec"), log_to(log, "flwr"):
            run_side(folder, side)
        outcome = {}
    except FedsecError as error:
        outcome = {"error": type(error).__name__, "text": str(error)}
    finally:
        Handover(folder.path / side).end(outcome)


if __name__ == "__main__":
    main()
