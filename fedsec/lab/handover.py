"""What Flower's processes hand back to the one that started them: files in ``flower/`` of a run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import fedsec.errors
from fedsec.aggregation.sealed.terms import SealedAt
from fedsec.errors import FedsecError
from fedsec.lab.result import RoundReport

RUN_VARIABLE = "FEDSEC_RUN"
"""Environment variable of the server's process, and of a simulation's: the folder of the run."""

RUN_NODE_KEY = "fedsec-run"
"""Key of a SuperNode's node config: a folder with ``scenario.toml``."""


class Handover:
    """The files, for the side that writes them and the side that reads.

    Args:
        run: The folder of the run.

    Attributes:
        folder: Holds them.
        parameters: The final parameters, as ``numpy.savez`` writes them, in the model's order.
    """

    def __init__(self, run: Path) -> None:
        self.folder = run / "flower"
        self.parameters = self.folder / "parameters.npz"
        self._rounds = self.folder / "rounds.jsonl"
        self._outcome = self.folder / "outcome.json"
        self._sealed = self.folder / "sealed.json"

    def add_round(self, report: RoundReport) -> None:
        """Append one round's report."""
        with self._rounds.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(report)) + "\n")

    def rounds(self, start: int) -> list[RoundReport]:
        """Return the reports from the ``start``-th on; a line that is not yet complete is left."""
        if not self._rounds.is_file():
            return []
        lines = self._rounds.read_text(encoding="utf-8").splitlines(keepends=True)
        reports = [json.loads(line) for line in lines[start:] if line.endswith("\n")]
        return [RoundReport(**{**one, "names": tuple(one["names"])}) for one in reports]

    def keep_sealed(self, sealed: SealedAt) -> None:
        """Write where the model is; there are no parameters then."""
        values = {"session": sealed.session.hex(), "number": sealed.number, "closed": sealed.closed}
        self._sealed.write_text(json.dumps(values), encoding="utf-8")

    def sealed(self) -> SealedAt | None:
        """Return where the model is; None when the parameters are here."""
        if not self._sealed.is_file():
            return None
        values = json.loads(self._sealed.read_text(encoding="utf-8"))
        return SealedAt(bytes.fromhex(values["session"]), values["number"], values["closed"])

    def end(self, error: Mapping[str, str]) -> None:
        """Say that the server has ended; ``error`` is empty, or has the error's class and its text."""
        # Renamed when complete: whoever waits for it never reads half of it.
        part = self._outcome.with_suffix(".part")
        part.write_text(json.dumps(error), encoding="utf-8")
        part.replace(self._outcome)

    @property
    def ended(self) -> bool:
        """Whether the server has ended."""
        return self._outcome.is_file()

    def check(self) -> None:
        """Raise the error with which the server ended, if it did."""
        outcome = json.loads(self._outcome.read_text(encoding="utf-8"))
        if outcome:
            named = getattr(fedsec.errors, outcome["error"], None)
            if isinstance(named, type) and issubclass(named, FedsecError):
                raise named(outcome["text"])
            raise FedsecError(outcome["text"])
