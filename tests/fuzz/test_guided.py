"""A longer run of the same readers, steered by the code that each input reaches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = int(os.environ.get("FEDSEC_FUZZ_SECONDS", "60"))
"""For each group of readers."""
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 300)
# Not messages alone: msgspec decodes them in compiled code, which shows no coverage.
@pytest.mark.parametrize("group", ["requests", "rounds", "bytes", "files"])
def test_threat_38_coverage_guided(group: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="pip install -e '.[test,fuzz]'")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("guided.py")), group, str(tmp_path / "found"),
         f"-max_total_time={SECONDS}"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
        timeout=SECONDS + 240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    assert "DONE" in done.stderr, "the fuzzer did not come to its end"
