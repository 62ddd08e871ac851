"""The how-to page about new protocols: its blocks are one pytest file, and its four checks pass."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "how-to" / "add-a-protocol.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _run(source: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "test_squared_distance.py").write_text(source)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "test_squared_distance.py"],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_page_is_a_test_file_that_passes_all_four_checks(tmp_path: Path) -> None:
    source = "\n\n".join(BLOCK.findall(PAGE.read_text()))

    done = _run(source, tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_the_same_page_without_its_mask_or_with_another_cost_fails(tmp_path: Path) -> None:
    source = "\n\n".join(BLOCK.findall(PAGE.read_text()))
    unmasked = source.replace("party.zero_share((x.shape[0],))", "np.zeros(x.shape[0], dtype=x.own.dtype)")
    cheaper = source.replace("Cost.each(rounds=1,", "Cost.each(rounds=0,")
    assert source not in {unmasked, cheaper}

    without_mask, without_round = _run(unmasked, tmp_path), _run(cheaper, tmp_path)

    assert without_mask.returncode == 1
    assert "squared_distance leaks" in without_mask.stdout
    assert "FEDSEC_TEST_SEED=" in without_mask.stdout
    assert without_round.returncode == 1
    assert "the channels counted" in without_round.stdout


def test_the_protocol_of_the_page_is_as_short_as_it_says() -> None:
    (block, _example) = BLOCK.findall(PAGE.read_text())
    body = block[block.index("@protocol") :].splitlines()
    inside_docstring = [i for i, line in enumerate(body) if '"""' in line]
    code = [
        line
        for i, line in enumerate(body)
        if line.strip() and not line.lstrip().startswith("#")
        and not inside_docstring[0] <= i <= inside_docstring[1]
    ]  # fmt: skip

    assert len(code) <= 20
