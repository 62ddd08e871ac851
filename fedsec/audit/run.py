"""An audit of one finished run, or of several side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsec.audit.figures import draw_audit
from fedsec.audit.parts import PARTS, Audited
from fedsec.audit.subject import Subject
from fedsec.errors import StateError, UsageError
from fedsec.lab.progress import Reporter
from fedsec.lab.rundir import RunFolder
from fedsec.learning.data import load_mnist


def audit_run(
    path: Path | str,
    against: Path | str | Sequence[Path | str] | None = None,
    *,
    parts: Sequence[str] | None = None,
    into: Path | str | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Attack a finished run's model, its updates and the mechanism that is to protect them.

    Args:
        path: The run's folder.
        against: Another run's, or those of several, to stand beside it: with differential privacy, say.
        parts: Some of ``PARTS``; all by default.
        into: Folder that gets ``audit.json`` and pictures; the run's by default.
        reporter: Hears how far it is.

    Returns:
        What ``audit.json`` holds.

    Raises:
        UsageError: A folder is not that of a run with a model, or a part is unknown.
        DataError: MNIST could not be had.
        StateError: The folder cannot be written.
    """
    reporter, started = reporter or Reporter(), time.monotonic()
    wanted = tuple(PARTS) if parts is None else tuple(parts)
    if unknown := [part for part in wanted if part not in PARTS]:
        raise UsageError(f"an audit has the parts {', '.join(PARTS)}; got {unknown[0]!r}")
    others = [against] if isinstance(against, Path | str) else against or []
    folders = [RunFolder.open(one) for one in (path, *others)]
    reporter.begin("MNIST")
    mnist = load_mnist()
    subjects = [Subject.of(folder, mnist) for folder in folders]
    folder = folders[0] if into is None else RunFolder(Path(into).resolve())
    found: dict[str, Any] = {"runs": [subject.described() for subject in subjects]}
    for name, part in PARTS.items():
        if name not in wanted:
            continue
        reporter.begin(part.title, len(subjects) if part.of_each_run else part.steps)
        result = part.attack(Audited(subjects, folder, reporter))
        if part.of_each_run:
            for run, own in zip(found["runs"], result, strict=True):
                run[name] = own
        else:
            found[name] = result
    found["seconds"], found["folder"] = time.monotonic() - started, str(folder.path)
    _keep(found, folder)
    return found


def _keep(found: Mapping[str, Any], folder: RunFolder) -> None:
    try:
        folder.audit.write_text(json.dumps(found) + "\n", encoding="utf-8")
        draw_audit(found, folder.audit_figure)
    except OSError as error:
        raise StateError(f"cannot write into {folder.path}: {error.strerror}") from error
