"""Worker processes: answers, errors under their own class, noise on standard output, sudden ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedsec.bench.workers import Worker
from fedsec.errors import DeadlineError, PeerLostError, ProtocolError, UsageError

_MODULE = """
import os, time
from fedsec.bench.workers import answer_requests
from fedsec.errors import UsageError

def noisy(number):
    print("a library that prints")
    return {"twice": 2 * number, "long": "x" * 200_000}

def refuse():
    raise UsageError("expected something else")

operations = {"noisy": noisy, "refuse": refuse}
answer_requests({**operations, "end": lambda: os._exit(3), "sleep": lambda: time.sleep(1)})
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "worker_of_a_test.py").write_text(_MODULE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    return "worker_of_a_test"


def test_a_worker_answers_and_says_what_went_wrong(module: str) -> None:
    with Worker(module) as worker:
        assert worker.ask("noisy", number=4) == {"twice": 8, "long": "x" * 200_000}
        with pytest.raises(UsageError, match="expected something else"):
            worker.ask("refuse")
        with pytest.raises(ProtocolError, match="got 'unknown'"):
            worker.ask("unknown")
        assert worker.ask("noisy", number=5)["twice"] == 10


def test_a_worker_that_ends_is_named(module: str) -> None:
    with Worker(module) as worker:
        with pytest.raises(PeerLostError, match="worker_of_a_test"):
            worker.ask("end")
        with pytest.raises(PeerLostError, match="it has ended"):
            worker.ask("noisy", number=1)


def test_a_worker_that_says_nothing_is_named(module: str) -> None:
    with Worker(module) as worker, pytest.raises(DeadlineError, match="worker_of_a_test"):
        worker.ask("sleep", timeout_s=0.3)


def test_a_worker_whose_asker_has_gone_ends_without_a_word(
    module: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with Worker(module) as worker:
        worker.tell("noisy", number=4)
        # It is closed now, with an answer on its way, as Ctrl-C does it.

    assert "Traceback" not in capfd.readouterr().err


def test_the_command_line_does_not_load_tensorflow() -> None:
    code = "import sys; import fedsec.cli.bench; sys.exit('tensorflow' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0
