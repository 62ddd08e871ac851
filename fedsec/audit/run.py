"""An audit of one finished run, or of two side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedsec.audit.fairness import Fairness, fairness
from fedsec.audit.figures import draw_audit
from fedsec.audit.membership import membership
from fedsec.audit.subject import Subject
from fedsec.errors import StateError, UsageError
from fedsec.lab.progress import Reporter
from fedsec.lab.rundir import RunFolder
from fedsec.learning.data import load_mnist


def _membership(subject: Subject) -> dict[str, Any]:
    return {**asdict(membership(subject)), "others_are": subject.origin}


def _fairness(subject: Subject) -> dict[str, Any]:
    found: Fairness = fairness(subject)
    return {
        **asdict(found),
        "worst_class": found.worst_class.name,
        "worst_hospital": found.worst_hospital.name,
    }


_PARTS: Mapping[str, tuple[str, Callable[[Subject], dict[str, Any]]]] = {
    "membership": ("losses of members and others", _membership),
    "fairness": ("accuracy by class and by hospital", _fairness),
}

PARTS = tuple(_PARTS)
"""What an audit has, in order."""


def audit_run(
    path: Path | str,
    against: Path | str | None = None,
    *,
    parts: Sequence[str] = PARTS,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Attack a finished run's model.

    Args:
        path: The run's folder, which gets ``audit.json`` and pictures.
        against: Another run's, to stand beside it: with differential privacy and without.
        parts: Some of ``PARTS``.
        reporter: Hears how far it is.

    Returns:
        What ``audit.json`` holds.

    Raises:
        UsageError: A folder is not that of a run with a model, or a part is unknown.
        DataError: MNIST could not be had.
        StateError: The folder cannot be written.
    """
    reporter, started = reporter or Reporter(), time.monotonic()
    if unknown := [part for part in parts if part not in PARTS]:
        raise UsageError(f"an audit has the parts {', '.join(PARTS)}; got {unknown[0]!r}")
    folders = [RunFolder.open(one) for one in (path, against) if one is not None]
    reporter.begin("MNIST")
    mnist = load_mnist()
    subjects = [Subject.of(folder, mnist) for folder in folders]
    found: dict[str, Any] = {"runs": [_audited(subject, parts, reporter) for subject in subjects]}
    found["seconds"] = time.monotonic() - started
    folder = folders[0]
    try:
        folder.audit.write_text(json.dumps(found) + "\n", encoding="utf-8")
        draw_audit(found, folder.audit_figure)
    except OSError as error:
        raise StateError(f"cannot write into {folder.path}: {error.strerror}") from error
    return found


def _audited(subject: Subject, parts: Sequence[str], reporter: Reporter) -> dict[str, Any]:
    found: dict[str, Any] = {
        "run": str(subject.folder.path),
        "scenario": subject.scenario.name,
        "epsilon": subject.epsilon,
    }
    for part in PARTS:
        if part in parts:
            title, attack = _PARTS[part]
            reporter.begin(f"{subject.folder.name}: {title}")
            found[part] = attack(subject)
    return found
