"""The how-to for Flower users, done as a reader would: the plain app, the page's diffs, both run, compared.

Fences with a ``title`` are files of the app; ``diff`` fences are applied to them in order, and one that does
not fit exactly fails.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fedsec

ROOT = Path(fedsec.__file__).parents[1]
PAGE = (ROOT / "docs" / "how-to" / "secure-your-flower-app.md").read_text()
FILE = re.compile(r"^```python title=(\w+\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DIFF = re.compile(r"^```diff\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HUNK = re.compile(r"@@ -(\d+),(\d+) \+(\d+),(\d+) @@")

# One process runs both, so that TensorFlow is loaded once: first as the page runs the secured app, then the
# plain app over the same grid without parties.
DRIVER = """
import json, os, runpy, sys
import numpy as np

def weights(folder):
    import keras
    model = keras.models.load_model(os.path.join(folder, "final_model.keras"))
    return [array.tolist() for array in model.get_weights()]

def enter(folder):
    os.chdir(folder)
    sys.path[0] = folder
    for name in ("task", "client_app", "server_app"):
        sys.modules.pop(name, None)

def metrics(result):
    return {phase: {n: dict(m) for n, m in getattr(result, phase).items()}
            for phase in ("train_metrics_clientapp", "evaluate_metrics_clientapp")}

from flwr.serverapp.strategy import Strategy
results = []
start = Strategy.start

def keep(self, *args, **kwargs):
    results.append(start(self, *args, **kwargs))
    return results[-1]

Strategy.start = keep
plain, secure = sys.argv[1:]
enter(secure)
page = runpy.run_path("run_here.py")
enter(plain)
import client_app, server_app
from fedsec.federation.grid import InProcessGrid, node_configs, run_server_app
grid = InProcessGrid(client_app.app, node_configs(4), run_config=page["config"])
run_server_app(server_app.app, grid, page["config"])
secured, unsecured = results
print("RESULT" + json.dumps({
    "secure": {"weights": weights(secure), **metrics(secured)},
    "plain": {"weights": weights(plain), **metrics(unsecured)},
}))
"""


def patched(files: dict[str, str], diff: str) -> dict[str, str]:
    """Apply a unified diff; every context line and every line number must fit."""
    changed = dict(files)
    for part in re.split(r"^(?=--- a/)", diff, flags=re.MULTILINE)[1:]:
        header, *rest = part.splitlines()
        name = header.removeprefix("--- a/")
        assert rest[0] == f"+++ b/{name}"
        old, new, at = changed[name].splitlines(), list[str](), 0
        for hunk in re.split(r"^(?=@@ )", "\n".join(rest[1:]), flags=re.MULTILINE)[1:]:
            head, *lines = hunk.splitlines()
            numbers = HUNK.fullmatch(head)
            assert numbers, head
            first, counts = int(numbers[1]) - 1, (int(numbers[2]), int(numbers[4]))
            new, at = [*new, *old[at:first]], first
            removed = [line[1:] for line in lines if line[:1] in {" ", "-"}]
            added = [line[1:] for line in lines if line[:1] in {" ", "+"}]
            assert (len(removed), len(added)) == counts, head
            assert len(new) == int(numbers[3]) - 1, head
            assert old[at : at + len(removed)] == removed, f"{name}: the diff does not fit"
            new, at = [*new, *added], at + len(removed)
        changed[name] = "\n".join([*new, *old[at:]]) + "\n"
    return changed


def write(folder: Path, files: dict[str, str]) -> str:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    return str(folder)


def test_the_plain_app_and_the_one_with_two_lines_average_the_same(tmp_path: Path) -> None:
    files = dict(FILE.findall(PAGE))
    diffs = DIFF.findall(PAGE)
    assert "fedsec" not in files["client_app.py"] + files["server_app.py"] + files["task.py"]
    two_lines, metrics = diffs
    changed = [line for line in two_lines.splitlines() if re.match(r"\+(?!\+\+ )", line)]
    assert len([line for line in changed if "import" not in line]) == 2, "these are more than two lines"
    secured = patched(patched(files, two_lines), metrics)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)

    folders = [write(tmp_path / "plain", files), write(tmp_path / "secure", secured)]
    done = subprocess.run(
        [sys.executable, str(driver), *folders],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.rpartition("RESULT")[2])
    assert "party-0" in {path.name for path in (tmp_path / "secure" / "parties" / "parties").iterdir()}
    plain, secure = flat(result["plain"]), flat(result["secure"])
    assert plain.keys() == secure.keys()
    assert {name.partition("/")[0] for name in plain} == {
        "weights",
        "train_metrics_clientapp",
        "evaluate_metrics_clientapp",
    }
    # Two rounds within 4 * 1e5 / (2^32 * 275) * clip each; a loss has the range 100, and an error in the
    # first model moves the second round's a little.
    assert max(abs(plain[name] - secure[name]) for name in plain if name.startswith("weights")) < 1e-5
    assert max(abs(plain[name] - secure[name]) for name in plain) < 2e-4
    moved = [abs(plain[name] - 1.0) for name in plain if name.startswith("weights")]
    assert max(moved) > 0.1


def test_a_diff_that_does_not_fit_is_noticed() -> None:
    files = dict(FILE.findall(PAGE))
    wrong = DIFF.findall(PAGE)[0].replace("app = ClientApp()", "app = ClientApps()")
    with pytest.raises(AssertionError, match="does not fit"):
        patched(files, wrong)


def flat(values: object, name: str = "") -> dict[str, float]:
    """Every number of a nested structure by its path."""
    if isinstance(values, int | float):
        return {name.lstrip("/"): float(values)}
    items = values.items() if isinstance(values, dict) else enumerate(values)  # type: ignore[arg-type]
    return {k: v for key, value in items for k, v in flat(value, f"{name}/{key}").items()}
