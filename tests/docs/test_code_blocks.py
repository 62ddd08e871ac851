"""Every code block of the README, the tutorials and some other pages is run, in order.

It runs in a folder that holds only ``scenarios/``, as a reader in the project's folder has it. ``python``
blocks of a page share one namespace, ``sh`` blocks run under ``bash -e``. A ``text`` block right after a
``python`` block is its exact output. The README's first two ``sh`` blocks set up a machine; ``.ci/run`` runs
those.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SET_UP_BLOCKS = 2
TUTORIALS = sorted((ROOT / "docs" / "tutorial").glob("*.md"))
OTHERS = [
    ROOT / "docs" / page
    for page in (
        "explanation/secret-sharing.md",
        "explanation/fixed-point.md",
        "how-to/secure-your-flower-app.md",
        "how-to/run-a-scenario.md",
        "how-to/train-with-privacy.md",
        "how-to/protect-whole-hospitals.md",
    )
]
SLOW = {"run-a-scenario.md", "train-with-privacy.md", "protect-whole-hospitals.md"}
"""Whole trainings, of what other tests show at a smaller size."""

DRIVER = """
import contextlib, io, json, subprocess, sys

def run(blocks):
    namespace = {"__name__": "page"}
    said = ""
    for line, language, source in blocks:
        where = f"block at line {line}"
        if language == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(source, where, "exec"), namespace)
            said = out.getvalue()
        elif language == "sh":
            subprocess.run(["bash", "-euo", "pipefail", "-c", source], check=True)
        elif said.strip() != source.strip():
            sys.exit(f"{where} promises:\\n{source}\\nbut the code before it printed:\\n{said}")

if __name__ == "__main__":
    run(json.load(open(sys.argv[1])))
"""


@dataclass(frozen=True)
class Block:
    """One fenced block: its line in the page, its language and its text."""

    line: int
    language: str
    source: str


def blocks_of(text: str) -> list[Block]:
    """The runnable blocks of a page, and the outputs that stand right behind a Python block."""
    kept: list[Block] = []
    end_of_python = -1
    for fence in FENCE.finditer(text):
        promised = (
            fence[1] == "text" and end_of_python >= 0 and not text[end_of_python : fence.start()].strip()
        )
        if fence[1] in {"python", "sh"} or promised:
            kept.append(Block(text.count("\n", 0, fence.start()) + 1, fence[1], fence[2]))
        end_of_python = fence.end() if fence[1] == "python" else -1
    return kept


def run_blocks(blocks: list[Block], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the blocks of a page in ``folder`` with this interpreter's ``fedsec`` first on the path."""
    (folder / "scenarios").symlink_to(ROOT / "scenarios")
    (folder / "driver.py").write_text(DRIVER)
    (folder / "blocks.json").write_text(json.dumps([(b.line, b.language, b.source) for b in blocks]))
    programs = Path(sys.executable).parent
    env = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "driver.py", "blocks.json"],
        cwd=folder, env=env, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip


PAGES = [
    pytest.param(page, marks=pytest.mark.slow if page.name in SLOW else (), id=page.name)
    for page in [*TUTORIALS, *OTHERS]
]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_as_written(page: Path, tmp_path: Path) -> None:
    blocks = blocks_of(page.read_text())
    assert blocks, "a tutorial without code teaches nothing"

    done = run_blocks(blocks, tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_runs_as_written(tmp_path: Path) -> None:
    blocks = blocks_of((ROOT / "README.md").read_text())
    shell = [block for block in blocks if block.language == "sh"]
    assert "fedsec demo" in shell[0].source
    assert "pytest" in shell[1].source
    smoke = Block(0, "sh", "fedsec demo --rounds 1 --examples 2000")

    done = run_blocks([smoke, *(b for b in blocks if b not in shell[:SET_UP_BLOCKS])], tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr


def test_a_wrong_promise_is_noticed(tmp_path: Path) -> None:
    page = "```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n"

    done = run_blocks(blocks_of(page), tmp_path)

    assert done.returncode != 0
    assert "promises" in done.stderr


def test_relative_links_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)} -> {target}"
        for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "scenarios").rglob("*.md")]
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert not broken, broken
