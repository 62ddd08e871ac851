"""A study: the runs of a scenario one after the other, attacks on all of them, and a figure in the end."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedsec.audit.curve import Rate
from fedsec.audit.run import audit_run
from fedsec.audit.study_report import draw_study
from fedsec.errors import StateError
from fedsec.lab.engines import Engine
from fedsec.lab.progress import Reporter
from fedsec.lab.result import RunResult
from fedsec.lab.run import run_scenario
from fedsec.lab.rundir import RunFolder
from fedsec.scenario import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult:
    """A finished study.

    Attributes:
        folder: Where its files are; each run has a folder of its own below it.
        scenario: What was studied.
        runs: One result for each value, in order; one in all where nothing was varied.
        audit: What ``audit.json`` holds, None without attacks.
        seconds: Wall time of the whole.
    """

    folder: RunFolder
    scenario: Scenario
    runs: tuple[RunResult, ...]
    audit: dict[str, Any] | None
    seconds: float

    def summary(self) -> dict[str, Any]:
        """Return everything as values that JSON can hold; the same as ``study.json``."""
        study = self.scenario.study
        values = study.values or (None,)
        return {
            "study": str(self.folder.path),
            "scenario": self.scenario.name,
            "key": study.key,
            "runs": [_row(value, result) for value, result in zip(values, self.runs, strict=True)],
            "audit": self.audit,
            "seconds": self.seconds,
        }


def run_study(
    scenario: Scenario,
    *,
    runs: Path | str = "runs",
    reporter: Reporter | None = None,
    engine: Engine = "in-process",
) -> StudyResult:
    """Run a scenario once for each value of its study, then attack what came out.

    Args:
        scenario: Its section ``study`` says what differs and what is asked in the end.
        runs: Folder in which the study gets a folder of its own.
        reporter: Hears how far it is.
        engine: As for ``run_scenario``.

    Raises:
        FedsecError: As ``run_scenario`` and ``audit_run`` raise; the first run that fails ends the study.
    """
    started, reporter = time.monotonic(), reporter or Reporter()
    folder = RunFolder.create(Path(runs), scenario.name)
    folder.scenario.write_text(scenario.to_toml(), encoding="utf-8")
    results = tuple(
        _run(scenario, number, folder, reporter, engine) for number in range(len(scenario.runs()))
    )
    study = StudyResult(
        folder=folder, scenario=scenario, runs=results, audit=None, seconds=time.monotonic() - started
    )
    # Before the attacks: if one of them fails, the runs were not for nothing.
    _keep(study)
    if not scenario.study.audits:
        return study
    first, *others = (result.folder.path for result in results)
    audit = audit_run(first, others, parts=scenario.study.audits, into=folder.path, reporter=reporter)
    study = replace(study, audit=audit, seconds=time.monotonic() - started)
    _keep(study)
    return study


def _keep(study: StudyResult) -> None:
    folder, summary = study.folder, study.summary()
    try:
        folder.study.write_text(json.dumps(summary) + "\n", encoding="utf-8")
        if study.scenario.study.values:
            draw_study(summary, folder.study_figure)
    except OSError as error:
        raise StateError(f"cannot write into {folder.path}: {error.strerror}") from error


def _run(scenario: Scenario, number: int, folder: RunFolder, reporter: Reporter, engine: Engine) -> RunResult:
    study, all_runs = scenario.study, scenario.runs()
    if study.values:
        reporter.say(f"run {number + 1} of {len(all_runs)}: {study.key} = {study.values[number]}")
    return run_scenario(all_runs[number], runs=folder.path / "runs", reporter=reporter, engine=engine)


def _row(value: object, result: RunResult) -> dict[str, Any]:
    tested = result.scenario.training.test_examples
    known = any(one.accuracy is not None for one in result.rounds)
    accuracy = asdict(Rate.of(round(result.accuracy * tested), tested)) if known else None
    epsilons = [row.epsilon for row in result.privacy]
    if result.whole_hospital is not None:
        epsilons.append(result.whole_hospital.epsilon)
    return {
        "value": value,
        "run": str(result.folder.path),
        "accuracy": accuracy,
        "epsilon": max(epsilons, default=None),
        "level": result.scenario.privacy.level,
    }
